//! From a wish and a place to a workload.

use std::collections::BTreeMap;

use shunt_core::status::{StatusMode, WorkloadState};
use shunt_core::workload::{WorkloadName, WorkloadSpec};
use shunt_workload::Verdict;

use super::place::Place;
use super::{CNI, CNI_LABELS, POD};
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
        let Verdict::Enrol(wished) = &pod.wish.verdict else {
            return;
        };
        let existing = self.workloads.get(name).map(|workload| &workload.spec);
        let of_cni = existing.filter(|spec| spec.labels.contains_key(CNI));
        let mut spec = match (&pod.place, of_cni) {
            // The plugin knows the namespace before there is a process in it, and where the hooks are they stay.
            (_, Some(by_cni)) => {
                let mut spec = WorkloadSpec {
                    netns: by_cni.netns.clone(),
                    cgroup: by_cni.cgroup.clone(),
                    ..wished.as_ref().clone()
                };
                let whose = by_cni
                    .labels
                    .iter()
                    .filter(|(key, _)| key.starts_with(CNI_LABELS));
                spec.labels
                    .extend(whose.map(|(key, value)| (key.clone(), value.clone())));
                spec
            }
            (Some(place), None) => place.given(wished),
            (None, None) => return,
        };
        spec.labels.insert(POD.into(), pod.wish.uid.to_string());
        let others = |(other, workload): &(&WorkloadName, &Workload)| {
            let inode = pod.place.as_ref().map(Place::inode);
            *other != name
                && workload
                    .serving()
                    .map(|serving| serving.enrolment.netns.inode())
                    == inode
                && inode.is_some()
        };
        let strange =
            |spec: &WorkloadSpec| !spec.labels.contains_key(POD) && !spec.labels.contains_key(CNI);
        let trouble = if in_file {
            "the configuration file says what becomes of it".to_owned()
        } else if existing.is_some_and(strange) {
            "somebody enrolled it over the admin API".to_owned()
        } else if let Some((other, _)) = self.workloads.iter().find(others) {
            format!("its network namespace is enrolled as {other}")
        } else {
            String::new()
        };
        let go = trouble.is_empty() && !pod.taken_out && existing != Some(&spec);
        if let Some(pod) = self.pods.pods.get_mut(name) {
            pod.trouble = trouble;
        }
        if go {
            self.desire(spec);
            self.changed = true;
        }
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
