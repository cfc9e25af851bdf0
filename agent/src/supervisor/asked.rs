//! Changes over the admin API are answered when they are in force, or when it is clear that this will take longer:
//! whoever was told "done" may rely on it with the next connection.

use shunt_core::workload::{WorkloadName, WorkloadSpec};

use super::Supervisor;
use super::lifecycle::Phase;
use crate::ipc::{Outcome, ToWorker};

/// Somebody waits for a workload to be what is wished.
#[derive(Debug)]
pub(super) struct Asked {
    ticket: u64,
    name: WorkloadName,
}

impl Supervisor {
    /// Notes the wish. The error says why it cannot be one.
    pub(super) fn put(&mut self, spec: WorkloadSpec) -> Result<WorkloadName, String> {
        let mut others = self.workloads.values().map(|workload| &workload.spec);
        let taken = others.find(|other| other.netns == spec.netns && other.name != spec.name);
        if let Some(other) = taken {
            let (netns, name) = (spec.netns.display(), &other.name);
            return Err(format!("{netns} is already enrolled as {name}"));
        }
        let name = spec.name.clone();
        self.desire(spec);
        self.fulfil(&name);
        Ok(name)
    }

    /// As [`Supervisor::put`].
    pub(super) fn delete(&mut self, name: &WorkloadName) -> Result<WorkloadName, String> {
        if !self.workloads.contains_key(name) {
            return Err(format!("no workload {name}"));
        }
        self.withdraw(name);
        self.pod_taken_out(name);
        Ok(name.clone())
    }

    /// Answers now or later.
    pub(super) fn promise(&mut self, ticket: u64, noted: Result<WorkloadName, String>) {
        self.publish();
        match noted {
            Ok(name) => self.asked.push(Asked { ticket, name }),
            Err(refused) => self.answer(ticket, Err(refused)),
        }
        self.answer_asked();
    }

    /// Answers those whose wish came true, or failed once.
    pub(super) fn answer_asked(&mut self) {
        for asked in std::mem::take(&mut self.asked) {
            match self.outcome(&asked.name) {
                Some(outcome) => self.answer(asked.ticket, Ok(outcome)),
                None => self.asked.push(asked),
            }
        }
    }

    pub(super) fn answer(&mut self, ticket: u64, result: Result<Outcome, String>) {
        let answer = ToWorker::Changed { ticket, result };
        self.data_plane.tell(&answer, Vec::new());
    }

    /// `None`: nobody knows yet. As long as the gates are open, whoever is served connects directly.
    fn outcome(&self, name: &WorkloadName) -> Option<Outcome> {
        let old = self.leaving.iter().filter(|leaving| leaving.is_of(name));
        if let Some(retry) = old.filter_map(|leaving| leaving.captures_until()).next() {
            let reason = "what was in force cannot be released yet";
            return retry.failed().then(|| Outcome::Later(reason.into()));
        }
        match self.workloads.get(name).map(|workload| &workload.phase) {
            None => Some(Outcome::InForce),
            Some(Phase::Serving { change: None, .. }) => self.captures.then_some(Outcome::InForce),
            Some(Phase::Serving {
                change: Some(retry),
                ..
            }) => {
                let reason = "cannot change yet; the old policy stays";
                retry.failed().then(|| Outcome::Later(reason.into()))
            }
            Some(Phase::Waiting { retry, reason, .. }) => {
                retry.failed().then(|| Outcome::Later(reason.clone()))
            }
        }
    }
}
