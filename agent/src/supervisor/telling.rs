//! What the data plane is told: of workloads, sockets, and what `status` shows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use shunt_core::sockets::{Family, SocketRole, SocketWant};
use shunt_core::status::{OWNERSHIP, StatusMode, WorkloadState};
use shunt_core::workload::{Mode, WorkloadId, WorkloadName};

use super::Supervisor;
use super::data_plane::PlaneId;
use super::enrolment::Serving;
use super::lifecycle::{Phase, Workload};
use crate::ipc::{Counted, MAX_FDS, States, ToWorker, WorkloadInfo};

/// Sockets per worker and kind that a fresh workload gets; busy ones ask for more.
const FIRST_STOCK: usize = 4;

impl Supervisor {
    /// Tells the data plane of a workload: what it is, where it listens, sockets to begin with.
    pub(super) fn introduce(&mut self, serving: &Serving) {
        self.present(serving);
        self.equip(serving);
    }

    /// What it is.
    fn present(&mut self, serving: &Serving) {
        let flows = serving.flows.as_ref().map(UnixDatagram::try_clone);
        match flows.transpose() {
            Ok(flows) => {
                let fds = flows.into_iter().map(Into::into).collect();
                self.data_plane.tell(&ToWorker::Enrol(serving.view()), fds);
            }
            Err(error) => tracing::error!(%error, "cannot introduce a workload"),
        }
    }

    /// Where it listens, and sockets to begin with.
    fn equip(&mut self, serving: &Serving) {
        for listener in &serving.enrolment.listeners {
            match Serving::listener_fds(listener) {
                Ok(fds) => self
                    .data_plane
                    .tell(&ToWorker::Listen(listener.spec.clone()), fds),
                Err(error) => tracing::error!(%error, "cannot share a listener"),
            }
        }
        for listener in &serving.enrolment.dns {
            match listener.socket.try_clone() {
                Ok(fd) => self
                    .data_plane
                    .tell(&ToWorker::TakeQueries(listener.spec.clone()), vec![fd]),
                Err(error) => tracing::error!(%error, "cannot share a socket for queries"),
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
                    let (netns, marks) = (&serving.enrolment.netns, self.backends.marks);
                    self.data_plane
                        .stock(netns, marks, (worker, want), FIRST_STOCK);
                }
            }
        }
    }

    /// A data plane's stock of a workload runs low.
    pub(super) fn supply(&mut self, plane: PlaneId, worker: usize, want: SocketWant, count: usize) {
        let count = count.min(MAX_FDS);
        let marks = self.backends.marks;
        if want.workload == WorkloadId::NODE {
            let netns = &self.served.netns;
            return self
                .data_plane
                .stock_one(plane, netns, marks, (worker, want), count);
        }
        let serving = self.served(want.workload);
        let netns = serving.map(|serving| Arc::clone(&serving.enrolment.netns));
        match netns.or_else(|| self.backends.inherited.netns(want.workload)) {
            Some(netns) => {
                self.data_plane
                    .stock_one(plane, &netns, marks, (worker, want), count);
            }
            None => {
                let error = "the workload was withdrawn".to_owned();
                let failed = ToWorker::StockFailed {
                    worker,
                    want,
                    error,
                };
                self.data_plane.tell_one(plane, failed);
            }
        }
    }

    /// Whom a query was for that rules led from `client` to `listener`; the error is for people.
    pub(super) fn resolver(
        &mut self,
        workload: WorkloadId,
        listener: SocketAddr,
        client: SocketAddr,
    ) -> Result<SocketAddr, String> {
        let serving = self.served(workload).ok_or("the workload was withdrawn")?;
        let (mode, netns) = (serving.mode, Arc::clone(&serving.enrolment.netns));
        let backend = self.backends.get(mode)?;
        let resolver = backend.resolver(&netns, listener, client);
        resolver.map_err(|error| error.chain())
    }

    fn served(&self, id: WorkloadId) -> Option<&Serving> {
        let served = self.workloads.values().filter_map(Workload::serving);
        let leaving = self.leaving.iter().map(|leaving| &leaving.serving);
        served
            .chain(leaving)
            .find(|serving| serving.enrolment.id == id)
    }

    /// A new data plane knows nothing.
    pub(super) fn tell_everything(&mut self) {
        self.tell_destinations();
        self.tell_traffic();
        self.tell_node();
        let workloads = std::mem::take(&mut self.workloads);
        let leaving = std::mem::take(&mut self.leaving);
        let served = workloads.values().filter_map(Workload::serving);
        let captured = leaving.iter().filter(|leaving| leaving.still_captures());
        let everybody: Vec<&Serving> = served
            .chain(captured.map(|leaving| &leaving.serving))
            .collect();
        // Everybody first: who is served already must not take others' addresses for strangers', whom no rule is about.
        for serving in &everybody {
            self.present(serving);
        }
        for serving in everybody {
            self.equip(serving);
        }
        self.workloads = workloads;
        self.leaving = leaving;
        self.tell_settings();
        self.publish();
    }

    pub(super) fn tell_destinations(&mut self) {
        self.backends.maps_are_new = false;
        let maps = self.backends.destinations();
        if !maps.is_empty() {
            self.data_plane.tell(&ToWorker::Destinations, maps);
        }
        if let Some(map) = self.backends.resolvers() {
            self.data_plane.tell(&ToWorker::Resolvers, vec![map]);
        }
        if let Some(events) = self.backends.direct_events() {
            self.data_plane.tell(&ToWorker::DirectEvents, vec![events]);
        }
        let maps = self.backends.shortcuts();
        if !maps.is_empty() {
            self.data_plane.tell(&ToWorker::Shortcuts, maps);
        }
        let maps = self.backends.tap();
        if !maps.is_empty() {
            self.data_plane.tell(&ToWorker::Tap, maps);
        }
    }

    /// Sends what `status` and the metrics show, where it differs from what was sent last.
    pub(super) fn publish(&mut self) {
        let workloads = self.workloads.values();
        let workloads = workloads.map(|workload| self.info(workload));
        let workloads = workloads.chain(self.pods_not_enrolled()).collect();
        let pods = self.pods.status();
        let retired = self.data_plane.retired();
        self.data_plane.publish_states(&States {
            workloads,
            pods,
            retired,
        });
        self.publish_counters();
    }

    /// The same of one workload. Who else is concerned is told at the next tick.
    pub(super) fn publish_one(&mut self, name: &WorkloadName) {
        match self.workloads.get(name) {
            Some(workload) => {
                let info = self.info(workload);
                self.data_plane.publish_state(name, Some(&info));
            }
            // Or a pod that cannot be enrolled.
            None if self.pod_trouble(name).is_some() => self.publish(),
            None => self.data_plane.publish_state(name, None),
        }
        self.changed = true;
    }

    pub(super) fn info(&self, workload: &Workload) -> WorkloadInfo {
        let serving = workload.serving();
        let learned = serving.map(|serving| self.backends.classes(serving.enrolment.id));
        let mut info = info(workload, learned.unwrap_or_default());
        info.notes
            .extend(self.pod_trouble(&info.name).map(str::to_owned));
        info
    }

    pub(super) fn publish_counters(&mut self) {
        self.data_plane.publish_counters(&Counted {
            kernel: self.backends.events(),
            repairs: self.repairs.clone(),
            upgrades: self.upgrades.clone(),
        });
    }
}

