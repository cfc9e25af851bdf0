//! What the data plane knows of the node: who is enrolled, the numbers, and what the supervisor says for `status`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use shunt_core::bootstrap::{Bootstrap, Tables};
use shunt_core::config::{Config, Limits, Timeouts};
use shunt_core::counters::{AgentCounters, WorkloadCounters};
use shunt_core::flow::DataPath;
use shunt_core::policy::Policy;
use shunt_core::service::Services;
use shunt_core::snapshot::{Enrolled, Snapshot};
use shunt_core::status::{
    AgentStatus, BytesByPath, Connections, PodsStatus, StatusReport, WorkloadStatus,
};
use shunt_core::workload::{WorkloadId, WorkloadName};
use shunt_intercept::ebpf::DirectEvents;
use shunt_proxy::FlowSink;

use super::api::Known;
use super::direct::DirectFlows;
use super::taps::{self, Taps};
use crate::ipc::{Counted, EnrolledView, StateChanges, States, Traffic, WorkloadInfo};

/// Owned by the control thread; workers see only its snapshots and counters.
#[derive(Debug)]
pub(super) struct View {
    pub(super) config: Config,
    pub(super) supervisor_pid: u32,
    supervisor_version: String,
    /// Of earlier data planes.
    pub(super) retired: Vec<u32>,
    /// The supervisor's age, and when that was.
    uptime: (Duration, Instant),
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    /// By worker: of the snapshot that it has seen.
    pub(super) generations: Arc<[AtomicU64]>,
    pub(super) counters: Arc<AgentCounters>,
    pub(super) infos: BTreeMap<WorkloadName, WorkloadInfo>,
    pods: Option<PodsStatus>,
    /// The supervisor has said who is enrolled.
    pub(super) told: bool,
    /// It has also closed the gates.
    pub(super) captures: bool,
    /// What others count.
    pub(super) counted: Counted,
    /// Once the programs are loaded.
    direct: Option<DirectFlows>,
    pub(super) taps: Arc<Taps>,
    /// Once something may go past the TCP stack.
    pub(super) kernel_tap: Option<taps::Kernel>,
    services: Arc<Services>,
    policy: Arc<Policy>,
    proxy: Arc<Tables>,
    /// What is said of it: Envoy's dump, JSON. Empty as long as there is none.
    pub(super) dump: String,
    pub(super) known: Known,
    enrolled: BTreeMap<WorkloadId, Arc<Enrolled>>,
    /// By name, so that the numbers of a workload survive its being enrolled anew. Gone with its name and last flow.
    workload_counters: BTreeMap<WorkloadName, Arc<WorkloadCounters>>,
}

impl View {
    pub(super) fn new(
        config: Config,
        supervisor_pid: u32,
        supervisor_version: String,
        uptime: Duration,
    ) -> Self {
        let generations = (0..config.concurrency).map(|_| AtomicU64::new(0));
        let view = Self {
            generations: generations.collect(),
            config,
            supervisor_pid,
            supervisor_version,
            retired: Vec::new(),
            uptime: (uptime, Instant::now()),
            snapshot: Arc::default(),
            counters: Arc::default(),
            infos: BTreeMap::new(),
            pods: None,
            told: false,
            captures: false,
            counted: Counted::default(),
            direct: None,
            taps: Arc::default(),
            kernel_tap: None,
            services: Arc::default(),
            policy: Arc::default(),
            proxy: Arc::default(),
            dump: String::new(),
            known: Known::default(),
            enrolled: BTreeMap::new(),
            workload_counters: BTreeMap::new(),
        };
        view.publish();
        view
    }

    /// What a reload changes in a running data plane.
    pub(super) fn set_live(
        &mut self,
        timeouts: Timeouts,
        limits: Limits,
        splice_after: Option<u64>,
    ) {
        (self.config.timeouts, self.config.limits) = (timeouts, limits);
        self.config.splice_after = splice_after;
        self.publish();
    }

    /// New connections see the new services and the new policy, and never one without the other.
    pub(super) fn set_traffic(&mut self, traffic: Traffic) {
        let Traffic { services, policy } = traffic;
        self.services = Arc::new(Services::new(&services, &self.services));
        self.policy = Arc::new(Policy::new(policy.clone()));
        (self.config.services, self.config.policy) = (services, policy);
        self.publish();
    }

