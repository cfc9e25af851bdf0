//! Somebody else changes what steers a workload: it is captured again within two seconds, counted and named.

#[path = "drift/foreign.rs"]
mod foreign;
#[path = "drift/maps.rs"]
mod maps;
#[path = "drift/moved.rs"]
mod moved;
#[path = "drift/pins.rs"]
mod pins;
#[path = "drift/scene.rs"]
mod scene;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use shunt_tests::attachments::held;
use shunt_tests::{Mayfly, require, wait};

use crate::scene::{Echo, Scene, WITHIN, run};

/// Rules are flushed, deleted, unhooked and edited by the programs that people use.
fn rules(variant: &str, plants: &[(&str, &str)]) {
    require::everything();
    let scene = Scene::new("iptables", variant);
    for (plant, found) in plants {
        scene.repaired("rules", found, || scene.in_client(plant));
    }
    scene.repaired_so_far("rules", plants.len());
}

#[test]
fn nft_rules_come_back() {
    let by = "(pid ";
    rules(
        "nft",
        &[
            ("iptables-nft -t nat -F", by),
            (
                "iptables-nft -t nat -F SHUNT_TO_OUT",
                "SHUNT_TO_OUT has 0 rules, not 1",
            ),
            (
                "iptables-nft -t nat -D OUTPUT -p tcp -m tcp --syn -j SHUNT_OUTPUT",
                "the jump from OUTPUT to SHUNT_OUTPUT is gone",
            ),
            (
                "iptables-nft -t nat -R SHUNT_TO_OUT 1 -j RETURN",
                "rules of SHUNT_TO_OUT were changed",
            ),
            (
                "iptables-nft -t nat -I SHUNT_OUT_ADDR 1 -j RETURN",
                "SHUNT_OUT_ADDR has 2 rules, not 1",
            ),
        ],
    );
}

#[test]
fn nft_tables_come_back() {
    rules(
        "nft",
        &[
            ("nft delete table ip nat", "V4: none of the rules is left"),
            ("nft flush ruleset", "V6: none of the rules is left"),
            // Without its dead-man switch it would redirect to the dead.
            (
                "iptables-nft -t nat -R SHUNT_TO_OUT 1 -p tcp -j REDIRECT --to-ports 15001",
                "rules of SHUNT_TO_OUT were changed",
            ),
        ],
    );
}

#[test]
fn legacy_rules_come_back() {
    rules(
        "legacy",
        &[
            ("iptables-legacy -t nat -F", "none of the rules is left"),
            (
                "ip6tables-legacy -t nat -D PREROUTING -p tcp -m tcp --syn -j SHUNT_PREROUTING",
                "V6: the jump from PREROUTING",
            ),
            (
                "iptables-legacy -t nat -R SHUNT_TO_OUT 1 -j RETURN",
                "rules of SHUNT_TO_OUT were changed",
            ),
        ],
    );
}

/// Nothing has to be found out: whoever empties it, it is written four times a second.
#[test]
fn an_emptied_dead_man_switch_closes_again() {
    require::everything();
    for variant in ["nft", "legacy"] {
        let scene = Scene::new("iptables", variant);
        for empty in ["/", "-0.0.0.0"] {
            scene.in_client(&format!("echo {empty} > /proc/net/xt_recent/shunt4"));
            scene.captured();
        }
        scene.repaired_so_far("rules", 0);
        scene.repaired_so_far("dead_man", 0);
    }
}

#[test]
fn rules_of_others_are_no_reason() {
    require::everything();
    for variant in ["nft", "legacy"] {
        let scene = Scene::new("iptables", variant);
        // Also where it moves ours inside the table.
        scene.in_client(&format!(
            "iptables-{variant} -t nat -N OTHER; iptables-{variant} -t nat -I OUTPUT 1 -p udp -j OTHER; \
             iptables-{variant} -t nat -A OTHER -p udp -j RETURN"
        ));
        wait::pause(Duration::from_secs(3));
        scene.captured();
        scene.repaired_so_far("rules", 0);
    }
}

