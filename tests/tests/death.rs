//! Killed at random moments under load: nobody is without success for longer than two seconds, nothing cut off looks
//! complete, nothing stays. `SHUNT_ROUNDS` says how often; `SHUNT_SEED` repeats a run.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use shunt_tests::agent::signal;
use shunt_tests::load::{list, program};
use shunt_tests::{
    Agent, AgentBuilder, Blocked, Load, Pod, Running, World, in_both_modes, require, wait,
};

in_both_modes!(
    killed_data_planes,
    killed_supervisors,
    killed_together,
    a_blocked_worker_thread_opens_within_two_seconds,
);

const TOKEN: &str = "shunt-death";
const SHORT: u16 = 7000;
const BODY: u16 = 7001;
/// A body takes this long, so that most kills meet some.
const BODY_MS: &str = "300";
const BODY_BYTES: &str = "400000";

struct Scene {
    world: World,
    client: Pod,
    server: Pod,
    /// Not enrolled.
    stranger: Pod,
}

fn scene() -> Scene {
    require::everything();
    let world = World::new();
    let (client, server, stranger) = (world.pod(), world.pod(), world.pod());
    Scene {
        world,
        client,
        server,
        stranger,
    }
}

fn at(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    [&pod.v4, &pod.v6].map(|ip| SocketAddr::new(ip.parse().expect("an address"), port))
}

impl Scene {
    fn servers(&self) -> Vec<Running> {
        let (short, body) = (SHORT.to_string(), BODY.to_string());
        let mut running = Vec::new();
        for pod in [&self.server, &self.stranger] {
            let answer = ["server", "--token", TOKEN, "--port", &short];
            running.push(pod.spawn(&program(), &answer));
            let bytes = ["--bytes", BODY_BYTES, "--millis", BODY_MS];
            let args = [&["body", "--port", &body][..], &bytes].concat();
            running.push(pod.spawn(&program(), &args));
            pod.wait_for_listener(SHORT);
            pod.wait_for_listener(BODY);
        }
        running
    }

    /// Short connections without end, by every proxied path.
    fn short(&self) -> [Load; 2] {
        let to = [at(&self.server, SHORT), at(&self.stranger, SHORT)].concat();
        let to_server = list(&at(&self.server, SHORT));
        [(&self.client, list(&to)), (&self.stranger, to_server)].map(|(from, to)| {
            let args = ["client", "--token", TOKEN, "--to", &to, "--rate", "100"];
            Load::start(from, &[&args[..], &["--timeout-ms", "3000"]].concat())
        })
    }

    /// Bodies without end, by every proxied path.
    fn bodies(&self) -> [Load; 2] {
        let to = [at(&self.server, BODY), at(&self.stranger, BODY)].concat();
        let to_server = list(&at(&self.server, BODY));
        [(&self.client, list(&to)), (&self.stranger, to_server)]
            .map(|(from, to)| Load::start(from, &["fetch", "--to", &to, "--bytes", BODY_BYTES]))
    }

    fn pods(&self) -> [&Pod; 3] {
        [&self.client, &self.server, &self.stranger]
    }

    fn states(&self) -> [String; 3] {
        self.pods().map(Pod::state)
    }

    fn agent(&self, mode: &str) -> Agent {
        AgentBuilder::new(&self.world, mode)
            .enrol("client", &self.client, "")
            .enrol("server", &self.server, "")
            .start()
    }
}

/// Links of eBPF programs to these pods' cgroups and namespaces.
fn links(pods: &[&Pod]) -> Vec<Value> {
    let inode = |path: String| fs::metadata(path).expect("there").ino();
    let ours: Vec<u64> = pods
        .iter()
        .flat_map(|pod| {
            let netns = format!("/run/netns/{}", pod.netns);
            [inode(pod.cgroup.display().to_string()), inode(netns)]
        })
        .collect();
    let shown = Command::new("bpftool")
        .args(["-j", "link", "show"])
        .output();
    let all: Vec<Value> = serde_json::from_slice(&shown.expect("runs").stdout).expect("JSON");
    let is_ours = |link: &Value| {
        let ids = [&link["cgroup_id"], &link["netns_ino"]];
        ids.iter()
            .filter_map(|id| id.as_u64())
            .any(|id| ours.contains(&id))
    };
    all.into_iter().filter(is_ours).collect()
}

/// Enough chance for a test, and the same again from the same seed (xorshift).
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.expect("after 1970").as_nanos() as u64;
        let set = std::env::var("SHUNT_SEED").ok();
        let seed = set.map_or(now, |text| text.parse().expect("a number"));
        note(&format!("SHUNT_SEED={seed}"));
        Self(seed | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn pause(&mut self, longest_ms: u64) {
        wait::pause(Duration::from_millis(self.below(longest_ms)));
    }
}

#[expect(clippy::print_stderr, reason = "what is needed to repeat a failure")]
fn note(text: &str) {
    eprintln!("{text}");
}

fn killed_data_planes(mode: &str) {
    under_load(mode, Cuts::Transfers, |agent, _| {
        let worker = agent.worker_pid().expect("a data plane");
        signal("-KILL", worker);
        wait::until("a new data plane", Duration::from_secs(5), || {
            agent.worker_pid().filter(|pid| *pid != worker)
        });
    });
}