    /// New connections are served by it.
    pub(super) fn set_bootstrap(&mut self, bootstrap: Bootstrap) {
        self.proxy = Arc::new(Tables::new(bootstrap, &self.proxy));
        self.publish();
    }

    pub(super) fn set_dump(&mut self, dump: String) {
        self.known = Known::of(&dump);
        self.dump = dump;
    }

    pub(super) fn enrol(&mut self, view: EnrolledView) {
        let counters = Arc::clone(self.workload_counters.entry(view.name.clone()).or_default());
        let withdrawn = match self.enrolled.get(&view.id) {
            Some(known) => Arc::clone(&known.withdrawn),
            None => Arc::new(AtomicBool::new(false)),
        };
        let enrolled = Enrolled {
            id: view.id,
            name: view.name,
            labels: view.labels,
            mode: view.mode,
            addresses: view.addresses,
            owns_addresses: view.owns_addresses,
            inbound: view.inbound,
            transparent: view.transparent,
            handoff: view.handoff,
            proxy: None,
            counters,
            withdrawn,
        };
        self.enrolled.insert(enrolled.id, Arc::new(enrolled));
        self.publish();
    }

    /// Keeps the books of direct connections from now on. A second time is ignored: the supervisor loads the programs
    /// once in its life.
    pub(super) fn follow(&mut self, events: DirectEvents, sink: FlowSink) {
        let counters = &self.counters;
        self.direct
            .get_or_insert_with(|| DirectFlows::new(events, sink, Arc::clone(counters)));
    }

    /// Somebody else keeps the books of direct connections from now on.
    pub(super) fn leave_the_books(&mut self) {
        self.catch_up();
        self.direct = None;
        self.kernel_tap = None;
    }

    /// Reads what the kernel has told of direct connections. Says how much.
    pub(super) fn catch_up(&mut self) -> usize {
        let snapshot = self.snapshot.load();
        let direct = self.direct.as_mut();
        direct.map_or(0, |direct| direct.catch_up(&snapshot))
    }

    /// The hooks are gone, and tell no more of connections of these workloads.
    pub(super) fn let_go(&mut self, of: impl Fn(WorkloadId) -> bool) {
        self.catch_up();
        if let Some(direct) = &mut self.direct {
            direct.let_go(of);
        }
    }

    /// The workload stays known, for its flows, but owns no address any more.
    pub(super) fn withdraw(&mut self, id: WorkloadId) {
        self.let_go(|of| of == id);
        let Some(known) = self.enrolled.get(&id) else {
            return;
        };
        known.withdrawn.store(true, Ordering::Relaxed);
        let homeless = Enrolled {
            addresses: Vec::new(),
            ..Enrolled::clone(known)
        };
        self.enrolled.insert(id, Arc::new(homeless));
        self.publish();
    }

    pub(super) fn forget(&mut self, id: WorkloadId) {
        self.enrolled.remove(&id);
        self.forget_numbers();
        self.publish();
    }

    /// Who is enrolled, as the supervisor sees it.
    pub(super) fn told(&mut self, states: States) {
        let workloads = states.workloads.into_iter();
        self.infos = workloads.map(|info| (info.name.clone(), info)).collect();
        (self.pods, self.retired, self.told) = (states.pods, states.retired, true);
        self.forget_numbers();
    }

    /// The same, of some.
    pub(super) fn told_changes(&mut self, changes: StateChanges) {
        for info in changes.changed {
            self.infos.insert(info.name.clone(), info);
        }
        for name in &changes.gone {
            self.infos.remove(name);
        }
        (self.pods, self.retired) = (changes.pods, changes.retired);
        if !changes.gone.is_empty() {
            self.forget_numbers();
        }
    }

    /// Pods come and go under ever new names.
    fn forget_numbers(&mut self) {
        let known: BTreeSet<&WorkloadName> = self
            .infos
            .keys()
            .chain(self.enrolled.values().map(|enrolled| &enrolled.name))
            .collect();
        self.workload_counters
            .retain(|name, _| known.contains(name));
    }

    fn publish(&self) {
        let generation = self.snapshot.load().generation + 1;
        let config = &self.config;
        let mut next = Snapshot::new(
            generation,
            config.timeouts,
            config.limits,
            config.splice_after,
            self.enrolled.clone(),
        );
        next.services = Arc::clone(&self.services);
        next.policy = Arc::clone(&self.policy);
        next.proxy = Arc::clone(&self.proxy);
        self.snapshot.store(Arc::new(next));
    }

