//! Many pods: each is intercepted from its first connection, and nothing is left of them. `SHUNT_PODS` says how many.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use shunt_tests::agent::signal;
use shunt_tests::cni::{Container, Network};
use shunt_tests::{Agent, AgentBuilder, World, in_both_modes, number, require, wait};

use crate::life::descriptors;
use crate::{NOBODY, SHUNT, asking, connects, enrolled, server};

in_both_modes!(
    every_pod_of_many_is_intercepted_and_leaves_nothing,
    pods_come_and_go_whatever_the_agent_does,
    pods_that_come_and_go_leave_nothing,
);

const AT_ONCE: usize = 8;
/// After many.
const LATE: usize = 8;
/// Bytes by which the agent may have grown.
pub(crate) const GROWTH: u64 = 12 << 20;

fn how_many(usual: usize) -> usize {
    number("SHUNT_PODS", usual)
}

/// `count` times, [`AT_ONCE`] at a time.
pub(crate) fn in_parallel(count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        return;
                    }
                    work(at);
                }
            });
        }
    });
}

#[expect(clippy::print_stderr, reason = "figures for whoever asks for them")]
pub(crate) fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
    let count = times.len();
    eprintln!("{what}: {count}, p50 {:?}, p99 {:?}", at(50), at(99));
}

/// Resident bytes of the supervisor and the data plane.
pub(crate) fn memory(agent: &Agent) -> u64 {
    let of = |pid: u32| -> u64 {
        let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        let pages = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
        pages.unwrap_or(0) * 4096
    };
    of(agent.pid()) + of(agent.worker_pid().unwrap_or_default())
}

/// Descriptors once the data plane has what comes with the first pod and stays.
fn after_the_first(agent: &Agent, network: &Network<'_>) -> [usize; 2] {
    let mut first = network.container("shop", "first");
    network.add(&mut first).expect("added");
    network.del(&first).expect("deleted");
    descriptors(agent)
}

fn nothing_is_left(agent: &Agent, open: [usize; 2]) {
    assert_eq!(enrolled(agent), NOBODY);
    wait::until("no descriptor is left", Duration::from_secs(20), || {
        let [supervisor, worker] = descriptors(agent);
        (supervisor <= open[0] && worker <= open[1]).then_some(())
    });
    let state = fs::read_to_string(agent.dir.join("state/cni.json")).expect("a file");
    assert!(state.contains(r#""attachments":[]"#), "{state}");
}

fn every_pod_of_many_is_intercepted_and_leaves_nothing(mode: &str) {
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, mode).start();
    let network = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    let (server, _nginx) = server(&world, &network);
    let open = after_the_first(&agent, &network);
    let count = how_many(70);
    let pods: Mutex<Vec<Container>> = Mutex::default();
    let times: Mutex<Vec<Duration>> = Mutex::default();
    in_parallel(count, |at| {
        let mut pod = network.container("shop", &format!("pod-{at}"));
        network.add_first(&mut pod, SHUNT).expect("added");
        let start = Instant::now();
        network.add_one(&mut pod, SHUNT).expect("added");
        times.lock().expect("whole").push(start.elapsed());
        connects(&pod, &server);
        pods.lock().expect("whole").push(pod);
    });
    tell(mode, times.into_inner().expect("whole"));
    assert_eq!(agent.lines(count).len(), count);
    assert_eq!(enrolled(&agent).len(), count);
    let mut pods = pods.into_inner().expect("whole");
    // One by one: nobody else makes the agent look after those that are there.
    for at in count..count + LATE {
        let mut pod = network.container("shop", &format!("pod-{at}"));
        network.add(&mut pod).expect("added");
        connects(&pod, &server);
        pods.push(pod);
    }
    let count = count + LATE;
    assert_eq!(agent.lines(count).len(), count);
    in_parallel(count, |at| network.del(&pods[at]).expect("deleted"));
    nothing_is_left(&agent, open);
}

fn pods_come_and_go_whatever_the_agent_does(mode: &str) {
    require::everything();
    let world = World::new();
    let mut agent = AgentBuilder::new(&world, mode).start();
    let network = Network::new(&world, "1.0.0", asking(&agent, &json!({"timeout_ms": 500})));
    let (server, _nginx) = server(&world, &network);
    let open = after_the_first(&agent, &network);
    let count = how_many(24);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            in_parallel(count, |at| {
                let mut pod = network.container("shop", &format!("pod-{at}"));
                network.add(&mut pod).expect("added");
                // A supervisor that hangs keeps connections for at most two seconds.
                connects(&pod, &server);
                network.del(&pod).expect("deleted");
            });
            over.store(true, Ordering::Relaxed);
        });
        for turn in 0.. {
            match turn % 4 {
                _ if over.load(Ordering::Relaxed) => break,
                0 => {
                    signal("-STOP", agent.pid());
                    wait::pause(Duration::from_millis(700));
                    signal("-CONT", agent.pid());
                }
                1 => {
                    agent.terminate();
                    wait::pause(Duration::from_millis(300));
                    agent.restart();
                }
                2 => {
                    agent.kill();
                    agent.restart();
                }
                _ => signal("-KILL", agent.worker_pid().unwrap_or(agent.pid())),
            }
            wait::pause(Duration::from_millis(300));
        }
    });
    // Whoever was deleted while the agent hung, or whose note came late, goes with his namespace.
    wait::until("nobody is left", Duration::from_secs(20), || {
        (enrolled(&agent) == NOBODY).then_some(())
    });
    nothing_is_left(&agent, open);
}

/// Only `shunt-cni`: as quick as it can be asked.
fn pods_that_come_and_go_leave_nothing(mode: &str) {
    const TURNS: usize = 12;
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, mode).start();
    let mut network = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    network.plugins.drain(..SHUNT);
    let pods: Vec<Container> = (0..8)
        .map(|at| {
            let mut pod = network.container("shop", &format!("pod-{at}"));
            pod.result = json!({"cniVersion": "1.0.0"});
            pod
        })
        .collect();
    let turn = || -> Vec<Duration> {
        let times: Mutex<Vec<Duration>> = Mutex::default();
        in_parallel(pods.len(), |at| {
            let start = Instant::now();
            network.invoke("ADD", 0, &pods[at]).ok().expect("added");
            times.lock().expect("whole").push(start.elapsed());
            network.invoke("DEL", 0, &pods[at]).ok().expect("deleted");
        });
        times.into_inner().expect("whole")
    };
    // What is allocated once.
    turn();
    turn();
    wait::until("nobody is left", Duration::from_secs(10), || {
        (enrolled(&agent) == NOBODY).then_some(())
    });
    let (open, grown) = (descriptors(&agent), memory(&agent));
    let start = Instant::now();
    let times: Vec<Duration> = (0..how_many(TURNS)).flat_map(|_| turn()).collect();
    let each_second = times.len() as f64 / start.elapsed().as_secs_f64();
    tell(&format!("{mode}, {each_second:.0} a second"), times);
    nothing_is_left(&agent, open);
    let now = memory(&agent);
    assert!(now < grown + GROWTH, "{grown} bytes became {now}");
}
