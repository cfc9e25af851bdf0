//! How many listeners and flows there are of each workload.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shunt_core::workload::WorkloadId;

/// Listeners and flows per workload, which the handle may read at any time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Arc<Mutex<HashMap<WorkloadId, Counts>>>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) listeners: usize,
    pub(super) flows: u64,
}

/// Counts a flow of a workload as long as it lives.
#[derive(Debug)]
pub(crate) struct Counted {
    tally: Tally,
    workload: WorkloadId,
}

impl Counted {
    pub(crate) fn workload(&self) -> WorkloadId {
        self.workload
    }

    pub(crate) fn new(tally: Tally, workload: WorkloadId) -> Self {
        tally.change(workload, |counts| counts.flows += 1);
        Self { tally, workload }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.tally.change(self.workload, |counts| counts.flows -= 1);
    }
}

impl Tally {
    pub(super) fn change(&self, workload: WorkloadId, change: impl FnOnce(&mut Counts)) {
        let mut all = self.lock();
        let counts = all.entry(workload).or_default();
        change(counts);
        if *counts == Counts::default() {
            all.remove(&workload);
        }
    }

    pub(super) fn of(&self, workload: WorkloadId) -> Counts {
        self.lock().get(&workload).copied().unwrap_or_default()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WorkloadId, Counts>> {
        // A change is one addition.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
