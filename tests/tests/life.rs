//! What happens when things change or die.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use shunt_tests::agent::{binary, entry, signal};
use shunt_tests::{AgentBuilder, Pair, in_both_modes, wait};

in_both_modes!(
    stopping_leaves_nothing_and_waits_for_flows,
    a_killed_data_plane_refuses_nobody,
    a_killed_supervisor_opens_within_two_seconds,
    a_stopped_worker_opens_within_two_seconds,
    closed_means_refused,
    workloads_change_while_connections_go_on,
    cleanup_spares_flows_that_live,
);

fn curl(scene: &Pair, seconds: &str) -> bool {
    let url = format!("http://{}/", scene.server.v4);
    scene
        .client
        .run("curl", &["-sS", "-m", seconds, &url])
        .status
        .success()
}

/// The kernel's objects of a kind (prog, map, link) that a process holds, by id.
fn held_by(pid: u32, kind: &str) -> BTreeSet<u64> {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("a process");
    let texts = infos
        .flatten()
        .map(|info| fs::read_to_string(info.path()).unwrap_or_default());
    let id = |text: String| {
        let mut lines = text.lines();
        lines.find_map(|line| {
            line.strip_prefix(&format!("{kind}_id:"))?
                .trim()
                .parse()
                .ok()
        })
    };
    texts.filter_map(id).collect()
}

/// All of a kind, as bpftool shows them.
fn in_the_kernel(kind: &str) -> BTreeSet<u64> {
    let output = Command::new("bpftool").args(["-j", kind, "show"]).output();
    let all: serde_json::Value =
        serde_json::from_slice(&output.expect("bpftool runs").stdout).expect("JSON");
    let objects = all.as_array().expect("a list").iter();
    objects.filter_map(|object| object["id"].as_u64()).collect()
}

fn stopping_leaves_nothing_and_waits_for_flows(mode: &str) {
    let scene = Pair::new();
    let _nginx = scene.server.nginx(&scene.world);
    let before = [scene.client.state(), scene.server.state()];
    let mut agent = scene.both(mode, "").start();
    let kinds = ["prog", "map", "link"];
    let ours = kinds.map(|kind| held_by(agent.pid(), kind));
    assert!(
        ours.iter()
            .all(|ids| ids.is_empty() == (mode == "iptables")),
        "{ours:?}"
    );
    // Four megabytes at one megabyte a second.
    let file = scene.world.dir.path().join("slow");
    let url = format!("http://{}/slow", scene.server.v4);
    let mut slow = scene
        .client
        .spawn("curl", &["-sS", "-o", &file.display().to_string(), &url]);
    wait::until("the transfer runs", Duration::from_secs(5), || {
        (agent.workload("client")["connections"]["active"] == 1).then_some(())
    });
    assert!(agent.terminate().success());
    assert!(
        slow.0.wait().expect("ended").success(),
        "the slow transfer was cut off"
    );
    assert_eq!(fs::metadata(file).expect("a file").len(), 4 << 20);
    assert_eq!([scene.client.state(), scene.server.state()], before);
    wait::until("the kernel let go", Duration::from_secs(10), || {
        let mut left = kinds.iter().zip(&ours).flat_map(|(kind, ids)| {
            let now = in_the_kernel(kind);
            ids.iter().filter(move |id| now.contains(id))
        });
        left.next().is_none().then_some(())
    });
    assert!(curl(&scene, "5"), "direct again");
}

