//! The iptables backend against real namespaces, in both variants and with both dead-man switches. Needs root.

#[path = "iptables/apart.rs"]
mod apart;
#[path = "iptables/explains.rs"]
mod explains;
#[path = "iptables/removal.rs"]
mod removal;
#[path = "iptables/return_path.rs"]
mod return_path;
#[path = "iptables/world.rs"]
mod world;

use std::time::{Duration, Instant};

use shunt_core::workload::{OnFailure, PortRange};
use shunt_intercept::iptables::{self, DeadMan, IptablesBackend};
use shunt_intercept::{Backend, InterceptError};

use crate::world::{MARKS, PEER, PEER_PORT, POD, Space, World, assert_same, at, enrolment, until};

/// The dead-man switch opens after one second; this is the promise.
const OPEN_WITHIN: Duration = Duration::from_secs(2);

fn backend(dead_man: DeadMan) -> IptablesBackend {
    IptablesBackend::with_dead_man(MARKS, Some(dead_man)).expect("iptables is installed")
}

/// A rule of somebody else makes the namespace use this variant, and must survive.
fn settle(pod: &Space, variant: &str) {
    pod.sh(&format!(
        "for p in iptables ip6tables; do $p-{variant} -t nat -N FOREIGN; $p-{variant} -t nat -A FOREIGN -p udp -j RETURN; \
         $p-{variant} -t nat -A OUTPUT -p udp -j FOREIGN; done"
    ));
}

fn answers(world: &World, word: &str) -> bool {
    PEER.iter()
        .all(|ip| world.pod.ask(&at(ip, PEER_PORT)).starts_with(word))
}

#[track_caller]
fn captured(world: &World, backend: &mut IptablesBackend) {
    for ip in PEER {
        backend.keep_alive();
        let answer = world.pod.ask(&at(ip, PEER_PORT));
        assert!(
            answer.starts_with(&format!("agent {}", at(ip, PEER_PORT))),
            "{answer}"
        );
    }
}

#[track_caller]
fn direct(world: &World) {
    for ip in PEER {
        let answer = world.pod.ask(&at(ip, PEER_PORT));
        assert!(answer.starts_with("direct"), "{ip}: {answer}");
    }
}

/// A whole life in one variant with one switch.
#[expect(clippy::print_stdout, reason = "what was measured")]
fn life(variant: &str, dead_man: DeadMan) {
    let world = World::new();
    settle(&world.pod, variant);
    world.pod.serve_direct(8080);
    let before = world.pod.state();
    let mut backend = backend(dead_man);
    let mut enrolment = world.enrolment(OnFailure::Open);

    let start = Instant::now();
    backend.install(&enrolment).expect("installs");
    let first = start.elapsed();
    let once = world.pod.nat(variant);
    backend.install(&enrolment).expect("installs again");
    assert_eq!(
        strip(&world.pod.nat(variant)),
        strip(&once),
        "twice is once"
    );
    assert_eq!(
        once.matches("-j SHUNT_OUTPUT").count(),
        2,
        "one jump in each family:\n{once}"
    );
    let reason = backend.describe(&enrolment);
    assert!(
        reason.starts_with(&format!("iptables {variant}: ")),
        "{reason}"
    );

    // Nobody has spoken for the agent yet.
    direct(&world);
    captured(&world, &mut backend);
    backend.keep_alive();
    let opened = until("opens", OPEN_WITHIN, || answers(&world, "direct"));
    captured(&world, &mut backend);

    for (ip, from) in POD.iter().zip(PEER) {
        backend.keep_alive();
        let answer = world.peer.ask(&at(ip, 8080));
        assert_eq!(answer, format!("inbound {} for {from}", at(ip, 8080)));
        assert_eq!(world.peer.ask(&at(ip, 8081)), "ConnectionRefused");
    }

    let start = Instant::now();
    for _ in 0..100 {
        backend.keep_alive();
    }
    let kept = start.elapsed() / 100;

    enrolment.spec.outbound.exclude_ports = vec![PortRange {
        first: PEER_PORT,
        last: PEER_PORT,
    }];
    let start = Instant::now();
    backend.update(&enrolment).expect("updates");
    let updated = start.elapsed();
    backend.keep_alive();
    direct(&world);
    enrolment.spec.outbound.exclude_ports.clear();
    backend.update(&enrolment).expect("updates back");
    captured(&world, &mut backend);

    backend.release(&enrolment).expect("releases");
    backend.keep_alive();
    direct(&world);
    let start = Instant::now();
    backend.finish(&enrolment).expect("finishes");
    let finished = start.elapsed();
    assert_same(&world.pod.state(), &before, "as if nothing had been");
    backend
        .release(&enrolment)
        .and_then(|()| backend.finish(&enrolment))
        .expect("again is nothing");
    println!(
        "{variant} {dead_man:?}: install {first:?}, update {updated:?}, finish {finished:?}, keep_alive {kept:?}, \
         opened after {opened:?}; {reason}"
    );
}

