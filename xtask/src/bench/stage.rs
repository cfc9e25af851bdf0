//! The pods, and one case measured on them.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use shunt_tests::agent::entry;
use shunt_tests::{Agent, AgentBuilder, Pod, Running, World, wait};

use super::cases::{Beside, Case, Setup};
use super::load::Part;
use super::memory::{self, Ends};
use super::{Figures, connects, flood, load, services};
use crate::run::{root, say};

/// Policy entries (addresses that nobody dials) with which the rate of connections is measured.
const ENTRIES: [usize; 2] = [1000, 10_000];
/// How often the bystanders are enrolled or withdrawn while connections are made.
const CHURN: Duration = Duration::from_millis(200);
/// A change of thousands of rules takes a moment.
const IN_FORCE: Duration = Duration::from_secs(60);

pub(super) struct Stage {
    world: World,
    client: Pod,
    server: Pod,
    /// Enrolled like the client, and loud.
    neighbour: Pod,
    /// Two that are not enrolled and talk to each other, and some that come and go.
    stranger: Pod,
    strange_server: Pod,
    crowd: Vec<Pod>,
    seconds: &'static str,
    /// Of watching what is idle.
    watched: Duration,
    part: Part,
    program: String,
    _servers: [Running; 2],
    _congestion: Congestion,
}

impl Stage {
    pub(super) fn set(seconds: &'static str, quick: bool, part: Part) -> Self {
        let _congestion = Congestion::allow();
        let world = World::new();
        let [client, server, neighbour, stranger, strange_server] = [(); 5].map(|()| world.pod());
        let crowd = (0..4).map(|_| world.pod()).collect();
        let program = root().join("target/release/xtask").display().to_string();
        for pod in [&client, &server, &neighbour, &stranger, &strange_server] {
            tune(pod);
        }
        let serve = |pod: &Pod| {
            let running = pod.spawn(&program, &["bench-load", "server"]);
            pod.wait_for_listener(load::CONNECT_PORT);
            running
        };
        let _servers = [serve(&server), serve(&strange_server)];
        Self {
            world,
            client,
            server,
            neighbour,
            stranger,
            strange_server,
            crowd,
            seconds,
            watched: Duration::from_secs(if quick { 1 } else { 10 }),
            part,
            program,
            _servers,
            _congestion,
        }
    }

    pub(super) fn measure(&self, case: &Case) -> Result<Figures> {
        let Some(setup) = &case.agent else {
            let mut figures = self.measured()?;
            if self.part == Part::All {
                self.ends().per_connection(&mut figures, None)?;
                self.ends().stuck_receiver(&mut figures, None)?;
            }
            return Ok(figures);
        };
        let agent = AgentBuilder::new(&self.world, setup.mode)
            .set(setup.setting)
            .set(services::NONE)
            .enrol("client", &self.client, setup.workload)
            .enrol("server", &self.server, setup.workload)
            .enrol("neighbour", &self.neighbour, setup.workload)
            .start();
        // It learns, of each port, from connections that are not measured, but for what it takes to learn.
        let has = |what| setup.beside.contains(&what);
        let learning = has(Beside::Learned).then(|| self.measured()).transpose()?;
        let mut figures = self.measured()?;
        figures.extend(learning.map(connects::of_learning).unwrap_or_default());
        figures.insert("rss_mb".into(), memory::resident(&agent)? * 1024.0 / 1e6);
        if self.part != Part::All {
            return Ok(figures);
        }
        let ends = self.ends();
        if has(Beside::Steering) {
            self.steering(&mut figures, setup, &agent)?;
            ends.per_connection(&mut figures, Some(&agent))?;
        }
        if has(Beside::Services) {
            self.services(&mut figures, &agent)?;
        }
        if has(Beside::Idle) {
            ends.idle_handoff(&mut figures, &agent, self.watched)?;
        }
        ends.stuck_receiver(&mut figures, Some(&agent))?;
        Ok(figures)
    }

    /// What is measured in every case.
    fn measured(&self) -> Result<Figures> {
        let only = |part| self.load(&self.client, &self.server.v4, &["--only", part]);
        let part = self.part.to_possible_value().context("a part")?;
        let mut figures = only(part.get_name())?;
        let (program, host) = (&self.program, &self.server.v4);
        flood::beside(&mut figures, &self.neighbour, program, host, || {
            only("quiet")
        })?;
        Ok(figures)
    }

    /// What depends on how connections are steered, not on how their bytes move.
    fn steering(&self, figures: &mut Figures, setup: &Setup, agent: &Agent) -> Result<()> {
        let strangers = || self.connects(&self.stranger, &self.strange_server.v4);
        let ours = || self.connects(&self.client, &self.server.v4);
        figures.insert("connect_rate_not_enrolled".into(), strangers()?);
        for count in ENTRIES {
            self.rewrite(agent, &[self.client_with(count)]);
            figures.insert(format!("connect_rate_{count}"), ours()?);
        }
        self.rewrite(agent, &[self.client_with(0)]);
        let loaded = self.under_churn(agent, ours)?;
        figures.insert("connect_rate_churn".into(), loaded);
        if setup.mode == "ebpf" {
            // Its hooks sit at the root of all cgroups, and run for everybody.
            let nowhere = format!("  - {{name: crowd, netns: {}}}\n", self.crowd[0].netns);
            agent.rewrite(&[self.client_with(0), self.server_entry(), nowhere]);
            wait::until("the hooks are at the root", IN_FORCE, || {
                agent.log().contains("cgroup2 root").then_some(())
            });
            figures.insert("connect_rate_not_enrolled_root".into(), strangers()?);
        }
        Ok(())
    }

