//! The privileged process: owns namespaces, listeners and what is installed in the kernel, and parses nothing that
//! comes from a network. One thread, one loop:
//!
//! ```text
//! signal ------.
//! file changed -+                          .-> backends: hooks, rules, gates
//! data plane ---+-> Supervisor (state) ----+-> data plane: listeners, sockets, settings
//! every 250 ms -'                          '-> status
//! ```

mod asked;
mod backends;
mod cgroups;
mod cni;
mod config_source;
mod data_plane;
mod drift;
mod ears;
mod enrolment;
mod explaining;
mod hearing;
mod home;
mod inherited;
mod leaving;
mod lifecycle;
mod node;
mod pods;
mod service_manager;
mod settings;
mod state_file;
mod stopping;
mod store;
mod strays;
mod succession;
mod telling;
mod upgrade;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Pid;
use shunt_cni_protocol::Reply;
use shunt_core::config::Config;
use shunt_core::workload::{WorkloadId, WorkloadName, WorkloadSpec};
use shunt_intercept::ebpf::Remains;
use shunt_intercept::watch::Watch;
use shunt_telemetry::logging::LogLevel;
use shunt_xds::Loaded;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use self::asked::Asked;
use self::backends::Backends;
use self::cgroups::Cgroups;
use self::cni::{Attachments, Door};
use self::config_source::ConfigSource;
use self::data_plane::{DataPlane, PlaneId};
use self::drift::NodeNotes;
pub(crate) use self::enrolment::is_in_use;
pub(crate) use self::home::CGROUP_PREFIX;
use self::home::Home;
use self::inherited::Inherited;
use self::leaving::Leaving;
use self::lifecycle::Workload;
use self::node::Node;
use self::pods::Pods;
use self::service_manager::ServiceManager;
pub use self::store::Stored;
use self::succession::Succession;
use self::upgrade::Upgrade;
use crate::cli::RunArgs;
use crate::ipc::ToWorker;
use crate::will::Will;

/// How often gates are refreshed.
const TICK: Duration = Duration::from_millis(250);
/// How long the kernel takes a gate for kept.
const GATE: Duration = Duration::from_secs(1);
/// At the end, releasing is tried this long, and so is removing. Whoever then still captures opens with the gates.
const RELEASES: Duration = Duration::from_secs(10);
/// A data plane that has not answered for this long is replaced. Its gates opened long before.
const STUCK: Duration = Duration::from_secs(5);

/// Everything the supervisor knows.
#[derive(Debug)]
struct Supervisor {
    config: Config,
    home: Home,
    /// In the node's own name.
    served: Node,
    /// Whom the Kubernetes API wants enrolled.
    pods: Pods,
    backends: Backends,
    data_plane: DataPlane,
    workloads: BTreeMap<WorkloadName, Workload>,
    /// Those of [`Supervisor::workloads`] whom the CNI plugin enrolled.
    attachments: Attachments,
    /// Withdrawn, with flows that still go on.
    leaving: Vec<Leaving>,
    /// Whom a change was promised.
    asked: Vec<Asked>,
    /// What the plugin is told once the data plane has acknowledged the message of this number.
    unconfirmed: Vec<((PlaneId, u64), oneshot::Sender<Reply>, Reply)>,
    upgrade: Option<Upgrade>,
    succession: Option<Succession>,
    /// Since when what the supervisor before this one has left is to be replaced.
    succeeds: Option<Instant>,
    succession_due: Option<Instant>,
    /// Settings of the file that are in force only after a start.
    needs_start: Vec<&'static str>,
    /// The program before this one had not finished with everybody who was withdrawn.
    unfinished: bool,
    /// Children of the program before this one.
    orphans: Vec<Pid>,
    /// The data plane gave signs of life when the gates were kept last.
    captures: bool,
    gates_kept: Option<Instant>,
    next_id: u32,
    /// What the kernel announces of the namespaces.
    watch: Watch,
    cgroups: Cgroups,
    node: NodeNotes,
    strays_looked: Option<Instant>,
    /// Where the round of looks is.
    looked_at: Option<WorkloadName>,
    /// A changed file was read, and some workload does not have it yet.
    reloaded: bool,
    /// What `status` shows is not yet what the data plane was told.
    changed: bool,
    repairs: BTreeMap<String, u64>,
    upgrades: BTreeMap<String, u64>,
    level: LogLevel,
    manager: ServiceManager,
    /// Of dead agents: what refuses connections until their workloads are served again.
    remains: Vec<Remains>,
}

