//! Workloads that share the agent's own namespace: their hooks are told whose the sockets of the cgroup are.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use aya::maps::{CgroupStorageKey, MapData, MapError};
use shunt_core::workload::{WorkloadId, WorkloadSpec};
use shunt_ebpf_common::scope::{Scope, WorkloadKey, of_name};

use super::kernel::Hook;
use super::object::{Object, failed};
use super::{EbpfBackend, Enrolled};
use crate::netns::Netns;
use crate::{Enrolment, InterceptError};

/// By which the hooks know a workload.
pub fn workload_key(spec: &WorkloadSpec, netns: &Netns) -> WorkloadKey {
    match spec.shares_netns() {
        true => of_name(&spec.name.to_string()),
        false => netns.cookie(),
    }
}

/// Where a workload's hooks are to be.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) cgroup: &'a Path,
    /// `None`: every socket of its namespace is its own.
    pub(super) scope: Option<Scope>,
}

impl<'a> Place<'a> {
    pub(super) fn of(enrolment: &Enrolment, cgroup: &'a Path) -> Self {
        let scope = enrolment.spec.shares_netns().then(|| Scope {
            netns: enrolment.netns.cookie(),
            workload: workload_key(&enrolment.spec, &enrolment.netns),
        });
        Self { cgroup, scope }
    }
}

#[expect(
    deprecated,
    reason = "its successor is of the socket's cgroup, this one of the cgroup where the program is attached"
)]
type ByAttachment = aya::maps::CgroupStorage<MapData, Scope>;

pub(super) struct Scopes {
    map: ByAttachment,
    /// What was written, and for which hooks.
    written: HashMap<u64, Vec<Hook>>,
}

impl std::fmt::Debug for Scopes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scopes")
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl Scopes {
    pub(super) fn load(object: &mut Object) -> Result<Self, InterceptError> {
        Ok(Self {
            map: object.map("SHUNT_SCOPES")?,
            written: HashMap::new(),
        })
    }

    /// Of a cgroup to which hooks are attached.
    pub(super) fn set(
        &mut self,
        cgroup_id: u64,
        hooks: impl IntoIterator<Item = Hook>,
        scope: Scope,
    ) -> Result<(), InterceptError> {
        let mut written = Vec::new();
        for hook in hooks {
            let key = CgroupStorageKey::new(cgroup_id, hook as u32);
            match self.map.insert(key, scope, 0) {
                Ok(()) => written.push(hook),
                // Its program does not ask.
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(failed("say whose a cgroup is", &error)),
            }
        }
        self.written.insert(cgroup_id, written);
        Ok(())
    }

    /// The kernel keeps what was written until the cgroup is gone.
    pub(super) fn forget(&mut self, cgroup_id: u64) {
        for hook in self.written.remove(&cgroup_id).unwrap_or_default() {
            let key = CgroupStorageKey::new(cgroup_id, hook as u32);
            // It fails where the cgroup is gone.
            let _ = self.map.insert(key, Scope::default(), 0);
        }
    }
}

fn is_missing(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(error)
        if error.io_error.kind() == std::io::ErrorKind::NotFound)
}

impl EbpfBackend {
    /// What policy asks for of a workload that shares its namespace, and cannot have.
    pub(super) fn ungoverned(&self, enrolment: &Enrolment) -> Option<String> {
        let enrolled = self.enrolled.get(&enrolment.id)?;
        let [_, inbound] = enrolled.value.policy;
        (enrolment.spec.shares_netns() && inbound != 0).then(|| {
            "policy about connections to it is not in force: in the agent's own namespace they are not captured".into()
        })
    }

    /// A process that shares its namespace is one workload's at most, and never the agent's own.
    pub(super) fn refuse_overlap(
        &self,
        enrolment: &Enrolment,
        cgroup: &Path,
    ) -> Result<(), InterceptError> {
        if !enrolment.spec.shares_netns() {
            return Ok(());
        }
        let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let own = real(cgroup);
        let shown = cgroup.display();
        if real(self.hooks.agent_cgroup()).starts_with(&own) {
            return Err(InterceptError::Unsupported(format!(
                "the agent itself runs in {shown}: a workload in its namespace needs a cgroup without it"
            )));
        }
        let overlaps = |other: &Path| {
            let other = real(other);
            other.starts_with(&own) || own.starts_with(&other)
        };
        let others = self.enrolled.iter().filter(|(id, _)| **id != enrolment.id);
        let mut sharing = others.filter(|(_, other)| other.key != other.netns);
        match sharing.find(|(_, other)| overlaps(&other.cgroup)) {
            None => Ok(()),
            Some((WorkloadId(id), Enrolled { cgroup, .. })) => {
                Err(InterceptError::Unsupported(format!(
                    "{shown} overlaps with {} of workload {id}: each process is one workload's",
                    cgroup.display()
                )))
            }
        }
    }
}
