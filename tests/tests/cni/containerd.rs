//! A kubelet's runtime: containerd over the CRI.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use shunt_tests::cni::Network;
use shunt_tests::containerd::{self, Containerd, CriPod};
use shunt_tests::{AgentBuilder, World, in_both_modes, require, wait};

use crate::life::descriptors;
use crate::{NOBODY, asking, enrolled, server};

in_both_modes!(its_pods_are_intercepted_from_their_first_connection);

const AT_ONCE: usize = 6;

#[expect(
    clippy::print_stderr,
    reason = "a skip that nobody notices looks like a pass"
)]
fn is_missing() -> bool {
    if containerd::is_there() {
        return false;
    }
    let text = "SKIPPED: containerd is not installed; `cargo xtask test` installs it";
    assert!(std::env::var_os("CI").is_none(), "{text}");
    eprintln!("{text}");
    true
}

/// Interfaces of the node, and the addresses that it has given away.
fn of_the_node(world: &World) -> (usize, usize) {
    let links = fs::read_dir(world.dir.path().join("addresses/pods")).map_or(0, Iterator::count);
    let shown = std::process::Command::new("ip")
        .args(["-n", world.label(), "-o", "link"])
        .output()
        .expect("ip runs");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    (shown.lines().count(), links)
}

fn its_pods_are_intercepted_from_their_first_connection(mode: &str) {
    require::everything();
    if is_missing() {
        return;
    }
    let world = World::new();
    let agent = AgentBuilder::new(&world, mode).start();
    let network = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    let (server, _nginx) = server(&world, &network);
    let containerd = Containerd::start(&world, &network.plugins);
    let url = format!("http://{}/", server.pod.v4);
    // Its first and only act.
    let run = |name: &str| containerd.run(name, &["wget", "-q", "-O", "-", &url]);
    // What comes with the first pod and stays.
    let first = run("first");
    first.says();
    containerd.delete(&first);
    let before = (of_the_node(&world), descriptors(&agent));

    let pods: Vec<CriPod> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..AT_ONCE)
            .map(|at| scope.spawn(move || run(&format!("pod-{at}"))))
            .collect();
        let done = running.into_iter();
        done.map(|pod| pod.join().expect("it runs")).collect()
    });
    for pod in &pods {
        let seen = pod.says();
        assert!(seen.starts_with("10.77."), "its own address: {seen}");
    }
    let lines = agent.lines(AT_ONCE + 1);
    let told = |name: &str| lines.iter().any(|line| line["workload"] == name);
    let names: Vec<String> = (0..AT_ONCE).map(|at| format!("shop/pod-{at}")).collect();
    assert!(names.iter().all(|name| told(name)), "{lines:?}");
    assert_eq!(enrolled(&agent), names);
    let status = agent.status();
    let netns = |workload: &Value| workload["netns"].as_str().expect("a path").to_owned();
    let all = status["workloads"].as_array().expect("a list");
    let namespaces: Vec<String> = all.iter().map(netns).collect();
    assert!(namespaces.iter().all(|path| Path::new(path).exists()));

    std::thread::scope(|scope| {
        for pod in &pods {
            let containerd = &containerd;
            scope.spawn(move || containerd.delete(pod));
        }
    });
    assert_eq!(enrolled(&agent), NOBODY);
    assert!(!namespaces.iter().any(|path| Path::new(path).exists()));
    wait::until("nothing is left", Duration::from_secs(20), || {
        let after = (of_the_node(&world), descriptors(&agent));
        (after.0 == before.0 && after.1 <= before.1).then_some(())
    });
    let state = fs::read_to_string(agent.dir.join("state/cni.json")).expect("a file");
    assert!(state.contains(r#""attachments":[]"#), "{state}");
}