/// What a supervisor has left to the one that succeeds it. As soon as this is there, gates are kept.
#[derive(Debug)]
pub struct Legacy {
    will: Will,
    inherited: Inherited,
}

impl Legacy {
    /// `number`: of the descriptor in which it is written down.
    ///
    /// # Errors
    /// It did not come whole.
    pub fn take(number: i32) -> Result<Self> {
        let mut will = Will::read(number)?;
        let inherited = Inherited::take(&mut will).context("what was left did not come")?;
        Ok(Self { will, inherited })
    }
}

/// Runs until told to stop, then removes everything.
///
/// # Errors
/// The agent could not start. Nothing stays behind.
pub async fn supervise(
    args: &RunArgs,
    path: Option<PathBuf>,
    (config, loaded): (Config, Loaded),
    level: LogLevel,
    (legacy, mut stored): (Option<Legacy>, Stored),
) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    let mut source = ConfigSource::watch(path)?;
    source.follow(config.bootstrap.as_deref());
    source.follow_sources(&loaded.sources);
    node::tell_of_refused(&Loaded::default(), &loaded);
    let (will, mut inherited) = legacy.map_or_else(Default::default, |legacy| {
        (Some(legacy.will), legacy.inherited)
    });
    let uptime = will.as_ref().map_or(0, |will| will.uptime_ms);
    let admin = std::mem::take(&mut inherited.admin);
    let home = Home::open(&config, admin, Duration::from_millis(uptime))?;
    let (attachments, attached) = Attachments::restore(&config);
    let pods = Pods::open(&config)?;
    let found: Vec<WorkloadSpec> = pods.specs().collect();
    if will.is_none() {
        let known = config.workloads.iter().chain(&attached).chain(&found);
        home.clean_up_after_the_dead(known, &attachments, &stored);
    }
    let node = Node::open(
        &config,
        loaded,
        std::mem::take(&mut inherited.node),
        &mut stored,
    )?;
    let mut supervisor =
        Supervisor::new(config, (attachments, attached), home, (node, pods), level)?;
    supervisor.recall_pods();
    match will {
        Some(will) => supervisor.succeed(will, inherited).await?,
        None => {
            let destinations = stored.take_destinations();
            supervisor.backends.inherited = Inherited::of_the_dead(destinations);
            supervisor.start_data_plane()?;
            supervisor.serve_who_waited(stored);
            supervisor.backends.make_ready(supervisor.config.mode);
        }
    }
    supervisor.tick();
    let mut door = Door::open(&supervisor.config.state_dir)?;
    supervisor.heed_notes();

    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let step = supervisor.next_step();
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            event = supervisor.data_plane.next() => {
                if supervisor.heard(event).is_stop() { break }
            }
            said = supervisor.pods.next() => supervisor.heard_of_pods(said),
            visit = door.next() => supervisor.visited(visit),
            () = source.changed() => {
                supervisor.manager.reloading();
                supervisor.reload(args, &mut source);
            }
            () = supervisor.cgroups.changed() => supervisor.cgroups_changed(),
            _ = ticks.tick() => supervisor.tick(),
            () = until(step) => supervisor.step(),
        }
    }
    drop(door);
    supervisor.stop(&mut terminate, &mut interrupt).await;
    Ok(())
}

/// For ever, when there is nothing to wait for.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Does the loop go on?
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Continue,
    Stop,
}

impl Next {
    fn is_stop(&self) -> bool {
        *self == Self::Stop
    }
}