#[test]
fn the_return_path_comes_back() {
    require::everything();
    for mode in ["ebpf", "iptables"] {
        let scene = Scene::new(mode, "nft");
        let plants = [
            (
                "ip rule del table 15006",
                "marked packets of Inet are not routed",
            ),
            (
                "ip -6 rule del table 15006",
                "marked packets of Inet6 are not routed",
            ),
            (
                "ip route flush table 15006",
                "marked packets of Inet are not routed",
            ),
            (
                "sysctl -q net.ipv4.tcp_fwmark_accept=0",
                "tcp_fwmark_accept is 0",
            ),
        ];
        for (plant, found) in plants {
            scene.repaired("return_path", found, || scene.in_client(plant));
        }
        scene.repaired_so_far("return_path", plants.len());
    }
}

#[test]
fn detached_programs_are_attached_again() {
    require::everything();
    let scene = Scene::new("ebpf", "nft");
    let cgroup = inode(&scene.client.cgroup.display().to_string());
    for (number, name) in [
        ("10", "shunt_connect4"),
        ("3", "shunt_handshake"),
        ("29", "shunt_peername4"),
    ] {
        scene.repaired("links", name, || {
            detach(&scene, &[("cgroup_id", &cgroup), ("attach_type", number)])
        });
    }
    let netns = inode(&format!("/run/netns/{}", scene.client.netns));
    scene.repaired("links", "sk_lookup is detached", || {
        detach(&scene, &[("netns_ino", &netns)])
    });
    scene.repaired_so_far("links", 4);
}

#[track_caller]
fn detach(scene: &Scene, having: &[(&str, &str)]) {
    let links = held(scene.agent.pid(), having, "link_id");
    assert_eq!(links.len(), 1, "{having:?}");
    run("bpftool", &["link", "detach", "id", &links[0]]);
}

/// Also what does not capture, and is announced by nobody.
#[test]
fn among_many_workloads_it_takes_no_longer() {
    require::everything();
    let scene = Scene::new("ebpf", "nft");
    let _many: Vec<Mayfly> = (0..80)
        .map(|number: u8| {
            let address = Ipv4Addr::new(10, 99, 0, number + 1);
            let pod = Mayfly::born(&scene.world, &format!("m{number}"), address);
            let body =
                serde_json::json!({"netns": pod.netns, "cgroup": pod.cgroup, "mode": "ebpf"});
            let path = format!("/workloads/pods/m{number}");
            assert_eq!(scene.agent.admin("PUT", &path, &body.to_string()).0, 200);
            pod
        })
        .collect();
    let cgroup = inode(&scene.client.cgroup.display().to_string());
    for (number, name) in [("29", "shunt_peername4"), ("32", "shunt_sockname6")] {
        scene.repaired("links", name, || {
            detach(&scene, &[("cgroup_id", &cgroup), ("attach_type", number)])
        });
    }
}

#[test]
fn a_cgroup_made_anew_is_hooked() {
    require::everything();
    let scene = Scene::new("ebpf", "nft");
    scene.repaired("cgroup", "was removed and made anew", || {
        fs::remove_dir(&scene.client.cgroup).expect("nobody is in it");
        fs::create_dir(&scene.client.cgroup).expect("made");
    });
    // Gone for longer: said, and hooked when it is there again.
    fs::remove_dir(&scene.client.cgroup).expect("nobody is in it");
    wait::until("it is said", Duration::from_secs(5), || {
        let reason = scene.agent.workload("client")["state_reason"].to_string();
        reason.contains("cannot be repaired yet").then_some(())
    });
    fs::create_dir(&scene.client.cgroup).expect("made");
    wait::until("it is hooked", Duration::from_secs(8), || {
        (scene.repairs("cgroup") == 2).then_some(())
    });
    scene.captured();
    assert_eq!(scene.agent.workload("client")["state_reason"], "");
}

