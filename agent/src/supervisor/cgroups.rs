//! A service that is started anew has another cgroup of the same name, with nothing attached. The kernel tells when one is
//! made: it is hooked at once, not at the next look.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use shunt_core::workload::{WorkloadName, WorkloadSpec};
use shunt_intercept::cgroup;
use tokio::sync::mpsc;

use super::Supervisor;
use super::lifecycle::{Phase, Retry};

/// The cgroups above those of workloads that share the agent's namespace.
#[derive(Debug)]
pub(super) struct Cgroups {
    /// `None`: nothing is told, and looks find it.
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    /// By path, the inodes of workloads' own cgroups.
    seen: BTreeMap<PathBuf, u64>,
    /// Where cgroup2 is. `None`: nowhere.
    root: Option<PathBuf>,
    events: mpsc::Receiver<()>,
}

impl Cgroups {
    pub(super) fn watch() -> Self {
        let (tell, events) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| event.kind.is_create() || event.kind.is_remove()) {
                // Full: it is told already.
                let _ = tell.try_send(());
            }
        });
        let watcher = watcher.inspect_err(
            |error| tracing::warn!(%error, "services that are started anew are noticed later"),
        );
        Self {
            watcher: watcher.ok(),
            watched: BTreeSet::new(),
            seen: BTreeMap::new(),
            root: cgroup::mount_point().ok(),
            events,
        }
    }

    /// Waits until cgroups came or went. Cancel safe.
    pub(super) async fn changed(&mut self) {
        if self.events.recv().await.is_none() {
            std::future::pending().await
        }
    }

    /// Of a workload that shares the agent's namespace.
    fn path_of(&self, spec: &WorkloadSpec) -> Option<PathBuf> {
        let configured = spec.cgroup.as_ref().filter(|_| spec.shares_netns())?;
        Some(self.root.as_ref()?.join(configured))
    }

    /// Is there a cgroup that was not there when this was asked last? Others come and go beside it all the time.
    fn is_new(&mut self, path: PathBuf) -> bool {
        match fs::metadata(&path) {
            Ok(now) => self.seen.insert(path, now.ino()) != Some(now.ino()),
            Err(_) => {
                self.seen.remove(&path);
                false
            }
        }
    }

    fn follow(&mut self, wanted: BTreeSet<PathBuf>) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for gone in self.watched.difference(&wanted) {
            // It fails for one that was removed.
            let _ = watcher.unwatch(gone);
        }
        // One that was removed and is there again is another one: its watch went with it.
        let is_watched = |above: &PathBuf| match self.watched.contains(above) {
            true => true,
            false => watcher.watch(above, RecursiveMode::NonRecursive).is_ok(),
        };
        self.watched = wanted.into_iter().filter(is_watched).collect();
    }
}

/// The nearest one above it that is there: something is made in it before this one is.
fn above(path: &Path) -> Option<PathBuf> {
    let mut above = path.ancestors().skip(1);
    above.find(|path| path.exists()).map(Path::to_owned)
}

impl Supervisor {
    pub(super) fn follow_cgroups(&mut self) {
        let specs = self.workloads.values().map(|workload| &workload.spec);
        let paths = specs.filter_map(|spec| self.cgroups.path_of(spec));
        let wanted = paths.filter_map(|path| above(&path));
        let wanted = wanted.collect();
        self.cgroups.follow(wanted);
    }

    /// Cgroups came or went, perhaps those of workloads.
    pub(super) fn cgroups_changed(&mut self) {
        let mut looked_at: Vec<WorkloadName> = Vec::new();
        for (name, workload) in &mut self.workloads {
            let Some(path) = self.cgroups.path_of(&workload.spec) else {
                continue;
            };
            if !self.cgroups.is_new(path) {
                continue;
            }
            match &mut workload.phase {
                Phase::Waiting { retry, .. } => *retry = Retry::now(),
                Phase::Serving { serving, .. } => {
                    if !serving.health.hurry() {
                        looked_at.push(name.clone());
                    }
                }
            }
        }
        looked_at.iter().for_each(|name| self.look_at(name));
        self.follow_cgroups();
    }
}
