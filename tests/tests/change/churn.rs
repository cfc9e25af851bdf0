//! Pods are born and die faster than anybody looks; afterwards nothing of them is left.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use shunt_tests::{Agent, AgentBuilder, Mayfly, World, kernel, number, require, wait};

/// Births per second, for how many seconds, and how many threads give birth; `SHUNT_BIRTHS` and `SHUNT_BIRTH_SECONDS`
/// say other numbers.
const RATE: u32 = 50;
const SECONDS: u32 = 10;
const MIDWIVES: u32 = 8;
/// Born in order; many more are alive at no time.
const NAMES: u32 = 250;
/// What memory may have grown by, in KiB: allocators keep some of what they once had.
const GROWTH: u64 = 6 << 10;

fn born(world: &World, number: u32) -> Mayfly {
    let address = Ipv4Addr::new(10, 99, 0, (number % NAMES) as u8 + 1);
    Mayfly::born(world, &format!("m{number}"), address)
}

fn enrol(pod: &Mayfly, agent: &Agent, mode: &str, path: &str) -> u16 {
    let body = json!({"netns": pod.netns, "cgroup": pod.cgroup, "mode": mode});
    agent.admin("PUT", path, &body.to_string()).0
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

/// Births so far, and what is seen of them.
struct Births<'a> {
    world: &'a World,
    agent: &'a Agent,
    mode: &'a str,
    rate: u32,
    start: Instant,
    next: AtomicU32,
    /// How often each namespace's inode was born.
    inodes: Mutex<BTreeMap<u64, u32>>,
}

impl Births<'_> {
    /// One after the other, at the rate, until the time is over: born, enrolled, and dead in one of four ways.
    fn midwife(&self, time: Duration) {
        while self.start.elapsed() < time {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let due = self.start + Duration::from_secs(1) * number / self.rate;
            wait::pause(due.saturating_duration_since(Instant::now()));
            self.life(number);
        }
    }

    fn life(&self, number: u32) {
        let pod = born(self.world, number);
        let mut inodes = self.inodes.lock().expect("no panic");
        *inodes.entry(pod.inode).or_default() += 1;
        drop(inodes);
        let path = format!("/workloads/pods/m{number}");
        let enrol = |pod: &Mayfly| {
            let code = enrol(pod, self.agent, self.mode, &path);
            assert_eq!(code, 200, "{}", tail(&self.agent.log()));
        };
        let withdraw = || assert_eq!(self.agent.admin("DELETE", &path, "").0, 200);
        match number % 4 {
            // Known before it is there, and never served.
            0 => {
                let ghost = json!({"netns": pod.netns, "mode": self.mode});
                drop(pod);
                let (code, _) = self.agent.admin("PUT", &path, &ghost.to_string());
                assert_eq!(code, 202);
                withdraw();
            }
            // In order.
            1 | 2 => {
                enrol(&pod);
                withdraw();
            }
            // The pod first.
            _ => {
                enrol(&pod);
                drop(pod);
                withdraw();
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
    let births = Births {
        world: &world,
        agent: &agent,
        mode,
        rate: number("SHUNT_BIRTHS", RATE),
        start: Instant::now(),
        next: AtomicU32::new(0),
        inodes: Mutex::default(),
    };
    // Whatever is made once and kept.
    for number in 0..4 {
        births.life(1_000_000 + number);
    }
    wait::pause(Duration::from_secs(1));
    let before = holdings(&agent);
    let memory = pids(&agent).map(kernel::resident);
    let time = Duration::from_secs(number("SHUNT_BIRTH_SECONDS", SECONDS).into());
    let births = Births {
        start: Instant::now(),
        ..births
    };
    std::thread::scope(|scope| {
        for _ in 0..MIDWIVES {
            scope.spawn(|| births.midwife(time));
        }
    });
    let (count, took) = (births.next.load(Ordering::Relaxed), births.start.elapsed());
    until_back(&agent, &before, 0);
    let gone = births.start.elapsed();
    let after = pids(&agent).map(kernel::resident);
    let log = fs::metadata(agent.dir.join("log")).expect("a log").len();
    let inodes = births.inodes.into_inner().expect("no panic");
    let most = inodes.values().max().copied().unwrap_or(0);
    super::tell(&format!(
        "{mode}: {count} pods in {took:?}, all gone {gone:?} after the start; {} namespace inodes, one {most} times; \
         resident {memory:?} then {after:?} KiB; {log} bytes of log",
        inodes.len()
    ));
    assert!(most > 1, "no inode came back: that they do was not tested");
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
