//! From wish to served and back. What a workload goes through:
//!
//! ```text
//!            .--- retry, slower and slower ---.
//!            v                                |
//! wished -> Waiting ---- Serving::start ------+--> Serving --- wish differs --> changed in place --> Serving
//!            ^                                        |
//!            '--- namespace replaced, mode changed ---+--- withdrawn --> `leaving`
//!                 (after the old listeners closed)
//! ```
//! Everything that takes time is one step for one workload, taken by the supervisor's loop between other events: a
//! change of hundreds of workloads does not keep sockets or signs of life from the others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shunt_core::status::WorkloadState;
use shunt_core::workload::{Mode, OnFailure, WorkloadName, WorkloadSpec};
use shunt_intercept::InterceptError;
use shunt_intercept::ebpf::workload_key;

use super::Supervisor;
use super::enrolment::{Ports, Serving, needs_proxy};
use super::leaving::Leaving;
use crate::ipc::ToWorker;

const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Workload {
    /// What is wished; [`Serving`] has what is in force.
    pub(super) spec: WorkloadSpec,
    pub(super) phase: Phase,
}

#[derive(Debug)]
pub(super) enum Phase {
    Waiting {
        retry: Retry,
        state: WorkloadState,
        reason: String,
    },
    Serving {
        serving: Box<Serving>,
        /// When what is in force shall be made what is wished; `None`: it is.
        change: Option<Retry>,
    },
}

/// When something is tried, and how long after a failure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retry {
    pub(super) at: Instant,
    pause: Duration,
}

impl Retry {
    pub(super) fn now() -> Self {
        Self {
            at: Instant::now(),
            pause: FIRST_RETRY,
        }
    }

    pub(super) fn after(pause: Duration) -> Self {
        Self {
            at: Instant::now() + pause,
            ..Self::now()
        }
    }

    /// It has been tried for most of a second.
    fn is_patient(&self) -> bool {
        self.pause >= FIRST_RETRY * 4
    }

    /// It was tried, and did not work.
    pub(super) fn failed(self) -> bool {
        self.pause > FIRST_RETRY
    }

    /// It failed: later, and later still the next time.
    pub(super) fn later(self) -> Self {
        Self {
            at: Instant::now() + self.pause,
            pause: (self.pause * 2).min(LAST_RETRY),
        }
    }
}

impl Workload {
    /// As the file and the admin API want it; to be tried at once.
    pub(super) fn new(spec: WorkloadSpec) -> Self {
        let phase = Phase::Waiting {
            retry: Retry::now(),
            state: WorkloadState::Pending,
            reason: "being enrolled".into(),
        };
        Self { spec, phase }
    }

    pub(super) fn serving(&self) -> Option<&Serving> {
        match &self.phase {
            Phase::Serving { serving, .. } => Some(serving),
            Phase::Waiting { .. } => None,
        }
    }

    pub(super) fn serving_mut(&mut self) -> Option<&mut Serving> {
        match &mut self.phase {
            Phase::Serving { serving, .. } => Some(serving),
            Phase::Waiting { .. } => None,
        }
    }

    fn due(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Waiting { retry, .. } => Some(retry.at),
            Phase::Serving { serving, change } => {
                let change = change.map(|retry| retry.at);
                change.into_iter().chain(serving.health.repair_due()).min()
            }
        }
    }
}

impl Supervisor {
    /// Makes `spec` the wish for its workload. A later step fulfils it.
    pub(super) fn desire(&mut self, spec: WorkloadSpec) {
        let name = spec.name.clone();
        let workload = match self.workloads.remove(&name) {
            Some(Workload {
                phase: Phase::Serving { serving, change },
                ..
            }) => {
                if changes_in_place(&serving.enrolment.spec, &spec) {
                    // What counts for every workload may be wished of it already.
                    let differs = serving.enrolment.spec != spec;
                    let change = differs.then(Retry::now).or(change);
                    let phase = Phase::Serving { serving, change };
                    Workload { spec, phase }
                } else {
                    self.leave(*serving);
                    Workload::new(spec)
                }
            }
            Some(_) | None => Workload::new(spec),
        };
        self.workloads.insert(name, workload);
    }