    /// Adds the rate of connections by way of a service among others, and how long it takes until they are in force.
    fn services(&self, figures: &mut Figures, agent: &Agent) -> Result<()> {
        let mut before = services::NONE.to_owned();
        for count in [1, ENTRIES[0], ENTRIES[1]] {
            let text = services::among(count, &self.server.v4);
            let start = Instant::now();
            agent.edit("services", &before, &text);
            let taken = start.elapsed().as_secs_f64() * 1e3;
            before = text;
            let rate = self.connects(&self.client, services::ADDRESS)?;
            if count == 1 {
                figures.insert("connect_rate_service".into(), rate);
            } else {
                figures.insert(format!("services_{count}_in_force_ms"), taken);
                figures.insert(format!("connect_rate_{count}"), rate);
            }
        }
        Ok(())
    }

    fn ends(&self) -> Ends<'_> {
        Ends {
            client: &self.client,
            server: &self.server,
            program: &self.program,
        }
    }

    /// Connections per second.
    fn connects(&self, from: &Pod, to: &str) -> Result<f64> {
        let figures = self.load(from, to, &["--only", "connects"])?;
        figures.get("connect_rate").copied().context("a rate")
    }

    fn load(&self, from: &Pod, to: &str, more: &[&str]) -> Result<Figures> {
        let to = [
            "bench-load",
            "client",
            "--host",
            to,
            "--seconds",
            self.seconds,
        ];
        let text = from.says(&self.program, &[&to[..], more].concat());
        serde_json::from_str(&text).with_context(|| text)
    }

    /// The client's line in the configuration, with a policy of that many entries.
    fn client_with(&self, entries: usize) -> String {
        let excluded: Vec<String> = (0..entries)
            .map(|at| format!("172.{}.{}.{}/32", 16 + (at >> 16), at >> 8 & 255, at & 255))
            .collect();
        let policy = format!("outbound: {{exclude_cidrs: [{}]}}", excluded.join(", "));
        entry("client", &self.client, &policy)
    }

    fn server_entry(&self) -> String {
        entry("server", &self.server, "")
    }

    /// Changes the client's policy and waits until it is in force.
    fn rewrite(&self, agent: &Agent, client: &[String]) {
        let changes = || agent.log().matches("\"changed\"").count();
        let before = changes();
        agent.rewrite(&[client, &[self.server_entry()]].concat());
        wait::until("the policy is in force", IN_FORCE, || {
            (changes() > before).then_some(())
        });
    }

    /// Enrols and withdraws the crowd while `work` goes on.
    fn under_churn<T>(&self, agent: &Agent, work: impl FnOnce() -> T) -> T {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let own = [self.client_with(0), self.server_entry()];
                let crowd = self.crowd.iter().enumerate();
                let crowd: Vec<String> = crowd
                    .map(|(at, pod)| entry(&format!("crowd{at}"), pod, ""))
                    .collect();
                while !done.load(Ordering::Relaxed) {
                    agent.rewrite(&[&own[..], &crowd].concat());
                    wait::pause(CHURN);
                    agent.rewrite(&own);
                    wait::pause(CHURN);
                }
            });
            let result = work();
            done.store(true, Ordering::Relaxed);
            result
        })
    }
}

/// Namespaces may choose only what the host allows; a host whose default is another algorithm may not allow cubic.
pub(super) struct Congestion(Option<String>);

impl Congestion {
    const ALLOWED: &'static str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

    pub(super) fn allow() -> Self {
        let before = fs::read_to_string(Self::ALLOWED).unwrap_or_default();
        let changed = !before.contains("cubic")
            && fs::write(Self::ALLOWED, format!("{} cubic", before.trim())).is_ok();
        Self(changed.then_some(before))
    }
}

impl Drop for Congestion {
    fn drop(&mut self) {
        if let Some(before) = &self.0
            && let Err(error) = fs::write(Self::ALLOWED, before.trim())
        {
            say(&format!("{} is still changed: {error}", Self::ALLOWED));
        }
    }
}

/// Both ends: enough ports and queue for many short connections, and the congestion control most hosts use.
pub(super) fn tune(pod: &Pod) {
    for setting in [
        "net.ipv4.ip_local_port_range=1024 65000",
        "net.ipv4.tcp_tw_reuse=1",
        "net.core.somaxconn=4096",
        "net.ipv4.tcp_congestion_control=cubic",
    ] {
        let done = pod.run("sysctl", &["-qw", setting]);
        if !done.status.success() {
            say(&format!("not set in the pods: {setting}"));
        }
    }
}
