//! What a node's pods cost. The figures are printed for whoever asks, `SHUNT_PODS=250 SHUNT_IDLE_SECONDS=20`, never asserted;
//! asserted is that everybody is there.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;
use shunt_tests::cni::{Container, Network};
use shunt_tests::{Agent, AgentBuilder, World, in_both_modes, number, require, wait};

use crate::many::{memory, tell};
use crate::{NOBODY, SHUNT, asking, enrolled};

in_both_modes!(a_nodes_pods_are_there_before_and_after_a_restart);

/// Processor time of the supervisor and the data plane, with all their threads.
fn cpu(agent: &Agent) -> Duration {
    let of = |pid: u32| -> u64 {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter();
        let texts = tasks
            .flatten()
            .flatten()
            .flat_map(|task| fs::read_to_string(task.path().join("schedstat")));
        let spent = |text: String| text.split(' ').next()?.parse::<u64>().ok();
        texts.filter_map(spent).sum()
    };
    let pids = [agent.pid(), agent.worker_pid().unwrap_or_default()];
    Duration::from_nanos(pids.into_iter().map(of).sum())
}

#[expect(clippy::print_stderr, reason = "figures for whoever asks for them")]
fn a_nodes_pods_are_there_before_and_after_a_restart(mode: &str) {
    require::everything();
    let many: usize = number("SHUNT_PODS", 15);
    let some = many * 2 / 5;
    let idle = Duration::from_secs(number("SHUNT_IDLE_SECONDS", 1));
    let world = World::new();
    let mut agent = AgentBuilder::new(&world, mode).start();
    let mut network = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    network.plugins.drain(..SHUNT);
    let pods: Vec<Container> = (0..many)
        .map(|at| {
            let mut pod = network.container("shop", &format!("pod-{at}"));
            pod.result = json!({"cniVersion": "1.0.0"});
            pod
        })
        .collect();
    let time = |verb: &str, pod: &Container| {
        let start = Instant::now();
        network.invoke(verb, 0, pod).ok().expect("it is done");
        start.elapsed()
    };
    let alone = pods.iter().map(|pod| time("VERSION", pod)).collect();
    tell(
        "the plugin's own start and end, with `ip netns exec`",
        alone,
    );
    time("ADD", &pods[0]);
    let before = cpu(&agent);
    let times = pods[1..some].iter().map(|pod| time("ADD", pod)).collect();
    tell(&format!("{mode}: ADD, one after the other"), times);
    let each = (cpu(&agent) - before) / (some as u32 - 1);
    eprintln!("{mode}: enrolling one takes {each:?} of the agent's processor time");

    agent.terminate();
    let start = Instant::now();
    agent.restart();
    let ready = start.elapsed();
    assert_eq!(enrolled(&agent).len(), some);
    eprintln!("{mode}: ready with {some} that were there after {ready:?}");

    let times = pods[some..].iter().map(|pod| time("ADD", pod)).collect();
    tell(&format!("{mode}: ADD of the {many} in all"), times);
    assert_eq!(enrolled(&agent).len(), many);
    wait::pause(idle / 4);
    let before = cpu(&agent);
    wait::pause(idle);
    let share = (cpu(&agent) - before).as_secs_f64() / idle.as_secs_f64() * 100.0;
    let resident = memory(&agent) >> 20;
    eprintln!("{mode}: {many} idle workloads: {share:.2} % of a core, {resident} MiB resident");
    let times = pods.iter().map(|pod| time("DEL", pod)).collect();
    tell(&format!("{mode}: DEL"), times);
    assert_eq!(enrolled(&agent), NOBODY);
}
