//! The API is away, wrong, or back.

use std::time::Duration;

use shunt_tests::kubernetes::{Driver, Failing, Sandbox};
use shunt_tests::{World, in_both_modes, require, wait};

use crate::{is_intercepted, scene, shown, two, wait_for};

in_both_modes!(an_agent_that_starts_during_an_outage_knows_its_pods);

fn an_agent_that_starts_during_an_outage_knows_its_pods(mode: &str) {
    require::everything();
    let world = World::new();
    let (client, server) = two(&world);
    let gone = Sandbox::run(&world, Driver::Cgroupfs);
    let _nginx = server.pod.nginx(&world);
    let (api, agent) = scene(&world, mode, "");
    api.put(shown("client", &client, Some("enabled")));
    let of_gone = shown("gone", &gone, Some("enabled"));
    api.put(of_gone.clone());
    let mut agent = agent.start();
    wait_for(&agent, &["client", "gone"]);
    wait::until("it is written down", Duration::from_secs(5), || {
        let text = std::fs::read_to_string(agent.dir.join("state/pods.json")).ok()?;
        (text.contains(&client.uid) && text.contains(&gone.uid)).then_some(())
    });

    api.fail(Failing::Dead);
    wait::until("the outage is noticed", Duration::from_secs(15), || {
        agent
            .log()
            .contains("the Kubernetes API cannot be had")
            .then_some(())
    });
    wait_for(&agent, &["client", "gone"]);
    assert!(is_intercepted(&agent, &client, &server));
    api.delete(&of_gone);

    agent.kill();
    agent.restart();
    wait_for(&agent, &["client", "gone"]);
    assert!(is_intercepted(&agent, &client, &server), "without the API");

    api.fail(Failing::Not);
    wait_for(&agent, &["client"]);
    assert!(is_intercepted(&agent, &client, &server));
}

#[test]
fn whatever_the_api_does_nobody_is_withdrawn_and_nothing_is_missed() {
    require::everything();
    let world = World::new();
    let (client, other) = two(&world);
    let (api, agent) = scene(&world, "ebpf", "");
    let of_client = shown("client", &client, Some("enabled"));
    api.put(of_client.clone());
    let agent = agent.start();
    wait_for(&agent, &["client"]);
    let of_other = shown("other", &other, Some("enabled"));
    for failing in [
        Failing::Unavailable,
        Failing::Garbage,
        Failing::Forbidden,
        Failing::Slow,
        Failing::Dead,
    ] {
        let before = api.requests().len();
        api.compact();
        api.fail(failing);
        wait::until("it was asked in vain", Duration::from_secs(30), || {
            (api.requests().len() >= before + 3).then_some(())
        });
        api.put(of_other.clone());
        api.fail(Failing::Not);
        wait_for(&agent, &["client", "other"]);
        // In the middle of a watch, and without one.
        api.cut();
        api.delete(&of_other);
        wait_for(&agent, &["client"]);
    }
    assert!(
        !agent
            .log()
            .contains("withdrawn\",\"workload\":\"shop/client"),
        "{}",
        agent.log()
    );
    api.compact();
    api.delete(&of_client);
    wait_for(&agent, &[]);
}

#[test]
fn a_watcher_that_is_killed_is_started_anew() {
    require::everything();
    let world = World::new();
    let (client, other) = two(&world);
    let (api, agent) = scene(&world, "ebpf", "");
    let of_client = shown("client", &client, Some("enabled"));
    api.put(of_client.clone());
    let agent = agent.start();
    wait_for(&agent, &["client"]);
    let watcher = agent.watcher_pid().expect("a watcher");
    let status = std::fs::read_to_string(format!("/proc/{watcher}/status")).expect("a status");
    let none = |set: &str| status.contains(&format!("{set}:\t0000000000000000"));
    assert!(
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
            .into_iter()
            .all(none),
        "{status}"
    );
    shunt_tests::agent::signal("-KILL", watcher);
    wait::until("another one", Duration::from_secs(10), || {
        agent.watcher_pid().filter(|pid| *pid != watcher)
    });
    api.delete(&of_client);
    api.put(shown("other", &other, Some("enabled")));
    wait_for(&agent, &["other"]);
}
