//! From a wish and a place to a workload.

use std::collections::BTreeMap;

use shunt_core::config::file::conflict;
use shunt_core::status::{StatusMode, WorkloadState};
use shunt_core::workload::{WorkloadName, WorkloadSpec};
use shunt_workload::Verdict;

use super::POD;
use super::place::Place;
use crate::ipc::WorkloadInfo;
use crate::supervisor::Supervisor;
use crate::supervisor::lifecycle::Workload;

impl Supervisor {
    /// Makes the pod's wish its workload's, where it can be.
    pub(in crate::supervisor) fn fulfil(&mut self, name: &WorkloadName) {
        let in_file = self.is_in_file(name);
        let Some(pod) = self.pods.pods.get(name) else {
            return;
        };
        let Some(wished) = self.wished_of(name) else {
            return;
        };
        let existing = self.workloads.get(name).map(|workload| &workload.spec);
        let others = |(other, workload): &(&WorkloadName, &Workload)| {
            let inode = pod.place.as_ref().and_then(Place::inode);
            *other != name
                && workload
                    .serving()
                    .map(|serving| serving.enrolment.netns.inode())
                    == inode
                && inode.is_some()
        };
        let attached = self.attachments.get(name);
        let strange = |spec: &WorkloadSpec| {
            let of_cni = attached.is_some_and(|attached| attached.made(spec));
            !spec.labels.contains_key(POD) && !of_cni
        };
        let trouble = if in_file {
            "the configuration file says what becomes of it".to_owned()
        } else if let Err(wrong) = &wished {
            format!("annotations together with the CNI plugin's settings: {wrong}")
        } else if existing.is_some_and(strange) {
            "somebody enrolled it over the admin API".to_owned()
        } else if let Some((other, _)) = self.workloads.iter().find(others) {
            format!("its network namespace is enrolled as {other}")
        } else {
            let overlap = |spec| self.overlap(spec);
            wished.as_ref().ok().and_then(overlap).unwrap_or_default()
        };
        let may = trouble.is_empty() && !pod.taken_out;
        let spec = wished.ok().filter(|spec| may && existing != Some(spec));
        if let Some(pod) = self.pods.pods.get_mut(name) {
            pod.trouble = trouble;
        }
        if let Some(spec) = spec {
            self.desire(spec);
            self.changed = true;
        }
    }

    /// Of one that shares the agent's own namespace: who has its cgroup already.
    fn overlap(&self, spec: &WorkloadSpec) -> Option<String> {
        let others = self.workloads.values().map(|workload| &workload.spec);
        let others = others.filter(|other| other.shares_netns());
        conflict(others.filter(|_| spec.shares_netns()), spec)
    }

    /// The workload that the pod's wish makes. `None`: there is no such wish, or no place for it yet. The error is for
    /// people.
    pub(in crate::supervisor) fn wished_of(
        &self,
        name: &WorkloadName,
    ) -> Option<Result<WorkloadSpec, String>> {
        let pod = self.pods.pods.get(name)?;
        let Verdict::Enrol(wished) = &pod.wish.verdict else {
            return None;
        };
        let made = match (self.attachments.get(name), &pod.place) {
            // The plugin knows the namespace before there is a process in it, and its settings are under the pod's.
            (Some(attached), _) => attached.spec_with(&pod.wish.said, self.config.mode),
            (None, Some(place)) => Ok(place.given(wished)),
            (None, None) => return None,
        };
        Some(made.map(|mut spec| {
            spec.labels.extend(wished.labels.clone());
            spec.labels.insert(POD.into(), pod.wish.uid.to_string());
            spec
        }))
    }

    /// Somebody enrolled it over the admin API: the CNI plugin, for a sandbox that is not known yet.
    pub(in crate::supervisor) fn pod_put_in(&mut self, name: &WorkloadName) {
        if let Some(pod) = self.pods.pods.get_mut(name) {
            pod.taken_out = false;
        }
        self.fulfil(name);
    }

    /// Somebody withdrew it over the admin API: the CNI plugin, as its sandbox ends.
    pub(in crate::supervisor) fn pod_taken_out(&mut self, name: &WorkloadName) {
        if let Some(pod) = self.pods.pods.get_mut(name) {
            pod.taken_out = true;
        }
    }

    /// It says itself that it does not want to be enrolled, and the configuration file does not say otherwise; for people.
    pub(in crate::supervisor) fn pod_refuses(&self, name: &WorkloadName) -> Option<&'static str> {
        let pod = self.pods.pods.get(name)?;
        let refuses = pod.wish.verdict == Verdict::Refuse && !self.is_in_file(name);
        refuses.then_some("its own labels say that it is not to be enrolled")
    }

    pub(super) fn is_in_file(&self, name: &WorkloadName) -> bool {
        self.config.workloads.iter().any(|spec| spec.name == *name)
    }

    /// What `status` shows of pods that are no workloads.
    pub(in crate::supervisor) fn pods_not_enrolled(&self) -> impl Iterator<Item = WorkloadInfo> {
        let mut troubled = Vec::new();
        for (name, pod) in &self.pods.pods {
            if let Some(reason) = self
                .pod_trouble(name)
                .filter(|_| !self.workloads.contains_key(name))
            {
                let labels = BTreeMap::from([(POD.to_owned(), pod.wish.uid.to_string())]);
                troubled.push(WorkloadInfo {
                    name: name.clone(),
                    netns: String::new(),
                    labels,
                    mode: StatusMode::Off,
                    mode_reason: reason.to_owned(),
                    state: WorkloadState::Failed,
                    state_reason: reason.to_owned(),
                    notes: Vec::new(),
                    listeners: Vec::new(),
                    acceleration: BTreeMap::new(),
                });
            }
        }
        troubled.into_iter()
    }

    /// Why a pod is not enrolled as it wishes.
    pub(in crate::supervisor) fn pod_trouble(&self, name: &WorkloadName) -> Option<&str> {
        let pod = self.pods.pods.get(name)?;
        match &pod.wish.verdict {
            Verdict::Wrong(reason) => Some(reason),
            _ => Some(pod.trouble.as_str()).filter(|trouble| !trouble.is_empty()),
        }
    }
}