fn a_killed_data_plane_refuses_nobody(mode: &str) {
    let scene = Pair::new();
    let _nginx = scene.server.nginx(&scene.world);
    let agent = scene.both(mode, "").start();
    let first = agent.worker_pid().expect("a data plane");
    let url = format!("http://{}/slow", scene.server.v4);
    // HTTP/1.0 without a length would end by a FIN: what is cut off must not look complete.
    let mut cut = scene
        .client
        .spawn("curl", &["-sS", "-0", "-o", "/dev/null", &url]);
    wait::until("the transfer runs", Duration::from_secs(5), || {
        (agent.workload("client")["connections"]["active"] == 1).then_some(())
    });
    signal("-KILL", first);
    assert!(
        curl(&scene, "2"),
        "a connection made while there is no data plane"
    );
    let second = wait::until("a new data plane", Duration::from_secs(5), || {
        agent.worker_pid().filter(|pid| *pid != first)
    });
    assert!(
        !cut.0.wait().expect("ended").success(),
        "a cut transfer looked complete"
    );
    wait::until(
        "interception by the new data plane",
        Duration::from_secs(5),
        || {
            curl(&scene, "5");
            (!agent.access_log().is_empty()).then_some(())
        },
    );
    let status = fs::read_to_string(format!("/proc/{second}/status")).expect("a process");
    let none = "0000000000000000";
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert!(status.contains(&format!("{set}:\t{none}")), "{status}");
    }
}

fn a_killed_supervisor_opens_within_two_seconds(mode: &str) {
    let scene = Pair::new();
    let _nginx = scene.server.nginx(&scene.world);
    let before = [scene.client.state(), scene.server.state()];
    let mut agent = scene.both(mode, "").start();
    assert!(curl(&scene, "5"));
    agent.lines(1);
    agent.kill();
    let killed = Instant::now();
    while killed.elapsed() < Duration::from_secs(4) {
        let begun = killed.elapsed();
        let lines = agent.access_log().len();
        let served = curl(&scene, "2");
        assert!(
            served || begun < Duration::from_secs(2),
            "cut off {begun:?} after the supervisor's death"
        );
        if begun > Duration::from_secs(2) {
            wait::pause(Duration::from_millis(50));
            assert_eq!(
                agent.access_log().len(),
                lines,
                "still captured {begun:?} after the death"
            );
        }
    }
    let cleaned = Command::new(binary())
        .arg("cleanup")
        .output()
        .expect("runs");
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert_eq!(
        [scene.client.state(), scene.server.state()],
        before,
        "{cleaned:?}"
    );
    agent.restart();
    assert!(curl(&scene, "5"));
    let ended = agent.terminate();
    assert!(ended.success(), "{ended} {}", agent.log());
    assert_eq!([scene.client.state(), scene.server.state()], before);
}

fn a_stopped_worker_opens_within_two_seconds(mode: &str) {
    let scene = Pair::new();
    let _nginx = scene.server.nginx(&scene.world);
    let agent = scene.both(mode, "").start();
    let worker = agent.worker_pid().expect("a data plane");
    // What the kernel programs say is for those who look for it.
    assert_eq!(agent.admin("POST", "/logging?level=debug", "").0, 200);
    signal("-STOP", worker);
    // Half a second for a machine that runs other tests too.
    wait::pause(Duration::from_millis(2500));
    let direct = curl(&scene, "3");
    signal("-CONT", worker);
    assert!(direct, "still captured by a stopped data plane");
    if mode == "ebpf" {
        wait::until("the hook's own line", Duration::from_secs(5), || {
            agent.log().contains("gave no sign of life").then_some(())
        });
    }
}

fn closed_means_refused(mode: &str) {
    let scene = Pair::new();
    let _nginx = scene.server.nginx(&scene.world);
    let agent = AgentBuilder::new(&scene.world, mode)
        .enrol("client", &scene.client, "on_failure: closed")
        .start();
    assert!(curl(&scene, "5"));
    let worker = agent.worker_pid().expect("a data plane");
    signal("-STOP", worker);
    wait::pause(Duration::from_millis(2100));
    let leaked = curl(&scene, "1");
    signal("-CONT", worker);
    assert!(!leaked, "went past a dead agent");
}

