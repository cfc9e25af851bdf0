//! Going away, whole or in part: by us, by others, after a crash.

use shunt_core::workload::{Mode, OnFailure, PortRange};
use shunt_intercept::iptables::{self, DeadMan};
use shunt_intercept::{Backend, InterceptError};

use crate::world::{MARKS, PEER, PEER_PORT, World, assert_same, at, until};
use crate::{OPEN_WITHIN, backend, captured, direct, settle, strip};

/// The supervisor was killed: nothing released, and part of it has gone since.
#[test]
fn cleanup_removes_what_a_crash_left() {
    for (variant, dead_man) in [
        ("nft", DeadMan::Recent),
        ("nft", DeadMan::Set),
        ("legacy", DeadMan::Recent),
        ("legacy", DeadMan::Set),
    ] {
        for damage in [
            "true",
            "iptables-$V -t nat -F OUTPUT; ip rule del pref 15031; ip -6 route flush table 15006",
        ] {
            let world = World::new();
            if variant == "legacy" {
                settle(&world.pod, variant);
            }
            let before = world.pod.state();
            let mut backend = backend(dead_man);
            backend
                .install(&world.enrolment(OnFailure::Open))
                .expect("installs");
            shunt_intercept::return_path::ensure(&world.pod.netns, MARKS.delivery, Mode::Iptables)
                .expect("makes it");
            drop(backend);
            assert!(!iptables::leftovers(&world.pod.netns).is_empty());
            world.pod.sh(&damage.replace("$V", variant));
            let removed = iptables::cleanup(&world.pod.netns).expect("cleans");
            assert!(
                removed
                    .iter()
                    .any(|what| what.contains(&format!("iptables-{variant}"))),
                "{removed:?}"
            );
            let mut wanted = before.clone();
            if damage != "true" {
                wanted = wanted.replace("-A OUTPUT -p udp -j FOREIGN\n", "");
                wanted = wanted.replace(":OUTPUT", "");
            }
            let now = match damage {
                "true" => world.pod.state(),
                _ => world
                    .pod
                    .state()
                    .replace("-A OUTPUT -p udp -j FOREIGN\n", "")
                    .replace(":OUTPUT", ""),
            };
            assert_same(
                &now,
                &wanted,
                &format!("{variant} {dead_man:?} after {damage}: {removed:?}"),
            );
            assert_eq!(iptables::leftovers(&world.pod.netns), Vec::<String>::new());
            assert_eq!(
                iptables::cleanup(&world.pod.netns).expect("cleans"),
                Vec::<String>::new()
            );
        }
    }
}

/// `iptables-save` shows neither, and `nft delete table` would take both along.
#[test]
fn foreign_sets_and_late_foreign_rules_survive() {
    let world = World::new();
    world
        .pod
        .sh("nft add table ip nat; nft add set ip nat theirs '{ type ipv4_addr; }'");
    let before = world.pod.state();
    let mut backend = backend(DeadMan::Recent);
    let enrolment = world.enrolment(OnFailure::Open);
    backend.install(&enrolment).expect("installs");
    drop(backend);
    iptables::cleanup(&world.pod.netns).expect("cleans");
    assert!(
        world
            .pod
            .sh("nft list set ip nat theirs")
            .contains("theirs")
    );
    assert!(before.contains("theirs"));

    world.pod.sh("nft delete table ip nat");
    let mut backend = crate::backend(DeadMan::Recent);
    backend.install(&enrolment).expect("installs");
    world
        .pod
        .sh("iptables-nft -t nat -A POSTROUTING -p udp -j RETURN");
    backend
        .release(&enrolment)
        .and_then(|()| backend.finish(&enrolment))
        .expect("goes");
    let left = world.pod.nat("nft");
    assert!(
        left.contains("-A POSTROUTING -p udp -j RETURN") && !left.contains("SHUNT"),
        "{left}"
    );
}

#[test]
fn a_family_that_fails_takes_the_other_back() {
    let world = World::new();
    // What iptables-nft cannot make its built-in chain of.
    world.pod.sh("nft add table ip6 nat; nft add chain ip6 nat OUTPUT '{ type filter hook output priority 0; }'");
    let before = world.pod.state();
    let mut backend = backend(DeadMan::Recent);
    let error = backend
        .install(&world.enrolment(OnFailure::Open))
        .expect_err("cannot be");
    assert!(matches!(error, InterceptError::Program { .. }), "{error:?}");
    assert_same(&world.pod.state(), &before, &error.chain());
    direct(&world);

    // An update that fails leaves in force what was.
    world.pod.sh("nft delete table ip6 nat");
    let mut enrolment = world.enrolment(OnFailure::Open);
    backend.install(&enrolment).expect("installs");
    let nat = strip(&world.pod.nat("nft"));
    world
        .pod
        .sh("nft delete table ip6 nat; nft add table ip6 nat; \
                  nft add chain ip6 nat OUTPUT '{ type filter hook output priority 0; }'");
    enrolment.spec.outbound.exclude_ports = vec![PortRange {
        first: PEER_PORT,
        last: PEER_PORT,
    }];
    backend.update(&enrolment).expect_err("cannot be");
    let v4 = |saved: &str| {
        saved
            .lines()
            .filter(|line| !line.contains("shunt6") && !line.contains("::"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let now = strip(&world.pod.sh("iptables-nft-save"));
    assert!(
        v4(&now).iter().all(|line| v4(&nat).contains(line)) && now.contains("SHUNT_TO_OUT"),
        "{now}"
    );
    assert!(!now.contains("--dport 9000"), "{now}");
    backend.keep_alive();
    assert!(world.pod.ask(&at(PEER[0], PEER_PORT)).starts_with("agent"));
}

#[test]
fn rules_removed_by_others_come_back_with_the_next_update() {
    for dead_man in [DeadMan::Recent, DeadMan::Set] {
        let world = World::new();
        let mut backend = backend(dead_man);
        let enrolment = world.enrolment(OnFailure::Open);
        backend.install(&enrolment).expect("installs");
        captured(&world, &mut backend);
        world.pod.sh("nft flush ruleset");
        until("the list vanishes", OPEN_WITHIN, || {
            world
                .pod
                .sh("ls /proc/net/xt_recent 2>/dev/null || true")
                .trim()
                .is_empty()
        });
        backend.keep_alive();
        backend.keep_alive();
        direct(&world);
        backend.update(&enrolment).expect("updates");
        captured(&world, &mut backend);
    }
}