#[test]
fn destroyed_listeners_are_replaced() {
    require::everything();
    for mode in ["ebpf", "iptables"] {
        let scene = Scene::new(mode, "nft");
        scene.in_client("ss -K -lt sport = :15001 >&2");
        scene.repaired_within("listeners", "listens no more", Duration::from_secs(5));
    }
}

#[test]
fn a_taken_port_is_left_to_the_application() {
    require::everything();
    for mode in ["ebpf", "iptables"] {
        let scene = Scene::with(mode, "nft", |scene| {
            let script = "import socket, time\ns = socket.create_server(('127.0.0.1', 15001))\ntime.sleep(60)";
            let application = scene.spawn("python3", &["-c", script]);
            scene.wait_for_listener(15001);
            Some(application)
        });
        scene.captured();
        let workload = scene.agent.workload("client");
        let reason = workload["mode_reason"].to_string();
        assert!(
            reason.contains("127.0.0.1:15001 is taken by an application"),
            "{reason}"
        );
        assert!(
            !workload["listeners"]
                .to_string()
                .contains("127.0.0.1:15001"),
            "{workload:#}"
        );
    }
}

/// Also when nothing is left of netfilter's tables but what keeps connections tracked.
#[test]
fn a_connection_goes_on_through_repairs() {
    require::everything();
    let rules = [
        "iptables-nft -t nat -F",
        "nft delete table ip nat",
        "nft flush ruleset",
    ];
    let path = [
        "ip rule del table 15006",
        "sysctl -q net.ipv4.tcp_fwmark_accept=0",
    ];
    let legacy = ["iptables-legacy -t nat -F", "ip6tables-legacy -t nat -F"];
    for (mode, variant, what, plants) in [
        ("iptables", "nft", "rules", rules.as_slice()),
        ("iptables", "legacy", "rules", &legacy),
        ("ebpf", "nft", "return_path", &path),
    ] {
        let scene = Scene::new(mode, variant);
        let echo = Echo::start(&scene);
        for (plant, times) in plants.iter().zip(1..) {
            scene.in_client(plant);
            wait::until(&format!("{plant} repaired"), WITHIN, || {
                (scene.repairs(what) == times).then_some(())
            });
        }
        echo.goes_on();
    }
}

#[test]
fn nobody_is_refused_while_rules_are_flushed() {
    require::everything();
    let scene = Scene::new("iptables", "nft");
    let load = scene.load(Duration::from_secs(4));
    for times in 1..=3 {
        scene.in_client("iptables-nft -t nat -F; ip6tables-nft -t nat -F");
        wait::until("repaired", WITHIN, || {
            (scene.repairs("rules") == times).then_some(())
        });
    }
    let (made, failed) = load.result();
    assert!(made > 100, "{made}");
    assert_eq!(failed, "", "of {made}");
}

#[test]
fn who_keeps_undoing_is_slowed_down_and_named() {
    require::everything();
    let scene = Scene::new("iptables", "nft");
    let script = "for i in $(seq 70); do iptables-nft -t nat -F; sleep 0.1; done";
    let mut fight = Command::new("ip")
        .args(["netns", "exec", &scene.client.netns, "sh", "-c", script])
        .spawn()
        .expect("runs");
    let reason = wait::until("it is said", Duration::from_secs(10), || {
        let reason = scene.agent.workload("client")["state_reason"].to_string();
        reason.contains("keeps undoing").then_some(reason)
    });
    assert!(reason.contains("(pid "), "{reason}");
    fight.wait().expect("ended");
    let repairs = scene.repairs("rules");
    assert!((5..=8).contains(&repairs), "{repairs} repairs in some 8 s");
    wait::until("peace", Duration::from_secs(20), || {
        (scene.agent.workload("client")["state_reason"] == "").then_some(())
    });
    scene.captured();
}

fn inode(path: &str) -> String {
    fs::metadata(path).expect("there").ino().to_string()
}