fn workloads_change_while_connections_go_on(mode: &str) {
    let scene = Pair::new();
    let _nginx = scene.server.nginx(&scene.world);
    let agent = scene.both(mode, "").start();
    let file = scene.world.dir.path().join("slow");
    let url = format!("http://{}/slow", scene.server.v4);
    let mut slow = scene
        .client
        .spawn("curl", &["-sS", "-o", &file.display().to_string(), &url]);
    wait::until("the transfer runs", Duration::from_secs(5), || {
        (agent.workload("client")["connections"]["active"] == 1).then_some(())
    });
    // A wrong file changes nothing, and every fault is named.
    agent.rewrite_text("mode: sideways\nnonsense: 1\n");
    wait::until("the refusal", Duration::from_secs(5), || {
        let log = agent.log();
        (log.contains("shunt.yaml:1") && log.contains("shunt.yaml:2")).then_some(())
    });
    assert_eq!(agent.workload("client")["state"], "ready");
    // Excluded: new connections go directly.
    let excluded = entry("client", &scene.client, "outbound: {exclude_ports: [80]}");
    agent.rewrite(&[excluded]);
    wait::until("the policy is in force", Duration::from_secs(5), || {
        agent.log().contains("\"changed\"").then_some(())
    });
    wait::until("web is withdrawn", Duration::from_secs(5), || {
        (agent.status()["workloads"].as_array().map(Vec::len) == Some(1)).then_some(())
    });
    assert!(curl(&scene, "5"));
    assert_eq!(agent.access_log().len(), 0, "{:#?}", agent.access_log());
    // Over the admin socket: gone, and back.
    assert_eq!(
        agent.admin("DELETE", "/workloads/default/client", "").0,
        200
    );
    let body = format!(
        "{{\"netns\": \"{}\", \"cgroup\": \"{}\"}}",
        scene.client.netns,
        scene.client.cgroup.display()
    );
    let (code, answer) = agent.admin("PUT", "/workloads/default/client", &body);
    assert_eq!(code, 200, "{answer}");
    wait::until("enrolled again", Duration::from_secs(5), || {
        (agent.workload("client")["state"] == "ready").then_some(())
    });
    assert!(curl(&scene, "5"));
    assert!(
        slow.0.wait().expect("ended").success(),
        "the old connection was cut off"
    );
    assert_eq!(fs::metadata(file).expect("a file").len(), 4 << 20);
    agent.lines(2);
}

/// An inbound flow with the client's own address needs the namespace's return path: also when its workload was
/// withdrawn, or the supervisor is dead.
fn cleanup_spares_flows_that_live(mode: &str) {
    let scene = Pair::new();
    let stranger = scene.world.pod();
    let _nginx = scene.server.nginx(&scene.world);
    let before = scene.server.state();
    let mut agent = AgentBuilder::new(&scene.world, mode)
        .enrol("server", &scene.server, "")
        .start();
    let slow = |name: &str| {
        let file = scene.world.dir.path().join(name).display().to_string();
        let url = format!("http://{}/slow", scene.server.v4);
        stranger.spawn("curl", &["-sS", "-m", "15", "-o", &file, &url])
    };
    let cleanup = || {
        Command::new(binary())
            .arg("cleanup")
            .output()
            .expect("runs")
    };
    let mut withdrawn = slow("withdrawn");
    wait::until("the transfer runs", Duration::from_secs(5), || {
        (agent.workload("server")["connections"]["active"] == 1).then_some(())
    });
    assert_eq!(
        agent.admin("DELETE", "/workloads/default/server", "").0,
        200
    );
    // Its listeners close within a fraction of a second; the flow takes four.
    wait::pause(Duration::from_millis(700));
    cleanup();
    assert!(
        withdrawn.0.wait().expect("ended").success(),
        "cleanup cut a withdrawn workload's flow"
    );
    agent.terminate();
    agent.restart();
    let mut orphaned = slow("orphaned");
    wait::until("the transfer runs", Duration::from_secs(5), || {
        (agent.workload("server")["connections"]["active"] == 1).then_some(())
    });
    agent.kill();
    cleanup();
    assert!(
        orphaned.0.wait().expect("ended").success(),
        "cleanup cut an orphan's flow"
    );
    wait::until(
        "the orphan is gone and cleanup takes everything",
        Duration::from_secs(5),
        || {
            cleanup();
            (scene.server.state() == before).then_some(())
        },
    );
}
