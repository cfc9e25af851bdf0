//! What the agent says of a configuration that it cannot fulfil.

use std::fs;
use std::process::Command;
use std::time::Duration;

use shunt_tests::agent::{binary, entry};
use shunt_tests::{AgentBuilder, World, require, wait};

#[test]
fn a_wrong_file_names_every_fault_and_exits_64() {
    let dir = World::new();
    let file = dir.dir.path().join("wrong.yaml");
    fs::write(
        &file,
        "mode: sideways\nports: {outbound: 99999}\nbootstrap: x\n",
    )
    .expect("written");
    let output = Command::new(binary())
        .args(["run", "-c"])
        .arg(&file)
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(64));
    let text = String::from_utf8_lossy(&output.stderr);
    for fault in [
        "wrong.yaml:1: mode",
        "wrong.yaml:2: ports.outbound",
        "wrong.yaml:3: bootstrap",
    ] {
        assert!(text.contains(fault), "{fault} in\n{text}");
    }
}

#[test]
fn a_missing_namespace_is_reported_and_the_others_are_served() {
    require::everything();
    let world = World::new();
    let (client, server) = (world.pod(), world.pod());
    let _nginx = server.nginx(&world);
    let agent = AgentBuilder::new(&world, "auto")
        .enrol("client", &client, "")
        .start();
    let ghost = "  - {name: ghost, netns: shunt-no-such-namespace}\n".to_owned();
    agent.rewrite(&[entry("client", &client, ""), ghost]);
    let reason = wait::until("the ghost is reported", Duration::from_secs(5), || {
        let status = agent.status();
        let all = status["workloads"].as_array()?.clone();
        let ghost = all
            .into_iter()
            .find(|workload| workload["name"] == "ghost")?;
        let reason = ghost["state_reason"].as_str()?.to_owned();
        (reason != "being enrolled").then_some(reason)
    });
    assert!(reason.contains("shunt-no-such-namespace"), "{reason}");
    let url = format!("http://{}/", server.v4);
    assert_eq!(client.says("curl", &["-sS", &url]), client.v4);
    agent.lines(1);
}