/// Counters are no content.
fn strip(saved: &str) -> String {
    saved
        .lines()
        .filter(|line| !line.starts_with(['#', ':']))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn life_nft_recent() {
    life("nft", DeadMan::Recent);
}

#[test]
fn life_nft_set() {
    life("nft", DeadMan::Set);
}

#[test]
fn life_legacy_recent() {
    life("legacy", DeadMan::Recent);
}

#[test]
fn life_legacy_set() {
    life("legacy", DeadMan::Set);
}

#[test]
fn an_untouched_namespace_is_untouched_again() {
    let world = World::new();
    let before = world.pod.state();
    for dead_man in [DeadMan::Recent, DeadMan::Set] {
        let mut backend = backend(dead_man);
        let enrolment = world.enrolment(OnFailure::Open);
        backend.install(&enrolment).expect("installs");
        assert!(backend.describe(&enrolment).starts_with("iptables nft"));
        captured(&world, &mut backend);
        backend
            .release(&enrolment)
            .and_then(|()| backend.finish(&enrolment))
            .expect("goes");
        assert_same(&world.pod.state(), &before, "tables included");
    }
}

/// The one exception: the kernel has no way to take a legacy table away.
#[test]
fn a_fresh_legacy_table_stays_behind_empty() {
    let world = World::new();
    world
        .pod
        .sh("for p in iptables ip6tables; do $p-legacy -A INPUT -p udp -j ACCEPT; done");
    let mut backend = backend(DeadMan::Recent);
    let enrolment = world.enrolment(OnFailure::Open);
    backend.install(&enrolment).expect("installs");
    let reason = backend.describe(&enrolment);
    assert!(
        reason.contains("the namespace has rules in legacy tables"),
        "{reason}"
    );
    captured(&world, &mut backend);
    backend
        .release(&enrolment)
        .and_then(|()| backend.finish(&enrolment))
        .expect("goes");
    assert_eq!(strip(&world.pod.nat("legacy")).matches("-A ").count(), 2);
    assert!(!world.pod.nat("legacy").contains("SHUNT"));
}

#[test]
fn closed_is_refused_without_a_sign_of_life() {
    let world = World::new();
    let mut backend = IptablesBackend::new(MARKS).expect("iptables is installed");
    let enrolment = world.enrolment(OnFailure::Closed);
    backend.install(&enrolment).expect("installs");
    captured(&world, &mut backend);
    drop(backend);
    world::pause(Duration::from_millis(1500));
    // Though its listeners would still answer.
    assert!(answers(&world, "ConnectionRefused"));
}

#[test]
fn own_marks_and_never_captured_destinations_go_directly() {
    let world = World::new();
    world.pod.serve_direct(7000);
    let mut backend = backend(DeadMan::Recent);
    let enrolment = world.enrolment(OnFailure::Open);
    backend.install(&enrolment).expect("installs");
    for ip in ["127.0.0.1", "127.9.9.9", "::1", POD[0], POD[1]] {
        backend.keep_alive();
        assert!(world.pod.ask(&at(ip, 7000)).starts_with("direct"), "{ip}");
    }
    for mark in [MARKS.upstream, MARKS.delivery] {
        for ip in PEER {
            backend.keep_alive();
            let addr: std::net::SocketAddr = at(ip, PEER_PORT).parse().expect("an address");
            let stream = world.pod.enter(|| {
                let domain = socket2::Domain::for_address(addr);
                let socket =
                    socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket");
                socket.set_mark(mark).expect("root");
                socket
                    .connect_timeout(&addr.into(), Duration::from_secs(1))
                    .expect("connects");
                socket
            });
            assert!(
                world::read(stream.into()).starts_with("direct"),
                "{mark:#x} {ip}"
            );
        }
    }
}

/// Another process, `shunt` or not, put the same rules there again: the open file of the old list is dead.
#[test]
fn a_switch_is_opened_again() {
    let world = World::new();
    let mut backend = backend(DeadMan::Recent);
    backend
        .install(&world.enrolment(OnFailure::Open))
        .expect("installs");
    captured(&world, &mut backend);
    world.pod.sh(
        "iptables-nft-save > /tmp/$$.shunt4; ip6tables-nft-save > /tmp/$$.shunt6; nft flush ruleset; sleep 0.3; \
         iptables-nft-restore < /tmp/$$.shunt4; ip6tables-nft-restore < /tmp/$$.shunt6; rm /tmp/$$.shunt?",
    );
    captured(&world, &mut backend);
}

#[test]
fn without_loopback_nothing_is_installed() {
    let world = World::new();
    let enrolment = world.enrolment(OnFailure::Open);
    world.pod.sh("ip link set lo down");
    let before = world.pod.state();
    let error = backend(DeadMan::Recent)
        .install(&enrolment)
        .expect_err("cannot be");
    assert!(
        matches!(&error, InterceptError::Unsupported(text) if text.contains("loopback")),
        "{error}"
    );
    assert_same(&world.pod.state(), &before, "state");
}

#[test]
fn one_family_alone() {
    for (outbound, inbound, there, absent) in [
        ("127.0.0.1:0", "0.0.0.0:0", "iptables", "ip6tables"),
        ("[::1]:0", "[::]:0", "ip6tables", "iptables"),
    ] {
        let pod = Space::new();
        let before = pod.state();
        let mut backend = backend(DeadMan::Recent);
        let enrolment = enrolment(&pod, OnFailure::Open, &[outbound], &[inbound]);
        backend.install(&enrolment).expect("installs");
        assert!(
            pod.sh(&format!("{there}-nft-save"))
                .contains("SHUNT_OUTPUT")
        );
        assert!(pod.sh(&format!("{absent}-nft-save")).trim().is_empty());
        backend.keep_alive();
        backend
            .release(&enrolment)
            .and_then(|()| backend.finish(&enrolment))
            .expect("goes");
        assert_same(&pod.state(), &before, "state");
    }
}

#[test]
fn the_probe_finds_everything_here() {
    let legacy = || std::fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    let before = legacy();
    let start = Instant::now();
    for finding in iptables::probe() {
        println!("{finding:?}");
        assert!(finding.ok, "{finding:?}");
    }
    println!("probe: {:?}", start.elapsed());
    assert_eq!(legacy(), before, "looking makes no table");
}
