//! Who was enrolled by CNI is served again by the next agent, before it says that it is ready.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use shunt_tests::cni::Network;
use shunt_tests::{Agent, AgentBuilder, World, in_both_modes, require, wait};

use crate::{NOBODY, SHUNT, asking, connects, enrolled, server};

in_both_modes!(
    pods_survive_the_agents_end,
    who_was_deleted_meanwhile_is_not_served,
);

/// In order, and killed.
fn pods_survive_the_agents_end(mode: &str) {
    require::everything();
    let world = World::new();
    let mut agent = AgentBuilder::new(&world, mode).start();
    let network = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    let (server, _nginx) = server(&world, &network);
    let mut pod = network.container("shop", "client");
    network.add(&mut pod).expect("added");
    for (turn, end) in ["terminate", "kill"].into_iter().enumerate() {
        match end {
            "terminate" => drop(agent.terminate()),
            _ => agent.kill(),
        }
        agent.restart();
        // Nothing is waited for: it said that it is ready.
        assert_eq!(enrolled(&agent), ["shop/client"], "{end}");
        connects(&pod, &server);
        let lines = agent.lines(turn + 1);
        assert_eq!(lines[turn]["workload"], "shop/client", "{end}");
        let said = network.invoke("CHECK", SHUNT, &pod);
        assert!(said.succeeded, "{end}: {said:?}");
    }
    network.del(&pod).expect("deleted");
    assert_eq!(enrolled(&agent), NOBODY);
    agent.terminate();
    agent.restart();
    assert_eq!(enrolled(&agent), NOBODY);
}

fn who_was_deleted_meanwhile_is_not_served(mode: &str) {
    require::everything();
    let world = World::new();
    let mut agent = AgentBuilder::new(&world, mode).start();
    let network = Network::new(&world, "1.0.0", asking(&agent, &json!({"timeout_ms": 500})));
    let mut kept = network.container("shop", "kept");
    let mut deleted = network.container("shop", "deleted");
    let mut vanished = network.container("shop", "vanished");
    for pod in [&mut kept, &mut deleted, &mut vanished] {
        network.add(pod).expect("added");
    }
    let unknown = network.container("shop", "unknown");
    agent.terminate();
    for pod in [&deleted, &unknown] {
        let said = network.invoke("DEL", SHUNT, pod);
        assert!(said.succeeded, "{said:?}");
    }
    drop(vanished);
    let notes = || -> Vec<String> {
        let entries = fs::read_dir(agent.dir.join("state/cni.deleted")).expect("a directory");
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        entries
            .map(|entry| name(entry).into_string().expect("text"))
            .collect()
    };
    assert_eq!(notes(), [deleted.id.as_str()], "of nobody unknown");
    agent.restart();
    assert_eq!(enrolled(&agent), ["shop/kept"]);
    let entries = fs::read_dir(agent.dir.join("state/cni.deleted")).expect("a directory");
    assert_eq!(entries.count(), 0);
    // It may come back.
    network.add_one(&mut deleted, SHUNT).expect("added");
    assert_eq!(enrolled(&agent), ["shop/deleted", "shop/kept"]);
    for pod in [&kept, &deleted] {
        network.del(pod).expect("deleted");
    }
}

/// With its data plane: as long as that lives nothing of it is removed.
fn kill(agent: &mut Agent) {
    let worker = format!("/proc/{}", agent.worker_pid().expect("a data plane"));
    agent.kill();
    wait::until("the data plane has ended", Duration::from_secs(15), || {
        (!Path::new(&worker).exists()).then_some(())
    });
}

/// The plugin finds nobody while an agent starts that has read its notes already.
#[test]
fn who_was_deleted_while_the_agent_was_starting_is_not_served() {
    require::everything();
    let world = World::new();
    let mut agent = AgentBuilder::new(&world, "ebpf").start();
    let network = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    // The only one: nothing else makes the agent say what has changed.
    let mut deleted = network.container("shop", "deleted");
    network.add(&mut deleted).expect("added");
    agent.terminate();
    let log = agent.dir.join("log");
    thread::scope(|scope| {
        scope.spawn(|| {
            // Its programs are loaded next, and then the plugin is let in.
            wait::until("the next one starts", Duration::from_secs(20), || {
                let said = fs::read_to_string(&log).expect("a log");
                (said.matches("data plane started").count() == 2).then_some(())
            });
            let said = network.invoke("DEL", SHUNT, &deleted);
            assert!(said.succeeded && said.stderr.is_empty(), "{said:?}");
        });
        agent.restart();
    });
    wait::until("it is let go", Duration::from_secs(5), || {
        (enrolled(&agent) == NOBODY).then_some(())
    });
    let notes = fs::read_dir(agent.dir.join("state/cni.deleted"));
    assert_eq!(notes.map_or(0, Iterator::count), 0);
}