impl Supervisor {
    fn new(
        config: Config,
        (attachments, attached): (Attachments, Vec<WorkloadSpec>),
        home: Home,
        (node, pods): (Node, Pods),
        level: LogLevel,
    ) -> Result<Self> {
        let data_plane = DataPlane::new(config.concurrency);
        let backends = Backends::new(&config);
        let remains = Remains::find(&config.bpffs);
        let mut supervisor = Self {
            config,
            home,
            served: node,
            pods,
            backends,
            data_plane,
            workloads: BTreeMap::new(),
            attachments,
            leaving: Vec::new(),
            asked: Vec::new(),
            unconfirmed: Vec::new(),
            upgrade: None,
            succession: None,
            succeeds: None,
            succession_due: None,
            needs_start: Vec::new(),
            unfinished: false,
            orphans: Vec::new(),
            captures: false,
            gates_kept: None,
            next_id: 1,
            watch: Watch::new().context("cannot watch namespaces")?,
            cgroups: Cgroups::watch(),
            node: NodeNotes::default(),
            strays_looked: None,
            looked_at: None,
            reloaded: false,
            changed: true,
            repairs: BTreeMap::new(),
            upgrades: BTreeMap::new(),
            level,
            manager: ServiceManager::of_environment(),
            remains,
        };
        let specs = supervisor.config.workloads.iter().cloned().chain(attached);
        let workloads = specs.map(|spec| (spec.name.clone(), Workload::new(spec)));
        supervisor.workloads = workloads.collect();
        Ok(supervisor)
    }

    fn next_id(&mut self) -> WorkloadId {
        let id = WorkloadId(self.next_id);
        self.next_id += 1;
        id
    }

    fn start_data_plane(&mut self) -> Result<()> {
        let hello = self.hello();
        let admin = self.home.admin_fds()?;
        self.data_plane.spawn(&hello, self.books_are_free())?;
        self.data_plane.tell(&ToWorker::Admin, admin);
        if self.data_plane.retired().is_empty() {
            self.backends.forget_flows();
        }
        self.tell_everything();
        Ok(())
    }

    fn hello(&self) -> ToWorker {
        let uptime = self.home.started.elapsed();
        let config = Config {
            services: Vec::new(),
            policy: Vec::new(),
            ..self.config.clone()
        };
        ToWorker::Hello {
            config: Box::new(config),
            supervisor_pid: std::process::id(),
            uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            supervisor_version: env!("CARGO_PKG_VERSION").to_owned(),
            keeps_listeners: self.manager.is_there(),
        }
    }

    /// Every 250 ms: keeps the gates while the data plane lives, looks at what may have changed.
    fn tick(&mut self) {
        self.keep_gates();
        if self.captures {
            self.data_plane.captures();
            self.answer_asked();
        } else if self.data_plane.stuck_for() > STUCK {
            tracing::error!("the data plane has not answered for 5 s and will be replaced");
            *self.repairs.entry("stuck_data_plane".into()).or_default() += 1;
            self.data_plane.kill_serving();
        }
        self.go_on_with_upgrade();
        self.go_on_with_succession();
        if shunt_xds::let_go(Instant::now()) {
            shunt_intercept::memory::give_back();
        }
        self.take_over();
        self.follow_cgroups();
        self.look();
        self.look_for_strays();
        self.look_for_pods();
        self.attachments.catch_up();
        self.changed |= self.backends.have_learned();
        if std::mem::take(&mut self.changed) {
            self.publish();
        } else {
            self.publish_counters();
        }
        self.tell_service_manager();
    }

    /// Every gate, as long as somebody is behind it.
    fn keep_gates(&mut self) {
        self.captures = self.data_plane.alive();
        if !self.captures {
            return;
        }
        self.backends.keep_alive();
        let before = self.gates_kept.replace(Instant::now());
        let open = before.map_or(Duration::ZERO, |before| before.elapsed());
        if let Some(open) = open.checked_sub(GATE).filter(|open| !open.is_zero()) {
            let open_ms = open.as_millis();
            tracing::warn!(
                open_ms,
                "gates were kept too late: new connections went directly meanwhile, or were refused by on_failure: closed"
            );
            *self.repairs.entry("late_gates".into()).or_default() += 1;
        }
    }
}
