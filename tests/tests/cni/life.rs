//! A pod's life: added, checked, deleted.

use std::fs;
use std::thread;
use std::time::Duration;

use serde_json::json;
use shunt_tests::cni::{Container, Network};
use shunt_tests::{Agent, AgentBuilder, World, in_both_modes, require, wait};

use crate::{NOBODY, SHUNT, asking, connects, enrolled, server};

in_both_modes!(
    the_first_connection_is_intercepted,
    what_somebody_withdrew_is_told_and_added_again,
    a_new_container_of_the_pod_is_not_deleted_with_the_old,
    many_come_and_go_at_once,
);

fn the_first_connection_is_intercepted(mode: &str) {
    require::everything();
    for version in ["0.4.0", "1.0.0"] {
        let world = World::new();
        let agent = AgentBuilder::new(&world, mode).start();
        let network = Network::new(&world, version, asking(&agent, &json!({})));
        let (server, _nginx) = server(&world, &network);
        let mut client = network.container("shop", "client");
        client.capabilities["portMappings"] =
            json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
        network.add_first(&mut client, SHUNT).expect("added");
        let (before, passed_on) = (client.pod.state(), client.result.clone());
        // The agent loads its programs for the first workload, and keeps them.
        let mut first = network.container("shop", "first");
        network.add(&mut first).expect("added");
        network.del(&first).expect("deleted");
        let open = descriptors(&agent);

        network.add_one(&mut client, SHUNT).expect("added");
        connects(&client, &server);
        let lines = agent.lines(1);
        assert_eq!(lines[0]["workload"], "shop/client", "{lines:?}");
        assert_eq!(client.result, passed_on);
        assert_eq!(enrolled(&agent), ["shop/client"]);

        network.del(&client).expect("deleted");
        assert_eq!(enrolled(&agent), NOBODY);
        is_as_before(&client, &before, &agent, open);
        for _ in 0..2 {
            network.del(&client).expect("deleted again");
        }
        assert_eq!(enrolled(&agent), NOBODY);
    }
}

/// Listeners go when nobody waits in them, and what flows needed when none is left.
fn is_as_before(container: &Container, before: &str, agent: &Agent, open: [usize; 2]) {
    let longest = Duration::from_secs(10);
    // The interface and its routes went with the other plugins.
    let ours = |state: &str| -> Vec<String> {
        let (rules, _) = state.split_once("== ip route").expect("routes");
        let (_, rest) = state.split_once("== sysctl").expect("sysctls");
        let both = rules.lines().chain(rest.lines());
        both.map(str::to_owned).collect()
    };
    wait::until("the namespace is as it was", longest, || {
        (ours(&container.pod.state()) == ours(before)).then_some(())
    });
    wait::until("no descriptor is left", longest, || {
        let [supervisor, worker] = descriptors(agent);
        (supervisor <= open[0] && worker <= open[1]).then_some(())
    });
}

/// How many the supervisor and the data plane have, when a moment has passed in which none came or went.
pub(crate) fn descriptors(agent: &Agent) -> [usize; 2] {
    let of = |pid: u32| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let count = || [of(agent.pid()), of(agent.worker_pid().unwrap_or_default())];
    wait::until("descriptors stay", Duration::from_secs(10), || {
        let first = count();
        wait::pause(Duration::from_millis(100));
        (count() == first).then_some(first)
    })
}

fn what_somebody_withdrew_is_told_and_added_again(mode: &str) {
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, mode).start();
    let network = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    let (server, _nginx) = server(&world, &network);
    let mut client = network.container("shop", "client");
    let early = network.invoke("DEL", SHUNT, &client);
    assert!(early.succeeded, "before it was added: {early:?}");
    network.add(&mut client).expect("added");
    let check = |who: &Container| network.invoke("CHECK", SHUNT, who);
    assert!(check(&client).succeeded);
    assert!(check(&server).succeeded, "exempt");

    let (status, _) = agent.admin("DELETE", "/workloads/shop/client", "");
    assert_eq!(status, 200);
    let said = check(&client);
    assert_eq!(said.code(), 100, "{said:?}");
    for _ in 0..2 {
        network.add_one(&mut client, SHUNT).expect("added again");
        assert!(check(&client).succeeded);
        assert_eq!(enrolled(&agent), ["shop/client"]);
    }
    connects(&client, &server);
    assert_eq!(agent.lines(1)[0]["workload"], "shop/client");
    network.del(&client).expect("deleted");
}

/// The runtime makes a pod's sandbox anew, and takes away the old one when it likes.
fn a_new_container_of_the_pod_is_not_deleted_with_the_old(mode: &str) {
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, mode).start();
    let network = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    let (server, _nginx) = server(&world, &network);
    let mut old = network.container("shop", "client");
    network.add(&mut old).expect("added");
    let mut new = network.container("shop", "client");
    network.add(&mut new).expect("added");
    network.del(&old).expect("deleted");
    drop(old);
    connects(&new, &server);
    assert_eq!(agent.lines(1)[0]["workload"], "shop/client");
    network.del(&new).expect("deleted");
    assert_eq!(enrolled(&agent), NOBODY);
}

fn many_come_and_go_at_once(mode: &str) {
    const AT_ONCE: usize = 6;
    const EACH: usize = 4;
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, mode).start();
    let network = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    let (server, _nginx) = server(&world, &network);
    let live = |at: usize| {
        for turn in 0..EACH {
            let mut pod = network.container("shop", &format!("pod-{at}-{turn}"));
            network.add(&mut pod).expect("added");
            connects(&pod, &server);
            network.del(&pod).expect("deleted");
        }
    };
    thread::scope(|scope| {
        for at in 0..AT_ONCE {
            scope.spawn(move || live(at));
        }
    });
    let lines = agent.lines(AT_ONCE * EACH);
    let mut names: Vec<String> = lines.iter().map(|l| l["workload"].to_string()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), AT_ONCE * EACH, "each has its own: {names:?}");
    assert_eq!(enrolled(&agent), NOBODY);
}
