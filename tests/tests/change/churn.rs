//! Pods are born and die faster than anybody looks; afterwards nothing of them is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use shunt_tests::{Agent, AgentBuilder, World, kernel, require, wait};

/// Births per second, for how long, and how many threads give birth.
const RATE: u32 = 50;
const TIME: Duration = Duration::from_secs(10);
const MIDWIVES: u32 = 4;
/// What memory may have grown by, in KiB: allocators keep some of what they once had.
const GROWTH: u64 = 6 << 10;

/// A namespace with addresses of its own and a cgroup; it goes when dropped.
struct Mayfly {
    netns: String,
    cgroup: PathBuf,
}

fn quietly(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().expect("it runs").success()
}

impl Mayfly {
    fn born(world: &World, number: u32) -> Self {
        let netns = format!("{}-m{number}", world.label());
        let cgroup = world.cgroup().join(format!("m{number}"));
        fs::create_dir(&cgroup).expect("a cgroup");
        assert!(quietly("ip", &["netns", "add", &netns]));
        let address = format!("10.99.{}.{}/32", number / 250, number % 250 + 1);
        let script = format!("ip link set lo up && ip addr add {address} dev lo");
        assert!(quietly(
            "ip",
            &["netns", "exec", &netns, "sh", "-c", &script]
        ));
        Self { netns, cgroup }
    }

    fn enrol(&self, agent: &Agent, mode: &str, number: u32) -> u16 {
        let body = json!({"netns": self.netns, "cgroup": self.cgroup, "mode": mode});
        agent
            .admin(
                "PUT",
                &format!("/workloads/pods/m{number}"),
                &body.to_string(),
            )
            .0
    }
}

impl Drop for Mayfly {
    fn drop(&mut self) {
        quietly("ip", &["netns", "del", &self.netns]);
        let _ = fs::remove_dir(&self.cgroup);
    }
}

/// What the agent holds when nothing goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Holdings {
    descriptors: [Vec<String>; 2],
    entries: Vec<(String, usize)>,
    objects: [usize; 3],
}

fn pids(agent: &Agent) -> [u32; 2] {
    [agent.pid(), agent.worker_pid().expect("a data plane")]
}

pub(super) fn holdings(agent: &Agent) -> Holdings {
    // Sockets and the like without their numbers.
    let plain = |name: String| {
        name.split_once(":[")
            .map_or(name.clone(), |(kind, _)| kind.to_owned())
    };
    Holdings {
        descriptors: pids(agent)
            .map(|pid| kernel::descriptors(pid).into_iter().map(plain).collect()),
        entries: kernel::entries(agent.pid()),
        objects: ["prog", "map", "link"].map(|kind| kernel::held_by(agent.pid(), kind).len()),
    }
}

/// Waits until the agent holds what it held before. `stock`: so many sockets may have come for those who go on.
pub(super) fn until_back(agent: &Agent, before: &Holdings, stock: usize) {
    let start = Instant::now();
    loop {
        let mut now = holdings(agent);
        let stocked = more(&now.descriptors[1], &before.descriptors[1]);
        if stocked.len() <= stock && stocked.iter().all(|name| name == "socket") {
            now.descriptors[1].clone_from(&before.descriptors[1]);
        }
        // Fewer are no leak: something was on its way out when the first look was taken.
        for (now, before) in now.descriptors.iter_mut().zip(&before.descriptors) {
            if more(now, before).is_empty() {
                now.clone_from(before);
            }
        }
        if now == *before {
            return;
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "left over: {:?} {:?} {:?}\nwas {:?} {:?}",
            [0, 1].map(|process| more(&now.descriptors[process], &before.descriptors[process])),
            now.entries,
            now.objects,
            before.entries,
            before.objects
        );
        wait::pause(Duration::from_millis(200));
    }
}

/// What of `now` was not there before.
fn more(now: &[String], before: &[String]) -> Vec<String> {
    let mut more = now.to_vec();
    for name in before {
        if let Some(at) = more.iter().position(|other| other == name) {
            more.swap_remove(at);
        }
    }
    more
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// One after the other, at the given rate, until the time is over: born, enrolled, and dead in one of four ways.
fn midwife(world: &World, agent: &Agent, mode: &str, next: &AtomicU32, start: Instant) {
    while start.elapsed() < TIME {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let due = start + Duration::from_secs(1) * number / RATE;
        wait::pause(due.saturating_duration_since(Instant::now()));
        let pod = Mayfly::born(world, number);
        let path = format!("/workloads/pods/m{number}");
        match number % 4 {
            // Known before it is there, and never served.
            0 => {
                drop(pod);
                let ghost = json!({"netns": format!("{}-m{number}", world.label()), "mode": mode});
                assert_eq!(agent.admin("PUT", &path, &ghost.to_string()).0, 202);
                assert_eq!(agent.admin("DELETE", &path, "").0, 200);
            }
            // In order.
            1 | 2 => {
                assert_eq!(
                    pod.enrol(agent, mode, number),
                    200,
                    "{}",
                    tail(&agent.log())
                );
                assert_eq!(agent.admin("DELETE", &path, "").0, 200);
            }
            // The pod first.
            _ => {
                assert_eq!(
                    pod.enrol(agent, mode, number),
                    200,
                    "{}",
                    tail(&agent.log())
                );
                drop(pod);
                assert_eq!(agent.admin("DELETE", &path, "").0, 200);
            }
        }
    }
}

fn nothing_is_left_of_the_dead(mode: &str) {
    require::everything();
    let world = World::new();
    let resident = world.pod();
    let agent = AgentBuilder::new(&world, mode)
        .enrol("resident", &resident, "")
        .start();
    let next = AtomicU32::new(0);
    // Whatever is made once and kept.
    for number in [10_001, 10_002] {
        let pod = Mayfly::born(&world, number);
        assert_eq!(pod.enrol(&agent, mode, number), 200);
        drop(pod);
        assert_eq!(
            agent
                .admin("DELETE", &format!("/workloads/pods/m{number}"), "")
                .0,
            200
        );
    }
    wait::pause(Duration::from_secs(1));
    let before = holdings(&agent);
    let memory = pids(&agent).map(kernel::resident);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..MIDWIVES {
            scope.spawn(|| midwife(&world, &agent, mode, &next, start));
        }
    });
    let (count, took) = (next.load(Ordering::Relaxed), start.elapsed());
    until_back(&agent, &before, 0);
    let after = pids(&agent).map(kernel::resident);
    let log = fs::metadata(agent.dir.join("log")).expect("a log").len();
    super::tell(&format!(
        "{count} pods in {took:?}, all gone {:?} after the start; resident {memory:?} then {after:?} KiB; {log} bytes of log",
        start.elapsed()
    ));
    for (before, after) in memory.iter().zip(after) {
        assert!(after < before + GROWTH, "{memory:?} KiB became {after}");
    }
    assert!(log < u64::from(count) * 2000, "{log} bytes of log");
    assert_eq!(agent.workload("resident")["state"], "ready");
    assert!(!Path::new(&format!("/run/netns/{}-m0", world.label())).exists());
}

#[test]
fn ebpf() {
    nothing_is_left_of_the_dead("ebpf");
}

#[test]
fn iptables() {
    nothing_is_left_of_the_dead("iptables");
}