    /// Something that counts for every workload changed.
    pub(super) fn desire_all_anew(&mut self) {
        for workload in self.workloads.values_mut() {
            if let Phase::Serving { change, .. } = &mut workload.phase {
                change.get_or_insert_with(Retry::now);
            }
        }
    }

    pub(super) fn withdraw(&mut self, name: &WorkloadName) {
        self.attachments.forget(name);
        self.take_out(name);
    }

    fn take_out(&mut self, name: &WorkloadName) {
        let Some(workload) = self.workloads.remove(name) else {
            return;
        };
        tracing::info!(workload = %name, "withdrawn");
        if let Phase::Serving { serving, .. } = workload.phase {
            self.leave(*serving);
        }
    }

    /// At the end: everybody leaves. Who was enrolled by CNI is remembered, for the next agent.
    pub(super) fn withdraw_everything(&mut self) {
        let names: Vec<WorkloadName> = self.workloads.keys().cloned().collect();
        for name in names {
            self.take_out(&name);
        }
    }

    /// When the next step is due.
    pub(super) fn next_step(&self) -> Option<Instant> {
        let leaving = self.leaving.iter().filter_map(Leaving::due);
        let workloads = self
            .workloads
            .values()
            .filter(|workload| self.may_step(workload));
        leaving.chain(workloads.filter_map(Workload::due)).min()
    }

    /// The one step that is due first.
    pub(super) fn step(&mut self) {
        let now = Instant::now();
        if self.step_of_leaving(now) {
            self.changed = true;
        } else {
            self.step_of_workload(now);
        }
        self.tell_hooks_of_others();
        self.answer_asked();
        self.say_in_force();
    }

    /// A connection into a workload that is steered by rules comes to the agent, whatever the hooks think.
    fn tell_hooks_of_others(&mut self) {
        let serving = self.workloads.values().filter_map(Workload::serving);
        let others = serving.filter(|serving| serving.mode == Mode::Iptables);
        let of = |serving: &Serving| {
            let enrolment = &serving.enrolment;
            (enrolment.netns.cookie(), enrolment.addresses.clone())
        };
        if self.backends.has_hooks() {
            self.backends.steered_by_rules(others.map(of).collect());
        }
    }

    fn step_of_workload(&mut self, now: Instant) {
        let due = |workload: &&Workload| workload.due().is_some_and(|at| at <= now);
        let next = self
            .workloads
            .values()
            .filter(due)
            .filter(|workload| self.may_step(workload))
            .min_by_key(|workload| workload.due())
            .map(|workload| workload.spec.name.clone());
        if let Some(name) = next {
            self.step_of(&name);
            self.publish_one(&name);
        }
    }

    /// The old listeners of the same namespace close first: two generations must not share a port.
    fn may_step(&self, workload: &Workload) -> bool {
        workload.serving().is_some()
            || !self
                .leaving
                .iter()
                .any(|old| old.holds_place_of(&workload.spec))
    }

    /// Enrols a workload, makes what is in force what is wished, or repairs it.
    fn step_of(&mut self, name: &WorkloadName) {
        let Some(Workload { spec, phase }) = self.workloads.remove(name) else {
            return;
        };
        let now = Instant::now();
        let workload = match phase {
            Phase::Waiting { retry, reason, .. } => {
                let phase = self.enrol(&spec, retry, &reason);
                Workload { spec, phase }
            }
            Phase::Serving { serving, change } if change.is_some_and(|change| change.at <= now) => {
                let phase = self.catch_up(&spec, serving, change);
                Workload { spec, phase }
            }
            Phase::Serving { serving, change } if serving.health.repair_due().is_some() => {
                self.repair(spec, serving, change)
            }
            phase @ Phase::Serving { .. } => Workload { spec, phase },
        };
        self.workloads.insert(name.clone(), workload);
    }

    /// Dead agents go on refusing only for workloads that want it and are not served yet.
    pub(super) fn take_over(&mut self) {
        if self.remains.is_empty() {
            return;
        }
        let closed = |workload: &&Workload| workload.spec.on_failure == OnFailure::Closed;
        let waiting = self.workloads.values().filter(closed);
        let waiting = waiting.filter(|workload| workload.serving().is_none());
        let keys: Vec<u64> = waiting
            .filter_map(|workload| {
                let netns = self.open_netns(&workload.spec).ok()?;
                Some(workload_key(&workload.spec, &netns))
            })
            .collect();
        self.remains.retain(|remains| remains.keep_only(&keys));
    }

