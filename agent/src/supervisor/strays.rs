//! Says which processes of a workload connect past it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shunt_core::workload::Mode;
use shunt_intercept::strays::strays;

use super::Supervisor;
use super::lifecycle::Workload;

/// Between looks at all processes of the node: a few milliseconds where there are a thousand.
const LOOK: Duration = Duration::from_secs(20);

impl Supervisor {
    pub(super) fn look_for_strays(&mut self) {
        if self.strays_looked.is_some_and(|at| at.elapsed() < LOOK) {
            return;
        }
        self.strays_looked = Some(Instant::now());
        // Without a cgroup in the configuration the hooks run for all.
        let all = self.workloads.values().filter_map(Workload::serving);
        let hooked: BTreeMap<_, _> = all
            .filter(|serving| serving.mode == Mode::Ebpf && !serving.enrolment.spec.shares_netns())
            .filter_map(|serving| {
                let cgroup = serving.enrolment.spec.cgroup.clone()?;
                Some((serving.enrolment.netns.inode(), cgroup))
            })
            .collect();
        if hooked.is_empty() {
            return;
        }
        let mut found = strays(&hooked);
        let all = self
            .workloads
            .values_mut()
            .filter_map(Workload::serving_mut);
        for serving in all {
            let note = found.remove(&serving.enrolment.netns.inode());
            if note != serving.health.strays {
                let workload = &serving.enrolment.spec.name;
                match &note {
                    Some(note) => {
                        tracing::info!(%workload, note, "its cgroup does not hold it all")
                    }
                    None => tracing::info!(%workload, "its cgroup holds all of it again"),
                }
                serving.health.strays = note;
                self.changed = true;
            }
        }
    }
}