fn notes(serving: &Serving) -> Vec<String> {
    let health = &serving.health;
    let notes = health.notes.iter().chain(&health.strays);
    let listeners = serving.enrolment.captured.summary();
    let notes = notes.chain(&health.shortcoming).cloned();
    notes.chain(listeners).collect()
}

fn info(workload: &Workload, learned: BTreeMap<String, u64>) -> WorkloadInfo {
    let netns = workload.spec.netns.display().to_string();
    let name = workload.spec.name.clone();
    let labels = workload.spec.labels.iter();
    let labels = labels
        .filter(|(key, _)| key.starts_with(OWNERSHIP))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    match &workload.phase {
        Phase::Serving { serving, .. } => WorkloadInfo {
            name,
            netns,
            labels,
            mode: match serving.mode {
                Mode::Ebpf => StatusMode::Ebpf,
                Mode::Iptables => StatusMode::Iptables,
            },
            mode_reason: serving.mode_reason.clone(),
            state: WorkloadState::Ready,
            state_reason: serving.health.reason.clone(),
            notes: notes(serving),
            listeners: serving.listener_status(),
            acceleration: learned,
        },
        Phase::Waiting { state, reason, .. } => WorkloadInfo {
            name,
            netns,
            labels,
            mode: StatusMode::Off,
            mode_reason: reason.clone(),
            state: *state,
            state_reason: reason.clone(),
            notes: Vec::new(),
            listeners: Vec::new(),
            acceleration: BTreeMap::new(),
        },
    }
}
