//! What the CNI plugin asks for. Its socket is the supervisor's own: a namespace comes with a request as a descriptor, and
//! only root can connect.

mod attachments;
mod door;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use shunt_cni_protocol::{Attachment, MAX_ATTACHMENTS, Reply, Request};
use shunt_core::status::WorkloadState;
use shunt_core::workload::{WorkloadName, WorkloadSpec};
use shunt_intercept::InterceptError;
use shunt_intercept::netns::Netns;

use self::attachments::Attached;
pub(super) use self::attachments::Attachments;
pub(super) use self::door::{Door, Visit};
use super::Supervisor;
use super::asked::Asker;
use super::lifecycle::{Phase, Workload};

impl Supervisor {
    /// Carries out what a visitor asks for; he hears of it when it is in force.
    pub(super) fn visited(&mut self, visit: Visit) {
        let Visit {
            request,
            netns,
            reply,
        } = visit;
        let noted = match request {
            Request::Add {
                attachment,
                netns: path,
                workload,
            } => self.attach(attachment, Path::new(&path), workload, netns),
            Request::Del { attachment } => self.detach(&attachment),
            Request::Check { attachment } => Err(self.check(&attachment, netns)),
            Request::Gc { network, valid } => {
                self.detach_others(&network, &valid);
                self.attachments.catch_up();
                return self.reply_once_known(reply, Reply::Done);
            }
            Request::Status => Err(self.readiness()),
        };
        // Whoever is told that it is done finds it written down.
        self.attachments.catch_up();
        match noted {
            Ok(name) => self.promise(Asker::Plugin(reply), Ok(name)),
            // Who does not wait any more is not told.
            Err(at_once) => drop(reply.send(at_once)),
        }
    }

    fn attach(
        &mut self,
        attachment: Attachment,
        path: &Path,
        workload: Value,
        netns: Option<OwnedFd>,
    ) -> Result<WorkloadName, Reply> {
        let netns = Arc::new(opened(netns, path)?);
        let spec = attachments::spec(&attachment, path, &workload, self.config.mode)
            .map_err(Reply::Refused)?;
        let name = spec.name.clone();
        if self.pod_refuses(&name).is_some() {
            tracing::info!(workload = %name, "left alone: the pod itself refuses");
            return Err(Reply::Done);
        }
        let same = |other: &Attached| other.netns.cookie() == netns.cookie();
        let taken = self
            .attachments
            .iter()
            .find(|(known, other)| **known != name && same(other));
        if let Some((other, _)) = taken {
            let text = format!("{} is already enrolled as {other}", path.display());
            return Err(Reply::Refused(text));
        }
        self.may_put(&spec).map_err(Reply::Refused)?;
        match self.attachments.get(&name) {
            // The pod's new sandbox, under its old one's path.
            Some(old) if !same(old) => self.withdraw(&name),
            None if self.attachments.len() >= MAX_ATTACHMENTS => {
                let text = format!("there are {MAX_ATTACHMENTS} already");
                return Err(Reply::Refused(text));
            }
            _ => {}
        }
        let attached = Attached {
            attachment,
            netns,
            workload,
        };
        self.attachments.insert(name.clone(), attached);
        // Again is the same as once: also what is tried later, slower and slower, goes on so.
        let is_wished = |known: &WorkloadSpec| {
            *known == spec || self.wished_of(&name).and_then(Result::ok).as_ref() == Some(known)
        };
        let known = self.workloads.get(&name);
        if !known.is_some_and(|workload| is_wished(&workload.spec)) {
            self.desire(spec);
        }
        self.pod_put_in(&name);
        Ok(name)
    }

    /// The pod may live again already, in another container.
    fn detach(&mut self, attachment: &Attachment) -> Result<WorkloadName, Reply> {
        match self.attached(attachment) {
            Some((name, _)) => {
                self.attachments.forget_deletion(&attachment.container);
                self.withdraw(&name);
                self.pod_taken_out(&name);
                Ok(name)
            }
            None => Err(Reply::Done),
        }
    }

    /// A pod may have been deleted while the agent was starting: from now on the plugin finds somebody to tell.
    pub(super) fn heed_notes(&mut self) {
        for name in self.attachments.deleted_meanwhile() {
            tracing::info!(workload = %name, "deleted while the agent was starting");
            self.withdraw(&name);
            self.pod_taken_out(&name);
            self.changed = true;
        }
        self.attachments.catch_up();
    }

    fn detach_others(&mut self, network: &str, valid: &[String]) {
        let all = self.attachments.iter();
        let forgotten = all.filter(|(_, attached)| {
            let of = &attached.attachment;
            of.network == network && !valid.contains(&of.container)
        });
        let names: Vec<WorkloadName> = forgotten.map(|(name, _)| name.clone()).collect();
        for name in names {
            self.withdraw(&name);
        }
        self.publish();
    }

    fn check(&self, attachment: &Attachment, netns: Option<OwnedFd>) -> Reply {
        let Some((name, attached)) = self.attached(attachment) else {
            let name = name(attachment);
            // As it was added.
            if self.pod_refuses(&name).is_some() {
                return Reply::Done;
            }
            let text = format!("{name} is not enrolled for this container");
            return Reply::NotEnrolled(text);
        };
        let asked = match opened(netns, attached.netns.path()) {
            Ok(asked) => asked,
            Err(reply) => return reply,
        };
        if asked.cookie() != attached.netns.cookie() {
            return Reply::NotEnrolled(format!("{name} is enrolled in another namespace"));
        }
        match self
            .workloads
            .get(&name)
            .map(|workload| self.info(workload))
        {
            Some(info) if info.state == WorkloadState::Ready => Reply::Done,
            Some(info) => {
                let reason = info.state_reason;
                Reply::NotEnrolled(format!("{name} is not intercepted: {reason}"))
            }
            None => Reply::NotEnrolled(format!("{name} was withdrawn")),
        }
    }

    /// Connections of those who are enrolled are intercepted, and everybody was tried.
    fn readiness(&self) -> Reply {
        if !self.captures {
            let text = "the data plane shows no sign of life yet: connections go directly";
            return Reply::NotReady(text.into());
        }
        let untried = |workload: &&Workload| match &workload.phase {
            Phase::Waiting { retry, .. } => !retry.failed(),
            Phase::Serving { .. } => false,
        };
        match self.workloads.values().find(untried) {
            Some(workload) => Reply::NotReady(format!("{} is being enrolled", workload.spec.name)),
            None => Reply::Done,
        }
    }

    fn attached(&self, attachment: &Attachment) -> Option<(WorkloadName, &Attached)> {
        let name = name(attachment);
        let attached = self.attachments.get(&name)?;
        let same = attached.attachment.container == attachment.container;
        same.then_some((name, attached))
    }

    /// The namespace that was handed over, else by its path.
    pub(super) fn open_netns(&self, spec: &WorkloadSpec) -> Result<Arc<Netns>, InterceptError> {
        match self.attachments.netns_of(spec) {
            Some(netns) => Ok(netns),
            None if spec.shares_netns() => Netns::own().map(Arc::new),
            None => Netns::open(&spec.netns).map(Arc::new),
        }
    }
}

fn name(attachment: &Attachment) -> WorkloadName {
    WorkloadName {
        namespace: attachment.namespace.clone(),
        name: attachment.name.clone(),
    }
}

fn opened(netns: Option<OwnedFd>, path: &Path) -> Result<Netns, Reply> {
    let missing = || Reply::Refused("no namespace came with the request".into());
    let file = File::from(netns.ok_or_else(missing)?);
    Netns::handed_over(file, path).map_err(|error| Reply::Refused(error.chain()))
}
