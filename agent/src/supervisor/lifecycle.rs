//! From wish to served and back. What a workload goes through:
//!
//! ```text
//!            .--- retry, slower and slower ---.
//!            v                                |
//! wished -> Waiting ---- Serving::start ------+--> Serving --- changed in place --> Serving
//!            ^                                        |
//!            '--- namespace replaced, mode changed ---+--- withdrawn --> leaving list: hooks off, listeners close
//!                 (after the old listeners closed)                       when their queues are empty, flows end
//! ```

use std::time::{Duration, Instant};

use shunt_core::status::WorkloadState;
use shunt_core::workload::{Mode, OnFailure, WorkloadId, WorkloadName, WorkloadSpec};
use shunt_intercept::netns::Netns;
use shunt_intercept::{InterceptError, return_path};

use super::Supervisor;
use super::enrolment::{Serving, is_in_use};
use crate::ipc::ToWorker;

const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Workload {
    pub(super) spec: WorkloadSpec,
    pub(super) phase: Phase,
}

#[derive(Debug)]
pub(super) enum Phase {
    Waiting {
        retry_at: Instant,
        pause: Duration,
        state: WorkloadState,
        reason: String,
    },
    Serving(Box<Serving>),
}

impl Phase {
    /// To be tried at once.
    pub(super) fn due() -> Self {
        Self::Waiting {
            retry_at: Instant::now(),
            pause: FIRST_RETRY,
            state: WorkloadState::Pending,
            reason: "being enrolled".into(),
        }
    }
}

impl Supervisor {
    /// Makes `spec` the wish for its workload, and tries to fulfil it.
    pub(super) fn desire(&mut self, spec: WorkloadSpec) {
        let name = spec.name.clone();
        match self.workloads.remove(&name) {
            None => {
                self.workloads.insert(name, Workload::new(spec));
            }
            Some(Workload {
                phase: Phase::Serving(mut serving),
                spec: old,
            }) => {
                if old == spec {
                    self.workloads.insert(
                        name,
                        Workload {
                            spec,
                            phase: Phase::Serving(serving),
                        },
                    );
                } else if changes_in_place(&old, &spec) {
                    serving.enrolment.spec = spec.clone();
                    self.refresh(&serving);
                    self.workloads.insert(
                        name,
                        Workload {
                            spec,
                            phase: Phase::Serving(serving),
                        },
                    );
                } else {
                    self.leave(serving);
                    self.workloads.insert(name, Workload::new(spec));
                }
            }
            Some(_) => {
                self.workloads.insert(name, Workload::new(spec));
            }
        }
        self.retry();
    }

    pub(super) fn withdraw(&mut self, name: &WorkloadName) {
        let Some(workload) = self.workloads.remove(name) else {
            return;
        };
        tracing::info!(workload = %name, "withdrawn");
        if let Phase::Serving(serving) = workload.phase {
            self.leave(serving);
        }
    }

    /// Tries whoever waits and is due.
    pub(super) fn retry(&mut self) {
        let now = Instant::now();
        let due: Vec<WorkloadName> = self
            .workloads
            .values()
            .filter(|workload| matches!(&workload.phase, Phase::Waiting { retry_at, .. } if *retry_at <= now))
            // The old listeners of the same namespace close first: two generations must not share a port.
            .filter(|workload| {
                !self.leaving.iter().any(|old| {
                    old.claim.is_some() && old.enrolment.netns.path() == workload.spec.netns
                })
            })
            .map(|workload| workload.spec.name.clone())
            .collect();
        for name in due {
            if let Some(workload) = self.workloads.remove(&name) {
                let workload = self.enrol(workload);
                self.workloads.insert(name, workload);
            }
        }
    }

    /// Dead agents go on refusing only for workloads that want it and are not served yet.
    pub(super) fn take_over(&mut self) {
        if self.remains.is_empty() {
            return;
        }
        let closed = |workload: &&Workload| workload.spec.on_failure == OnFailure::Closed;
        let waiting = self.workloads.values().filter(closed);
        let waiting = waiting.filter(|workload| workload.serving().is_none());
        let namespaces: Vec<u64> = waiting
            .filter_map(|workload| Netns::open(&workload.spec.netns).ok())
            .map(|netns| netns.cookie())
            .collect();
        self.remains
            .retain(|remains| remains.keep_only(&namespaces));
    }

    fn enrol(&mut self, workload: Workload) -> Workload {
        let Workload { spec, phase } = workload;
        let id = WorkloadId(self.next_id);
        self.next_id += 1;
        let phase = match Serving::start(&spec, id, &self.config, &mut self.backends) {
            Ok(serving) => {
                tracing::info!(
                    workload = %spec.name, mode = serving.mode.as_str(), reason = serving.mode_reason,
                    netns = %spec.netns.display(), "enrolled"
                );
                if serving.mode == Mode::Ebpf {
                    self.tell_destinations();
                }
                self.introduce(&serving);
                if self.data_plane.alive() {
                    self.backends.keep_alive();
                }
                Phase::Serving(Box::new(serving))
            }
            Err(error) => wait_longer(&spec, phase, &error),
        };
        Workload { spec, phase }
    }

