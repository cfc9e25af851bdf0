//! `shunt tap`: every flow is told when it begins and ends, and the bytes that no tcpdump sees are in a file.

mod copies;
mod scene;

use std::process::Command;

use serde_json::Value;
use shunt_tests::agent::{self, signal};
use shunt_tests::{EVENTS, Script, Tap, wait};

use self::scene::{ALWAYS, HANDED_OVER, MANY_SIZES, SECONDS, Scene};

fn flows<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events
        .iter()
        .filter(|event| event["event"] == kind)
        .collect()
}

#[test]
fn flows_of_every_path_are_told_when_they_begin_and_end() {
    for (mode, wish, path) in [
        ("ebpf", "acceleration: auto", "direct"),
        ("ebpf", ALWAYS, "direct"),
        ("ebpf", HANDED_OVER, "handoff"),
        ("ebpf", "acceleration: off", "copy"),
        ("iptables", "", "copy"),
    ] {
        let scene = Scene::new(mode, wish);
        let mut tap = Tap::start(&scene.agent, &["client", "-o", "json"]);
        let mut table = Tap::start(&scene.agent, &["server"]);
        let host = &scene.pair.server.v4;
        scene.talk(host, MANY_SIZES);
        let events = wait::until("the flow's end", SECONDS, || {
            let events = tap.events();
            (!flows(&events, "close").is_empty()).then_some(events)
        });
        let what = format!("{mode} {wish}: {events:#?}");
        let (opened, closed) = (flows(&events, "open"), flows(&events, "close"));
        assert_eq!((opened.len(), closed.len()), (1, 1), "{what}");
        let told = scene.agent.lines(1).remove(0);
        for key in [
            "workload",
            "peer_workload",
            "client",
            "original_dst",
            "upstream",
        ] {
            assert_eq!(opened[0][key], told[key], "{key}, {what}");
            assert_eq!(closed[0][key], told[key], "{key}, {what}");
        }
        for key in ["path", "bytes_received", "bytes_sent", "close_reason"] {
            assert_eq!(closed[0][key], told[key], "{key}, {what}");
        }
        assert_eq!(closed[0]["path"], path, "{what}");
        assert_eq!(opened[0]["close_reason"], Value::Null, "{what}");
        let faster = flows(&events, "path");
        assert_eq!(faster.is_empty(), path != "handoff", "{what}");
        let row = wait::until("the table's last row", SECONDS, || {
            let text = table.text();
            let row = text.lines().find(|row| row.contains("  close  "));
            row.map(str::to_owned)
        });
        let to = format!("-> default/server {host}:7000");
        assert!(row.contains(&to) && row.contains(path), "{row}");
        assert!(row.ends_with("finished"), "{row}");
        tap.interrupt();
        table.interrupt();
    }
}

#[test]
fn a_tap_is_told_of_its_own_workload_and_ends_after_so_many_lines() {
    let scene = Scene::new("ebpf", "acceleration: auto");
    let mut all = Tap::start(&scene.agent, &["-o", "json", "--count", "4"]);
    let other = scene.pair.world.pod();
    let other = agent::entry("other", &other, "");
    let (client, server) = (&scene.pair.client, &scene.pair.server);
    let [client, server] = [("client", client), ("server", server)]
        .map(|(name, pod)| agent::entry(name, pod, "acceleration: auto"));
    scene.agent.rewrite(&[client, server, other]);
    wait::until("enrolled", SECONDS, || {
        let status = scene.agent.status();
        (status["workloads"].as_array()?.len() == 3).then_some(())
    });
    let mut none = Tap::start(&scene.agent, &["default/other", "--duration", "5s"]);
    for _ in 0..2 {
        scene.talk(&scene.pair.server.v6, "[1]");
    }
    assert!(all.ends().success());
    assert_eq!(all.events().len(), 4);
    assert!(none.ends().success());
    assert_eq!(none.text().lines().count(), 1, "{}", none.text());
}