    fn enrol(&mut self, spec: &WorkloadSpec, retry: Retry, told: &str) -> Phase {
        let ports = if retry.is_patient() {
            Ports::Any
        } else {
            Ports::Configured
        };
        let netns = self.open_netns(spec);
        let id = match &netns {
            Ok(netns) => self.backends.inherited.id(&spec.name, netns),
            Err(_) => None,
        };
        let id = id.unwrap_or_else(|| self.next_id());
        let served = netns.and_then(|netns| {
            let settings = (&self.config, ports);
            let captured = &self.served.captured;
            Serving::start(spec, id, netns, settings, captured, &mut self.backends)
        });
        match served {
            Ok(serving) => {
                if let Err(error) = self.watch.add(id, &serving.enrolment.netns) {
                    let error = error.chain();
                    tracing::warn!(workload = %spec.name, error, "changes by others are found later");
                }
                tracing::info!(
                    workload = %spec.name, mode = serving.mode.as_str(), reason = serving.mode_reason,
                    netns = %spec.netns.display(), "enrolled"
                );
                if self.backends.maps_are_new {
                    self.tell_destinations();
                }
                self.introduce(&serving);
                self.store(&serving);
                self.keep_gates();
                let serving = Box::new(serving);
                Phase::Serving {
                    serving,
                    change: None,
                }
            }
            Err(error) => wait_longer(spec, retry, told, &error),
        }
    }

    /// Hooks and policy of a served workload follow its wish and its addresses.
    fn catch_up(
        &mut self,
        spec: &WorkloadSpec,
        mut serving: Box<Serving>,
        change: Option<Retry>,
    ) -> Phase {
        self.backends.prepare(spec);
        let old = std::mem::replace(&mut serving.enrolment.spec, spec.clone());
        serving.enrolment.needs_proxy = needs_proxy(&self.config);
        serving.enrolment.captured = Arc::clone(&self.served.captured);
        let changed = self.backends.get(serving.mode).and_then(|backend| {
            backend
                .update(&serving.enrolment)
                .map_err(|error| error.chain())
        });
        let change = match changed {
            Ok(()) => {
                self.hear(Some(serving.enrolment.id));
                tracing::info!(workload = %spec.name, "changed");
                self.data_plane
                    .tell(&ToWorker::Enrol(serving.view()), Vec::new());
                None
            }
            Err(reason) => {
                tracing::error!(workload = %spec.name, reason, "cannot change yet; the old policy stays, this is retried");
                serving.enrolment.spec = old;
                Some(change.unwrap_or_else(Retry::now).later())
            }
        };
        Phase::Serving { serving, change }
    }

    /// The old service ends in order, a new one begins when it may.
    pub(super) fn enrol_anew(&mut self, name: &WorkloadName) {
        let Some(Workload { spec, phase }) = self.workloads.remove(name) else {
            return;
        };
        if let Phase::Serving { serving, .. } = phase {
            self.leave(*serving);
        }
        self.workloads.insert(name.clone(), Workload::new(spec));
        self.changed = true;
    }
}

/// Only what the hooks read differs: no listener, attachment or namespace has to change.
fn changes_in_place(old: &WorkloadSpec, new: &WorkloadSpec) -> bool {
    old.netns == new.netns
        && old.cgroup == new.cgroup
        && old.mode == new.mode
        && old.on_failure == new.on_failure
        && old.dns == new.dns
}

fn wait_longer(spec: &WorkloadSpec, retry: Retry, told: &str, error: &InterceptError) -> Phase {
    let reason = error.chain();
    if told != reason {
        tracing::warn!(workload = %spec.name, reason, "cannot be enrolled yet; the others are served, this one is retried");
    }
    let state = match error {
        InterceptError::Unsupported(_) => WorkloadState::Failed,
        _ => WorkloadState::Pending,
    };
    Phase::Waiting {
        retry: retry.later(),
        state,
        reason,
    }
}