    pub(super) fn report(&self) -> StatusReport {
        // Not by the time of day, which may be set.
        let (uptime, then) = self.uptime;
        StatusReport {
            agent: AgentStatus {
                version: self.supervisor_version.clone(),
                worker_version: env!("CARGO_PKG_VERSION").to_owned(),
                uptime_seconds: (uptime + then.elapsed()).as_secs(),
                pid: self.supervisor_pid,
                worker_pid: std::process::id(),
                retired_pids: self.retired.clone(),
                generation: self.snapshot.load().generation,
                worker_generations: self
                    .generations
                    .iter()
                    .map(|of| of.load(Ordering::Relaxed))
                    .collect(),
                pods: self.pods.clone(),
            },
            workloads: self
                .infos
                .values()
                .map(|info| self.workload_status(info))
                .collect(),
        }
    }

    pub(super) fn workload_status(&self, info: &WorkloadInfo) -> WorkloadStatus {
        let mut connections = Connections::default();
        let mut bytes = BytesByPath::default();
        if let Some(counters) = self.workload_counters.get(&info.name) {
            for flows in [&counters.outbound, &counters.inbound] {
                connections.active += flows.active();
                connections.total += flows.total.load(Ordering::Relaxed);
                for path in DataPath::ALL {
                    let on = flows.on(path);
                    let moved =
                        on.received.load(Ordering::Relaxed) + on.sent.load(Ordering::Relaxed);
                    bytes.add(path, moved);
                }
            }
        }
        WorkloadStatus {
            name: info.name.name.clone(),
            namespace: info.name.namespace.clone(),
            netns: info.netns.clone(),
            labels: info.labels.clone(),
            mode: info.mode,
            mode_reason: info.mode_reason.clone(),
            state: info.state,
            state_reason: info.state_reason.clone(),
            notes: info.notes.clone(),
            listeners: info.listeners.clone(),
            acceleration: info.acceleration.clone(),
            connections,
            bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use shunt_core::status::{StatusMode, WorkloadState};
    use shunt_core::workload::{CapturePolicy, Mode};

    use super::*;

    fn name(of: &str) -> WorkloadName {
        WorkloadName {
            namespace: "default".into(),
            name: of.into(),
        }
    }

    fn info(of: &str) -> WorkloadInfo {
        WorkloadInfo {
            name: name(of),
            netns: String::new(),
            labels: BTreeMap::new(),
            mode: StatusMode::Ebpf,
            mode_reason: String::new(),
            notes: Vec::new(),
            state: WorkloadState::Ready,
            state_reason: String::new(),
            listeners: Vec::new(),
            acceleration: BTreeMap::new(),
        }
    }

    fn enrolled(id: u32, of: &str) -> EnrolledView {
        EnrolledView {
            id: WorkloadId(id),
            name: name(of),
            labels: BTreeMap::new(),
            mode: Mode::Ebpf,
            addresses: Vec::new(),
            owns_addresses: true,
            inbound: CapturePolicy::default(),
            transparent: true,
            handoff: true,
        }
    }

    fn states(workloads: Vec<WorkloadInfo>) -> States {
        States {
            workloads,
            pods: None,
            retired: Vec::new(),
        }
    }

    #[test]
    fn numbers_survive_a_new_enrolment_and_go_with_the_name() {
        let mut view = View::new(Config::default(), 1, String::new(), Duration::ZERO);
        view.told(states(vec![info("pod")]));
        view.enrol(enrolled(1, "pod"));
        let first = Arc::clone(&view.enrolled[&WorkloadId(1)].counters);
        view.withdraw(WorkloadId(1));
        view.forget(WorkloadId(1));
        view.enrol(enrolled(2, "pod"));
        assert!(Arc::ptr_eq(&first, &view.enrolled[&WorkloadId(2)].counters));
        // Its name goes first, its last flow later.
        view.told_changes(StateChanges {
            gone: vec![name("pod")],
            ..StateChanges::default()
        });
        assert_eq!((view.infos.len(), view.workload_counters.len()), (0, 1));
        view.forget(WorkloadId(2));
        assert!(view.workload_counters.is_empty());
    }
}