fn killed_supervisors(mode: &str) {
    under_load(mode, Cuts::Nothing, |agent, chance| {
        agent.kill();
        chance.pause(1500);
        agent.restart();
    });
}

fn killed_together(mode: &str) {
    under_load(mode, Cuts::Transfers, |agent, chance| {
        let worker = agent.worker_pid();
        if let Some(worker) = worker.filter(|_| chance.below(2) == 0) {
            signal("-KILL", worker);
            agent.kill();
        } else {
            agent.kill();
            if let Some(worker) = worker {
                signal("-KILL", worker);
            }
        }
        chance.pause(1500);
        agent.restart();
    });
}

/// A process, also when its number is somebody else's meanwhile.
#[derive(PartialEq, Eq)]
struct Process {
    pid: u32,
    /// When it began, in clock ticks: the 22nd field of proc(5)'s `stat`.
    began: String,
}

impl Process {
    /// `None`: it has ended.
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is a name in brackets, which may have blanks; the third says whether it is a zombie.
        let (_, fields) = stat.rsplit_once(") ")?;
        let began = fields.split(' ').nth(19)?.to_owned();
        (!fields.starts_with('Z')).then_some(Self { pid, began })
    }
}

/// What a death may do to transfers under way.
#[derive(PartialEq, Eq)]
enum Cuts {
    /// They go through the dead.
    Transfers,
    /// They go through the data plane, which lives.
    Nothing,
}

/// The rounds of one kind of death.
fn under_load(mode: &str, cuts: Cuts, die: impl Fn(&mut Agent, &mut Chance)) {
    let scene = scene();
    let mut chance = Chance::new();
    let _servers = scene.servers();
    let before = scene.states();
    let mut agent = scene.agent(mode);
    let (short, bodies) = (scene.short(), scene.bodies());
    let rounds: u32 =
        std::env::var("SHUNT_ROUNDS").map_or(8, |text| text.parse().expect("a number"));
    let (mut dead, mut orphans) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        chance.pause(1000);
        let lines = agent.access_log().len();
        dead.push(agent.pid());
        orphans.extend(agent.worker_pid().and_then(Process::of));
        note(&format!("round {round}"));
        die(&mut agent, &mut chance);
        wait::until("captures again", Duration::from_secs(10), || {
            (agent.access_log().len() > lines).then_some(())
        });
    }
    for load in short {
        let report = load.finish();
        assert_eq!(report["wrong"], serde_json::json!([]), "{report:#}");
        let gap = report["longest_gap_ms"].as_f64().expect("a number");
        assert!(gap < 2000.0, "{report:#}");
    }
    let mut cut = 0;
    for load in bodies {
        let report = load.finish();
        let ends = report["ends"].as_object().expect("ends");
        let bad = |end: &&String| end.starts_with("short") || end.starts_with("wrong");
        assert_eq!(ends.keys().find(bad), None, "{report:#}");
        assert!(ends.contains_key("whole"), "{report:#}");
        let errors = ends.iter().filter(|(end, _)| end.starts_with("error"));
        cut += errors.filter_map(|(_, count)| count.as_u64()).sum::<u64>();
    }
    assert!(
        cut > 0 || cuts == Cuts::Nothing,
        "no kill met a transfer: this test could not fail"
    );
    // An agent that stops leaves alone what a dead one's data plane still needs.
    wait::until("the orphans end", Duration::from_secs(20), || {
        orphans.retain(|orphan| Process::of(orphan.pid).as_ref() == Some(orphan));
        orphans.is_empty().then_some(())
    });
    assert!(agent.terminate().success(), "{}", agent.log());
    assert_eq!(scene.states(), before);
    assert_eq!(links(&scene.pods()), [] as [Value; 0]);
    for pid in dead {
        let cgroup = scene.client.cgroup.join(format!("../../shunt-agent-{pid}"));
        assert!(!cgroup.exists(), "{}", cgroup.display());
    }
}

fn a_blocked_worker_thread_opens_within_two_seconds(mode: &str) {
    let scene = scene();
    let _servers = scene.servers();
    let agent = scene.agent(mode);
    let ask = |count: &str| {
        let to = list(&at(&scene.server, SHORT));
        let args = ["client", "--token", TOKEN, "--to", &to, "--rate", "100"];
        let args = [&args[..], &["--count", count, "--timeout-ms", "700"]].concat();
        Load::start(&scene.client, &args).report(Duration::from_secs(10))
    };
    wait::until("it captures", Duration::from_secs(5), || {
        ask("1");
        (!agent.access_log().is_empty()).then_some(())
    });
    let blocked = Blocked::worker(&agent);
    let begun = std::time::Instant::now();
    let report = ask("20");
    assert_ne!(
        report["answered"], 20,
        "the thread was not blocked: {report:#}"
    );
    // Half a second for a machine that runs other tests too.
    wait::pause(Duration::from_millis(2500).saturating_sub(begun.elapsed()));
    let report = ask("50");
    drop(blocked);
    assert_eq!(report["answered"], 50, "{report:#}");
}