/// What keeps a pod closed is replaced, not removed, also where its namespace's name leads nowhere.
#[test]
fn what_a_killed_agent_left_closed_stays_so() {
    require::everything();
    let world = World::new();
    let mut agent = AgentBuilder::new(&world, "iptables")
        .without_named_namespaces()
        .start();
    let closed = json!({"on_failure": "closed"});
    let network = Network::new(&world, "1.0.0", asking(&agent, &closed));
    let mut pod = network.container("shop", "client");
    network.add(&mut pod).expect("added");
    let _process = pod.pod.nginx(&world);
    kill(&mut agent);
    agent.restart();
    assert_eq!(enrolled(&agent), ["shop/client"]);
    let (netns, said) = (pod.pod.netns.clone(), agent.log());
    let inode = fs::metadata(format!("/run/netns/{netns}")).expect("it is there");
    let removed = said
        .lines()
        .filter(|line| line.contains("removed what an earlier agent left"));
    // Others' namespaces are looked at too.
    let of_pod = |line: &&str| {
        let (_, path) = line.split_once(" in /proc/").unwrap_or_default();
        let path = path.split('"').next().unwrap_or_default();
        fs::metadata(format!("/proc/{path}")).is_ok_and(|found| found.ino() == inode.ino())
    };
    let removed: Vec<&str> = removed.filter(of_pod).collect();
    assert!(removed.is_empty(), "{removed:?}");
    network.del(&pod).expect("deleted");
}

/// The namespace's name goes, and nobody tells the plugin.
#[test]
fn a_pod_that_vanishes_is_let_go() {
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, "ebpf").start();
    let network = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    let mut pod = network.container("shop", "client");
    network.add(&mut pod).expect("added");
    drop(pod);
    wait::until("it is let go", Duration::from_secs(10), || {
        (enrolled(&agent) == NOBODY).then_some(())
    });
    assert_eq!(remembered(&agent)["attachments"], json!([]));
}

/// Numbers of namespaces are given again after a boot; a file may be anything.
#[test]
fn only_what_still_is_so_is_believed() {
    require::everything();
    let world = World::new();
    let mut agent = AgentBuilder::new(&world, "ebpf").start();
    let network = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    let mut pod = network.container("shop", "client");
    network.add(&mut pod).expect("added");
    let right = remembered(&agent);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut state = right.clone();
        change(&mut state);
        state.to_string()
    };
    let long = with(&|state| {
        state["attachments"][0]["workload"]["labels"]["a"] = "x".repeat(1 << 20).into()
    });
    let cases = [
        ("another boot", with(&|state| state["boot"] = "x".into())),
        (
            "another namespace",
            with(&|state| state["attachments"][0]["netns"]["cookie"] = 1.into()),
        ),
        (
            "no namespace",
            with(&|state| state["attachments"][0]["netns"]["inode"] = 1.into()),
        ),
        (
            "another version",
            with(&|state| state["version"] = 2.into()),
        ),
        ("a wrong workload", long),
        ("half", right.to_string()[..40].to_owned()),
        ("nothing", String::new()),
    ];
    for (what, text) in cases {
        agent.terminate();
        fs::write(agent.dir.join("state/cni.json"), &text).expect("written");
        agent.restart();
        assert_eq!(enrolled(&agent), NOBODY, "{what}");
    }
    agent.terminate();
    fs::write(agent.dir.join("state/cni.json"), right.to_string()).expect("written");
    agent.restart();
    assert_eq!(enrolled(&agent), ["shop/client"]);
    network.del(&pod).expect("deleted");
}

fn remembered(agent: &Agent) -> Value {
    let text = fs::read_to_string(agent.dir.join("state/cni.json")).expect("a file");
    serde_json::from_str(&text).expect("JSON")
}