    /// Hooks and policy of a served workload follow its (changed) spec and addresses.
    fn refresh(&mut self, serving: &Serving) {
        let name = &serving.enrolment.spec.name;
        match self
            .backends
            .get(serving.mode)
            .map(|backend| backend.update(&serving.enrolment))
        {
            Ok(Ok(())) => tracing::info!(workload = %name, "changed"),
            Ok(Err(error)) => {
                tracing::error!(workload = %name, error = error.chain(), "cannot change; the old policy stays");
            }
            Err(reason) => tracing::error!(workload = %name, reason, "cannot change"),
        }
        self.data_plane
            .tell(&ToWorker::Enrol(serving.view()), Vec::new());
    }

    /// New connections of the workload go directly; what goes on goes on.
    fn leave(&mut self, serving: Box<Serving>) {
        match self
            .backends
            .get(serving.mode)
            .map(|backend| backend.release(&serving.enrolment))
        {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(
                workload = %serving.enrolment.spec.name, error = error.chain(), "not everything could be removed"
            ),
            Err(reason) => tracing::error!(reason, "cannot release"),
        }
        let id = serving.enrolment.id;
        self.leaving.push(*serving);
        if self.data_plane.is_running() {
            self.data_plane.tell(&ToWorker::Withdraw { id }, Vec::new());
        } else {
            self.listeners_closed(id);
            self.drained(id);
        }
    }

    pub(super) fn listeners_closed(&mut self, id: WorkloadId) {
        for serving in self
            .leaving
            .iter_mut()
            .filter(|serving| serving.enrolment.id == id)
        {
            serving.claim = None;
            serving.enrolment.listeners.clear();
        }
        self.retry();
    }

    pub(super) fn drained(&mut self, id: WorkloadId) {
        let Some(at) = self
            .leaving
            .iter()
            .position(|serving| serving.enrolment.id == id)
        else {
            return;
        };
        let mut serving = self.leaving.swap_remove(at);
        (serving.claim, serving.flows) = (None, None);
        // Served again, or an older data plane has flows there: whoever is last removes.
        if is_in_use(&serving.enrolment.netns) {
            return;
        }
        let finished = self
            .backends
            .get(serving.mode)
            .map(|backend| backend.finish(&serving.enrolment));
        let removed = return_path::remove(&serving.enrolment.netns, self.backends.marks.delivery);
        for result in [finished.unwrap_or(Ok(())), removed] {
            if let Err(error) = result {
                tracing::warn!(
                    workload = %serving.enrolment.spec.name, error = error.chain(), "not everything could be removed"
                );
            }
        }
    }

    /// The data plane is dead, and its flows with it.
    pub(super) fn flows_are_gone(&mut self) {
        let ids: Vec<WorkloadId> = self
            .leaving
            .iter()
            .map(|serving| serving.enrolment.id)
            .collect();
        for id in ids {
            self.listeners_closed(id);
            self.drained(id);
        }
    }

    /// At the end: nothing is captured any more.
    pub(super) fn release_everything(&mut self) {
        let names: Vec<WorkloadName> = self.workloads.keys().cloned().collect();
        for name in names {
            self.withdraw(&name);
        }
    }

    /// Compares what is served with the namespaces as they are now.
    pub(super) fn look(&mut self) {
        let names: Vec<WorkloadName> = self.workloads.keys().cloned().collect();
        for name in names {
            let Some(Workload { spec, phase }) = self.workloads.remove(&name) else {
                continue;
            };
            let phase = match phase {
                Phase::Serving(serving) => self.look_at(serving),
                waiting @ Phase::Waiting { .. } => waiting,
            };
            self.workloads.insert(name, Workload { spec, phase });
        }
    }

    fn look_at(&mut self, mut serving: Box<Serving>) -> Phase {
        let name = serving.enrolment.spec.name.clone();
        if !serving.enrolment.netns.is_current() {
            tracing::warn!(workload = %name, "its network namespace is gone or was replaced");
            self.leave(serving);
            return Phase::due();
        }
        match serving.enrolment.netns.addresses() {
            Ok(addresses) if addresses != serving.enrolment.addresses => {
                tracing::info!(workload = %name, ?addresses, "its addresses changed");
                serving.enrolment.addresses = addresses;
                self.refresh(&serving);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(workload = %name, error = error.chain(), "cannot look at its addresses");
            }
        }
        Phase::Serving(serving)
    }
}

impl Workload {
    pub(super) fn serving(&self) -> Option<&Serving> {
        match &self.phase {
            Phase::Serving(serving) => Some(serving),
            Phase::Waiting { .. } => None,
        }
    }
}

/// Only what the hooks read differs: no listener, attachment or namespace has to change.
fn changes_in_place(old: &WorkloadSpec, new: &WorkloadSpec) -> bool {
    old.netns == new.netns
        && old.cgroup == new.cgroup
        && old.mode == new.mode
        && old.on_failure == new.on_failure
}

fn wait_longer(spec: &WorkloadSpec, before: Phase, error: &InterceptError) -> Phase {
    let reason = error.chain();
    let (pause, told) = match before {
        Phase::Waiting { pause, reason, .. } => (pause, reason),
        Phase::Serving(_) => (FIRST_RETRY, String::new()),
    };
    if told != reason {
        tracing::warn!(workload = %spec.name, reason, "cannot be enrolled yet; the others are served, this one is retried");
    }
    let state = match error {
        InterceptError::Unsupported(_) => WorkloadState::Failed,
        _ => WorkloadState::Pending,
    };
    let retry_at = Instant::now() + pause;
    Phase::Waiting {
        retry_at,
        pause: (pause * 2).min(LAST_RETRY),
        state,
        reason,
    }
}