#[test]
fn a_tap_that_dies_copies_nothing_more() {
    let mut scene = Scene::new("ebpf", ALWAYS);
    let mut tap = scene.copying(&[]);
    let second = Tap::start(&scene.agent, &["-w", "/dev/null"]);
    assert!(second.says().contains("another tap copies bytes already"));
    scene.talk(&scene.pair.server.v4, "[100] * 20");
    wait::until("counted", SECONDS, || {
        (scene.kernel_count("tap_copied") >= 40).then_some(())
    });
    tap.signal("-KILL");
    tap.ends();
    // Also while nothing is told that would fail to arrive.
    let tap = wait::until("the next one may", SECONDS, || {
        let next = Tap::start(&scene.agent, &["-w", "/dev/null"]);
        (!next.says().contains("already")).then_some(next)
    });
    drop(tap);
    copies_nothing(&scene);
    // The next one may, until the data plane dies.
    let mut tap = scene.copying(&[]);
    let before = scene.kernel_count("tap_copied");
    scene.talk(&scene.pair.server.v4, "[100] * 20");
    wait::until("counted again", SECONDS, || {
        (scene.kernel_count("tap_copied") > before).then_some(())
    });
    signal("-KILL", scene.agent.worker_pid().expect("a data plane"));
    assert_eq!(tap.ends().code(), Some(1));
    assert!(
        tap.says().contains("data plane was replaced"),
        "{}",
        tap.says()
    );
    copies_nothing(&scene);
    // Nor until the supervisor dies, whose data plane lives as long as its flows.
    let mut tap = scene.copying(&[]);
    let script = format!("{EVENTS}call('{}').recv(1)", scene.pair.server.v4);
    let _waits = Script::start(&scene.pair.client, &script, &[]);
    scene.agent.kill();
    assert_eq!(tap.ends().code(), Some(1), "{}", tap.says());
}

/// Soon a whole talk leaves the counter where it was.
fn copies_nothing(scene: &Scene) {
    wait::until("nothing is copied", SECONDS, || {
        let count = || {
            (
                scene.kernel_count("outbound_direct"),
                // Copied, or it would have been if somebody read.
                scene.kernel_count("tap_copied") + scene.kernel_count("tap_lost"),
            )
        };
        let before = wait::until("the agent answers", SECONDS, || {
            Some(count()).filter(|(direct, _)| *direct > 0)
        });
        scene.talk(&scene.pair.server.v4, "[100] * 20");
        let after = wait::until("the kernel's counts", SECONDS, || {
            Some(count()).filter(|(direct, _)| *direct > before.0)
        });
        (after.1 == before.1).then_some(())
    });
}

#[test]
fn a_slow_reader_holds_nobody_and_is_told_what_it_missed() {
    const CONNECTIONS: u64 = 3000;
    let scene = Scene::new("ebpf", "acceleration: auto");
    let mut tap = Tap::start(&scene.agent, &["-o", "json"]);
    tap.signal("-STOP");
    let script = format!(
        "import socket
for _ in range({CONNECTIONS}): socket.create_connection(('{}', 7000)).close()",
        scene.pair.server.v4
    );
    scene.pair.client.python(&script);
    scene
        .agent
        .lines(usize::try_from(CONNECTIONS).expect("few"));
    tap.signal("-CONT");
    let lost = wait::until("all is told or lost", SECONDS, || {
        let events = tap.events();
        let lost = flows(&events, "lost").into_iter();
        let lost: u64 = lost
            .map(|event| event["lines"].as_u64().expect("a count"))
            .sum();
        let told = flows(&events, "open").len() + flows(&events, "close").len();
        (told as u64 + lost == 2 * CONNECTIONS).then_some(lost)
    });
    assert!(lost > 0);
    tap.interrupt();
}

#[test]
fn what_cannot_be_tapped_is_said() {
    let scene = Scene::new("iptables", "");
    let refused = |args: &[&str], code: i32, why: &str| {
        let mut tap = Tap::start(&scene.agent, args);
        assert_eq!(tap.ends().code(), Some(code), "{}", tap.says());
        assert!(tap.says().contains(why), "{}", tap.says());
    };
    refused(&["nobody"], 1, "no workload nobody");
    refused(
        &["nobody", "-w", "/nonexistent/file"],
        1,
        "no workload nobody",
    );
    refused(&["-w", "/nonexistent/file"], 1, "use tcpdump");
    refused(&["--bytes", "10"], 64, "--write");
    refused(&["-w", "-", "--bytes", "70000"], 64, "65536");
    refused(&["-w", "-", "-o", "json"], 64, "cannot be used with");
    let lonely = Command::new(agent::binary())
        .args(["tap", "--socket", "/nonexistent/admin.sock"])
        .output()
        .expect("it runs");
    assert_eq!(lonely.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&lonely.stderr).contains("no agent is running"));
}
