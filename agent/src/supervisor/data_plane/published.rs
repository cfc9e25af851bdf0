//! What a data plane was told of the workloads' states: only what differs is told again. A node's pods come and go one by one, and
//! each would cost as much as there are.

use std::collections::BTreeMap;

use shunt_core::status::PodsStatus;
use shunt_core::workload::WorkloadName;

use crate::ipc::{StateChanges, States, WorkloadInfo};

#[derive(Debug)]
pub(super) struct Published {
    workloads: BTreeMap<WorkloadName, WorkloadInfo>,
    pods: Option<PodsStatus>,
    retired: Vec<u32>,
}

impl Published {
    pub(super) fn new(states: &States) -> Self {
        let workloads = states.workloads.iter();
        Self {
            workloads: workloads
                .map(|info| (info.name.clone(), info.clone()))
                .collect(),
            pods: states.pods.clone(),
            retired: states.retired.clone(),
        }
    }

    /// `None`: nothing differs.
    pub(super) fn catch_up(&mut self, now: &States) -> Option<StateChanges> {
        let infos = now.workloads.iter();
        let differs = |info: &&WorkloadInfo| self.workloads.get(&info.name) != Some(*info);
        let changed: Vec<WorkloadInfo> = infos.filter(differs).cloned().collect();
        for info in &changed {
            self.workloads.insert(info.name.clone(), info.clone());
        }
        let mut gone = Vec::new();
        if self.workloads.len() > now.workloads.len() {
            let mut there: Vec<&WorkloadName> =
                now.workloads.iter().map(|info| &info.name).collect();
            there.sort_unstable();
            let known = self.workloads.keys();
            let is_gone = |name: &&WorkloadName| there.binary_search(name).is_err();
            gone = known.filter(is_gone).cloned().collect();
            gone.iter()
                .for_each(|name| drop(self.workloads.remove(name)));
        }
        let same = self.pods == now.pods && self.retired == now.retired;
        if same && changed.is_empty() && gone.is_empty() {
            return None;
        }
        self.pods.clone_from(&now.pods);
        self.retired.clone_from(&now.retired);
        Some(self.changes(changed, gone))
    }

    /// The same for one workload; without `now` it is gone.
    pub(super) fn catch_up_with(
        &mut self,
        name: &WorkloadName,
        now: Option<&WorkloadInfo>,
    ) -> Option<StateChanges> {
        if self.workloads.get(name) == now {
            return None;
        }
        let Some(now) = now else {
            self.workloads.remove(name);
            return Some(self.changes(Vec::new(), vec![name.clone()]));
        };
        self.workloads.insert(name.clone(), now.clone());
        Some(self.changes(vec![now.clone()], Vec::new()))
    }

    fn changes(&self, changed: Vec<WorkloadInfo>, gone: Vec<WorkloadName>) -> StateChanges {
        StateChanges {
            changed,
            gone,
            pods: self.pods.clone(),
            retired: self.retired.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use shunt_core::status::{StatusMode, WorkloadState};

    use super::*;

    fn info(name: &str, state: WorkloadState) -> WorkloadInfo {
        WorkloadInfo {
            name: WorkloadName {
                namespace: "default".into(),
                name: name.into(),
            },
            netns: String::new(),
            labels: BTreeMap::new(),
            mode: StatusMode::Ebpf,
            mode_reason: String::new(),
            state,
            state_reason: String::new(),
            notes: Vec::new(),
            listeners: Vec::new(),
            acceleration: BTreeMap::new(),
        }
    }

    #[test]
    fn only_what_differs_is_told() {
        let [old, new] = [WorkloadState::Pending, WorkloadState::Ready];
        let states = |workloads: Vec<WorkloadInfo>| States {
            workloads,
            ..States::default()
        };
        let mut published = Published::new(&states(vec![info("a", new), info("b", old)]));
        let now = states(vec![info("b", new), info("c", old)]);
        let changes = published.catch_up(&now).expect("changes");
        assert_eq!(changes.changed, [info("b", new), info("c", old)]);
        assert_eq!(changes.gone, [info("a", new).name]);
        assert_eq!(published.catch_up(&now), None);

        let c = info("c", new);
        assert_eq!(
            published.catch_up_with(&c.name, Some(&info("c", old))),
            None
        );
        let changes = published.catch_up_with(&c.name, Some(&c)).expect("changes");
        assert_eq!(changes.changed, std::slice::from_ref(&c));
        let changes = published.catch_up_with(&c.name, None).expect("changes");
        assert_eq!((changes.changed.len(), changes.gone), (0, vec![c.name]));
        let now = States {
            retired: vec![7],
            ..states(vec![info("b", new)])
        };
        let changes = published.catch_up(&now).expect("changes");
        assert_eq!((changes.changed.len(), changes.retired), (0, vec![7]));
    }
}
