//! An agent that is stopped, starting, or hung: bounded, and as the configuration says.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shunt_tests::agent::signal;
use shunt_tests::cni::{Network, Said};
use shunt_tests::{AgentBuilder, Blocked, World, in_both_modes, require, wait};

use crate::{NOBODY, SHUNT, asking, connects, enrolled, server};

/// What is asked of the agent ends within this.
const TIMEOUT_MS: u64 = 1000;
/// And the whole of a verb on a busy machine.
const LONGEST: Duration = Duration::from_secs(5);

in_both_modes!(
    a_stopped_agent_is_not_waited_for_without_end,
    a_hung_agent_is_not_waited_for_without_end,
    an_agent_that_starts_is_waited_for,
    a_pod_is_not_added_while_its_connections_go_directly,
);

fn bounded(verb: impl FnOnce() -> Said) -> Said {
    let start = Instant::now();
    let said = verb();
    assert!(start.elapsed() < LONGEST, "{:?}: {said:?}", start.elapsed());
    said
}

fn policy(on_failure: &str) -> Value {
    json!({"timeout_ms": TIMEOUT_MS, "on_failure": on_failure})
}

fn a_stopped_agent_is_not_waited_for_without_end(mode: &str) {
    require::everything();
    let world = World::new();
    let mut agent = AgentBuilder::new(&world, mode).start();
    let open = Network::new(&world, "1.0.0", asking(&agent, &policy("open")));
    let closed = Network::new(&world, "1.0.0", asking(&agent, &policy("closed")));
    let (server, _nginx) = server(&world, &open);
    let mut pod = open.container("shop", "client");
    open.add_first(&mut pod, SHUNT).expect("added");
    // Once it has gone in order, once its socket is left over.
    for end in ["terminate", "kill"] {
        match end {
            "terminate" => drop(agent.terminate()),
            _ => {
                agent.restart();
                agent.kill();
            }
        }
        let said = bounded(|| open.invoke("ADD", SHUNT, &pod));
        assert!(said.succeeded, "{end}: {said:?}");
        assert_eq!(said.answer, pod.result);
        assert!(
            said.stderr
                .contains("warning: shop/client connects directly")
        );
        let said = bounded(|| closed.invoke("ADD", SHUNT, &pod));
        assert_eq!(said.code(), 11, "{end}: {said:?}");
        let said = bounded(|| closed.invoke("CHECK", SHUNT, &pod));
        assert_eq!(said.code(), 11, "{end}: {said:?}");
        let said = bounded(|| closed.invoke("DEL", SHUNT, &pod));
        assert!(said.succeeded, "{end}: {said:?}");
    }
    connects(&pod, &server);
    assert_eq!(agent.access_log().len(), 0);
}

/// What it was asked for in vain it does not do later, where the pod did not start.
fn a_hung_agent_is_not_waited_for_without_end(mode: &str) {
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, mode).start();
    let open = Network::new(&world, "1.0.0", asking(&agent, &policy("open")));
    let closed = Network::new(&world, "1.0.0", asking(&agent, &policy("closed")));
    let mut started = open.container("shop", "started");
    let mut refused = closed.container("shop", "refused");
    let mut ends = open.container("shop", "ends");
    // The agent loads its programs.
    let patient = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    patient.add(&mut ends).expect("added");
    open.add_first(&mut started, SHUNT).expect("added");
    open.add_first(&mut refused, SHUNT).expect("added");
    signal("-STOP", agent.pid());
    let said = [
        bounded(|| open.invoke("ADD", SHUNT, &started)),
        bounded(|| closed.invoke("ADD", SHUNT, &refused)),
        bounded(|| open.invoke("DEL", SHUNT, &ends)),
    ];
    signal("-CONT", agent.pid());
    let [started_said, refused_said, ends_said] = said;
    assert!(started_said.succeeded, "{started_said:?}");
    assert!(started_said.stderr.contains("warning"), "{started_said:?}");
    assert_eq!(refused_said.code(), 11, "{refused_said:?}");
    assert!(ends_said.succeeded, "{ends_said:?}");
    wait::until("what was asked for", Duration::from_secs(10), || {
        (enrolled(&agent) == ["shop/started"]).then_some(())
    });
    open.del(&started).expect("deleted");
    assert_eq!(enrolled(&agent), NOBODY);
}

/// A pod that is added meanwhile has its first connection intercepted.
fn an_agent_that_starts_is_waited_for(mode: &str) {
    require::everything();
    let world = World::new();
    let mut agent = AgentBuilder::new(&world, mode).start();
    let closed = json!({"timeout_ms": 20_000, "on_failure": "closed"});
    let network = Network::new(&world, "1.0.0", asking(&agent, &closed));
    let (server, _nginx) = server(&world, &network);
    let mut pod = network.container("shop", "client");
    network.add_first(&mut pod, SHUNT).expect("added");
    agent.terminate();
    thread::scope(|scope| {
        let added = scope.spawn(|| {
            network.add_one(&mut pod, SHUNT).expect("added");
            connects(&pod, &server);
        });
        agent.restart();
        added.join().expect("it connected");
    });
    assert_eq!(agent.lines(1)[0]["workload"], "shop/client");
    network.del(&pod).expect("deleted");
}

/// A data plane with a stuck thread has its gates open, though it answers.
fn a_pod_is_not_added_while_its_connections_go_directly(mode: &str) {
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, mode).start();
    let network = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    let closed = Network::new(&world, "1.0.0", asking(&agent, &policy("closed")));
    let (server, _nginx) = server(&world, &network);
    // The agent loads its programs.
    let mut first = network.container("shop", "first");
    network.add(&mut first).expect("added");
    let mut pod = network.container("shop", "client");
    network.add_first(&mut pod, SHUNT).expect("added");
    let blocked = Blocked::worker(&agent);
    // Its last sign of life is too old then.
    wait::pause(Duration::from_millis(1000));
    let said = closed.invoke("ADD", SHUNT, &pod);
    drop(blocked);
    assert_eq!(said.code(), 11, "{said:?}");
    network.add_one(&mut pod, SHUNT).expect("added");
    connects(&pod, &server);
    assert_eq!(agent.lines(1)[0]["workload"], "shop/client");
    network.del(&pod).expect("deleted");
}

/// The plugin asks again all the time; what the agent does after it has tried for long, it does all the same.
#[test]
fn a_port_that_the_pod_has_itself_is_given_up_in_time() {
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, "ebpf").start();
    let closed = json!({"on_failure": "closed", "timeout_ms": 10_000});
    let network = Network::new(&world, "1.0.0", asking(&agent, &closed));
    let mut pod = network.container("shop", "client");
    let listen = "TCP-LISTEN:15001,bind=127.0.0.1,fork,reuseaddr";
    let _application = pod.pod.spawn("socat", &[listen, "PIPE"]);
    pod.pod.wait_for_listener(15001);
    network.add(&mut pod).expect("added");
    assert_eq!(enrolled(&agent), ["shop/client"]);
    network.del(&pod).expect("deleted");
}
