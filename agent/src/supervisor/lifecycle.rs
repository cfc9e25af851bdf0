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

use shunt_core::sockets::{Family, SocketRole, SocketWant};
use shunt_core::status::{StatusMode, WorkloadState};
use shunt_core::workload::{Mode, WorkloadId, WorkloadName, WorkloadSpec};
use shunt_intercept::{InterceptError, return_path};

use super::Supervisor;
use super::enrolment::Serving;
use crate::ipc::{MAX_FDS, ToWorker, WorkloadInfo};

/// Sockets per worker and kind that a fresh workload gets; busy ones ask for more.
const FIRST_STOCK: usize = 4;
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
    Serving(Serving),
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
                    self.tell_handshakes();
                }
                self.introduce(&serving);
                if self.data_plane.alive() {
                    self.backends.keep_alive();
                }
                Phase::Serving(serving)
            }
            Err(error) => wait_longer(&spec, phase, &error),
        };
        Workload { spec, phase }
    }

    /// Tells the data plane of a workload: what it is, where it listens, sockets to begin with.
    fn introduce(&mut self, serving: &Serving) {
        self.data_plane
            .tell(&ToWorker::Enrol(serving.view()), Vec::new());
        for listener in &serving.enrolment.listeners {
            match Serving::listener_fds(listener) {
                Ok(fds) => self
                    .data_plane
                    .tell(&ToWorker::Listen(listener.spec.clone()), fds),
                Err(error) => tracing::error!(%error, "cannot share a listener"),
            }
        }
        let families: Vec<Family> = [Family::V4, Family::V6]
            .into_iter()
            .filter(|family| {
                serving
                    .enrolment
                    .listeners
                    .iter()
                    .any(|l| Family::of(l.spec.addr) == *family)
            })
            .collect();
        for worker in 0..self.config.concurrency {
            for role in [SocketRole::Upstream, SocketRole::Delivery] {
                for &family in &families {
                    let want = SocketWant {
                        workload: serving.enrolment.id,
                        role,
                        family,
                    };
                    self.data_plane
                        .stock(serving, self.backends.marks, worker, want, FIRST_STOCK);
                }
            }
        }
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
    fn leave(&mut self, serving: Serving) {
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
        self.leaving.push(serving);
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
        let serving = self.leaving.swap_remove(at);
        let inode = serving.enrolment.netns.inode();
        let served_again = self
            .servings()
            .chain(&self.leaving)
            .any(|other| other.enrolment.netns.inode() == inode);
        if served_again {
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

    fn look_at(&mut self, mut serving: Serving) -> Phase {
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

    /// The data plane's stock of a workload runs low.
    pub(super) fn supply(&mut self, worker: usize, want: SocketWant, count: usize) {
        let serving = self
            .workloads
            .values()
            .filter_map(|workload| match &workload.phase {
                Phase::Serving(serving) => Some(serving),
                Phase::Waiting { .. } => None,
            })
            .chain(&self.leaving)
            .find(|serving| serving.enrolment.id == want.workload);
        match serving {
            Some(serving) => {
                let count = count.min(MAX_FDS);
                self.data_plane
                    .stock(serving, self.backends.marks, worker, want, count);
            }
            None => {
                let error = "the workload was withdrawn".to_owned();
                self.data_plane.tell(
                    &ToWorker::StockFailed {
                        worker,
                        want,
                        error,
                    },
                    Vec::new(),
                );
            }
        }
    }

    /// A new data plane knows nothing.
    pub(super) fn tell_everything(&mut self) {
        self.tell_handshakes();
        let workloads = std::mem::take(&mut self.workloads);
        for workload in workloads.values() {
            if let Phase::Serving(serving) = &workload.phase {
                self.introduce(serving);
            }
        }
        self.workloads = workloads;
        self.data_plane.forget_published();
        self.tell_settings();
        self.publish();
    }

    fn tell_handshakes(&mut self) {
        if let Some(map) = self.backends.handshakes() {
            self.data_plane.tell(&ToWorker::Handshakes, vec![map]);
        }
    }

    /// Sends what `status` and the metrics show, where it differs from what was sent last.
    pub(super) fn publish(&mut self) {
        let states = self.workloads.values().map(info).collect();
        self.data_plane.publish_states(states);
        self.data_plane
            .publish_counters(self.backends.events(), self.repairs.clone());
    }

    fn servings(&self) -> impl Iterator<Item = &Serving> {
        self.workloads
            .values()
            .filter_map(|workload| match &workload.phase {
                Phase::Serving(serving) => Some(serving),
                Phase::Waiting { .. } => None,
            })
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

fn info(workload: &Workload) -> WorkloadInfo {
    let netns = workload.spec.netns.display().to_string();
    let name = workload.spec.name.clone();
    match &workload.phase {
        Phase::Serving(serving) => WorkloadInfo {
            name,
            netns,
            mode: match serving.mode {
                Mode::Ebpf => StatusMode::Ebpf,
                Mode::Iptables => StatusMode::Iptables,
            },
            mode_reason: serving.mode_reason.clone(),
            state: WorkloadState::Ready,
            state_reason: String::new(),
            listeners: serving.listener_status(),
        },
        Phase::Waiting { state, reason, .. } => WorkloadInfo {
            name,
            netns,
            mode: StatusMode::Off,
            mode_reason: reason.clone(),
            state: *state,
            state_reason: reason.clone(),
            listeners: Vec::new(),
        },
    }
}
