//! Changes over the admin API are answered when they are in force, or when it is clear that this will take longer:
//! whoever was told "done" may rely on it with the next connection.

use shunt_cni_protocol::Reply;
use shunt_core::config::file::conflict;
use shunt_core::workload::{WorkloadName, WorkloadSpec};
use tokio::sync::oneshot;

use super::Supervisor;
use super::data_plane::PlaneId;
use super::lifecycle::Phase;
use crate::ipc::{Outcome, ToWorker};

/// Somebody waits for a workload to be what is wished.
#[derive(Debug)]
pub(super) struct Asked {
    asker: Asker,
    name: WorkloadName,
}

#[derive(Debug)]
pub(super) enum Asker {
    /// Over the admin API: this data plane, by this ticket.
    Admin(PlaneId, u64),
    Plugin(oneshot::Sender<Reply>),
}

impl Asker {
    fn has_left(&self) -> bool {
        match self {
            Self::Admin(..) => false,
            Self::Plugin(reply) => reply.is_closed(),
        }
    }
}

impl Supervisor {
    /// Notes the wish. The error says why it cannot be one.
    pub(super) fn put(&mut self, spec: WorkloadSpec) -> Result<WorkloadName, String> {
        if let Some(reason) = self.pod_refuses(&spec.name) {
            return Err(format!("{}: {reason}", spec.name));
        }
        self.may_put(&spec)?;
        let name = spec.name.clone();
        self.desire(spec);
        self.pod_put_in(&name);
        Ok(name)
    }

    /// The error says who else is there.
    pub(super) fn may_put(&self, spec: &WorkloadSpec) -> Result<(), String> {
        let mut others = self.workloads.values().map(|workload| &workload.spec);
        if spec.shares_netns() {
            return conflict(others, spec).map_or(Ok(()), Err);
        }
        let taken = others.find(|other| other.netns == spec.netns && other.name != spec.name);
        if let Some(other) = taken {
            let (netns, name) = (spec.netns.display(), &other.name);
            return Err(format!("{netns} is already enrolled as {name}"));
        }
        Ok(())
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
    pub(super) fn promise(&mut self, asker: Asker, noted: Result<WorkloadName, String>) {
        match noted {
            Ok(name) => {
                self.publish_one(&name);
                self.asked.push(Asked { asker, name });
            }
            Err(refused) => self.answer(asker, Err(refused)),
        }
        self.answer_asked();
    }

    /// Answers those whose wish came true, or failed once.
    pub(super) fn answer_asked(&mut self) {
        // Whoever has left has left his place to others, too.
        self.unconfirmed.retain(|(_, reply, _)| !reply.is_closed());
        self.asked.retain(|asked| !asked.asker.has_left());
        for asked in std::mem::take(&mut self.asked) {
            match self.outcome(&asked.name) {
                Some(outcome) => self.answer(asked.asker, Ok(outcome)),
                None => self.asked.push(asked),
            }
        }
    }

    pub(super) fn answer(&mut self, asker: Asker, result: Result<Outcome, String>) {
        match asker {
            Asker::Admin(plane, ticket) => {
                let answer = ToWorker::Changed { ticket, result };
                self.data_plane.tell_one(plane, answer);
            }
            Asker::Plugin(reply) => {
                let told = match result {
                    Ok(Outcome::InForce) => Reply::Done,
                    Ok(Outcome::Later(reason)) => Reply::NotYet(reason),
                    Err(reason) => Reply::Refused(reason),
                };
                self.reply_once_known(reply, told);
            }
        }
    }

    /// The data plane shall know it before the plugin does: the next connection may be one that it serves.
    pub(super) fn reply_once_known(&mut self, reply: oneshot::Sender<Reply>, told: Reply) {
        match self.data_plane.awaited() {
            Some(number) => self.unconfirmed.push((number, reply, told)),
            // Who does not wait any more is not told. A data plane to come is told everything before it does anything.
            None => drop(reply.send(told)),
        }
    }

    pub(super) fn acknowledged(&mut self, plane: PlaneId, number: u64) {
        self.data_plane.acknowledged(plane, number);
        self.known(plane, number);
    }

    /// This data plane has carried out everything up to the message of this number.
    pub(super) fn known(&mut self, plane: PlaneId, number: u64) {
        for ((of, waits_for), reply, told) in std::mem::take(&mut self.unconfirmed) {
            if of == plane && waits_for <= number {
                // Who does not wait any more is not told.
                let _ = reply.send(told);
            } else {
                self.unconfirmed.push(((of, waits_for), reply, told));
            }
        }
    }

    /// This data plane is dead, and with it whoever asked over the admin API.
    pub(super) fn forget_admins(&mut self, plane: PlaneId) {
        // The next one is told everything before it does anything.
        self.known(plane, u64::MAX);
        self.asked
            .retain(|asked| !matches!(asked.asker, Asker::Admin(of, _) if of == plane));
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
