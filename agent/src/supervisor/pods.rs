//! Pods that the Kubernetes API wants enrolled. The API says who; where a pod is, the node itself tells:
//!
//! ```text
//! wish ──► sought in /proc ──► placed: its network namespace, held open ──► a workload like any other
//!             ^                     │
//!             '── its sandbox ended ┘
//! ```
//! What the API does not say any more because it cannot be had stays as it is.

mod fulfil;
mod look;
mod place;
mod state;
mod watcher;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use shunt_core::config::{Config, file};
use shunt_core::status::PodsStatus;
use shunt_core::workload::{CapturePolicy, WorkloadName, WorkloadSpec};
use shunt_intercept::cgroup;
use shunt_workload::processes::{self, Life};
use shunt_workload::{Discovered, PodUid, PodWish, Verdict};

use self::look::Look;
use self::place::Place;
use self::watcher::Watcher;
use super::Supervisor;
use super::state_file::StateFile;

/// Whose a workload is: the pod's uid.
const POD: &str = "shunt.io/pod-uid";
const CNI_LABELS: &str = "shunt.io/cni-";
/// More than a node can have.
const MAX_PODS: usize = 4096;
/// Names of pods that `status` shows where there may be many.
const MAX_TOLD: usize = 20;
/// Between two looks whether a pod's oldest process lives.
const CHECK: Duration = Duration::from_secs(1);
/// A pod whose processes have all ended for so long has no network any more.
const DEAD: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Pods {
    pub(super) watcher: Option<Watcher>,
    pods: BTreeMap<WorkloadName, Pod>,
    state: StateFile,
    /// The API has told of all pods since this agent began.
    listed: bool,
    /// Why the API cannot be had, while it cannot.
    outage: Option<String>,
    checked: Instant,
    /// `None`: cgroup2 is not mounted.
    cgroups: Option<PathBuf>,
    /// The one in which the agent runs.
    own: Option<PodUid>,
}

#[derive(Debug)]
struct Pod {
    wish: PodWish,
    /// Since the watcher began.
    named: bool,
    place: Option<Place>,
    /// `None`: it is where it is.
    look: Option<Look>,
    /// Somebody took it out over the admin API; so it stays until it is another.
    taken_out: bool,
    /// Why it is not enrolled as wished, for people.
    trouble: String,
}

impl Pod {
    fn new(wish: PodWish) -> Self {
        Self {
            wish,
            named: true,
            place: None,
            look: Some(Look::now()),
            taken_out: false,
            trouble: String::new(),
        }
    }

    fn enrols(&self) -> bool {
        self.wished().is_some()
    }

    fn wished(&self) -> Option<&WorkloadSpec> {
        match &self.wish.verdict {
            Verdict::Enrol(spec) => Some(spec),
            Verdict::Refuse | Verdict::Wrong(_) => None,
        }
    }
}

impl Pods {
    /// With those that an earlier agent knew, where they are now.
    ///
    /// # Errors
    /// The configuration does not say what the node is called.
    pub(super) fn open(config: &Config) -> Result<Self> {
        let state = StateFile::new(&config.state_dir, state::FILE);
        let mut pods = Self {
            watcher: Watcher::new(config)?,
            pods: BTreeMap::new(),
            state,
            listed: false,
            outage: None,
            checked: Instant::now(),
            cgroups: cgroup::mount_point().ok(),
            own: processes::own_pod(),
        };
        if pods.watcher.is_none() {
            pods.state.remove();
            return Ok(pods);
        }
        for wish in state::read(&pods.state) {
            if is_sound(&wish) {
                pods.pods.insert(wish.name.clone(), Pod::new(wish));
            }
        }
        pods.find();
        Ok(pods)
    }

    /// What [`Supervisor::fulfil`] would make of those that are placed.
    pub(super) fn specs(&self) -> impl Iterator<Item = WorkloadSpec> {
        self.pods
            .values()
            .filter_map(|pod| Some(pod.place.as_ref()?.given(pod.wished()?)))
    }

    /// `None`: pods are not looked for.
    pub(super) fn status(&self) -> Option<PodsStatus> {
        let node = self.watcher.as_ref()?.node().to_owned();
        let unfound = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.enrols() && pod.place.is_none());
        Some(PodsStatus {
            node,
            listed: self.listed,
            outage: self.outage.clone(),
            wished: self.pods.values().filter(|pod| pod.enrols()).count(),
            not_found: unfound
                .map(|(name, _)| name.to_string())
                .take(MAX_TOLD)
                .collect(),
        })
    }

    /// For ever, where pods are not looked for.
    pub(super) async fn next(&mut self) -> Result<Discovered, String> {
        match &mut self.watcher {
            Some(watcher) => watcher.next().await,
            None => std::future::pending().await,
        }
    }

    fn named(&self, uid: &PodUid) -> Option<WorkloadName> {
        let mut all = self.pods.iter();
        all.find(|(_, pod)| pod.wish.uid == *uid)
            .map(|(name, _)| name.clone())
    }

    /// Looks for all, once somebody's time has come. Gives those that are elsewhere than before.
    fn find(&mut self) -> Vec<WorkloadName> {
        let now = Instant::now();
        let sought = |pod: &Pod| pod.enrols() && pod.look.is_some();
        let due = |pod: &Pod| sought(pod) && pod.look.is_some_and(|look| look.at <= now);
        if !self.pods.values().any(due) {
            return Vec::new();
        }
        let wanted = self.pods.values().filter(|pod| sought(pod));
        let wanted: BTreeSet<PodUid> = wanted.map(|pod| pod.wish.uid.clone()).collect();
        let mut found = processes::find(&wanted);
        let mut moved = Vec::new();
        for (name, pod) in self.pods.iter_mut().filter(|(_, pod)| sought(pod)) {
            let leader = found.remove(&pod.wish.uid);
            let own = self.own.as_ref() == Some(&pod.wish.uid);
            let place = pod.wished().zip(leader).map(|(wished, leader)| match own {
                true => Err("it is the agent's own".to_owned()),
                false => Place::of(leader, wished, self.cgroups.as_deref()),
            });
            match place {
                Some(Ok(place)) => {
                    pod.look = None;
                    pod.trouble.clear();
                    match &mut pod.place {
                        // Its containers were started anew, its network is the same.
                        Some(old) if old.is_same(&place) => old.led_by(place),
                        old => {
                            pod.taken_out &= old.is_none();
                            *old = Some(place);
                        }
                    }
                    moved.push(name.clone());
                }
                Some(Err(trouble)) => {
                    if pod.trouble != trouble {
                        tracing::warn!(pod = %name, trouble, "a pod cannot be enrolled");
                    }
                    pod.trouble = trouble;
                    pod.look = pod.look.map(Look::later);
                }
                None => pod.look = pod.look.map(Look::later),
            }
        }
        moved
    }

    /// Those whose oldest process has ended are looked for again; gives those that are gone for good.
    fn check(&mut self) -> Vec<WorkloadName> {
        if self.checked.elapsed() < CHECK {
            return Vec::new();
        }
        self.checked = Instant::now();
        let settled = self.pods.iter().filter(|(_, pod)| pod.look.is_none());
        let lives =
            settled.filter_map(|(name, pod)| Some((name.clone(), pod.place.as_ref()?.life())));
        for name in Life::ended(lives) {
            if let Some(pod) = self.pods.get_mut(&name) {
                pod.look = Some(Look::now());
            }
        }
        let mut gone = Vec::new();
        for (name, pod) in &mut self.pods {
            let dead = pod.look.is_some_and(|look| look.since.elapsed() > DEAD);
            if dead && pod.place.take().is_some() {
                gone.push(name.clone());
            }
        }
        gone
    }
}

impl Supervisor {
    /// Those that were enrolled before this agent, wherever the API is.
    pub(super) fn recall_pods(&mut self) {
        let enrolled = self.pods.pods.iter().filter(|(_, pod)| pod.enrols());
        let names: Vec<WorkloadName> = enrolled.map(|(name, _)| name.clone()).collect();
        if !names.is_empty() {
            tracing::info!(pods = names.len(), "pods that were enrolled before");
        }
        names.iter().for_each(|name| self.fulfil(name));
    }

    /// The watcher said something, or ended.
    pub(super) fn heard_of_pods(&mut self, said: Result<Discovered, String>) {
        match said {
            Ok(Discovered::Begin) => self
                .pods
                .pods
                .values_mut()
                .for_each(|pod| pod.named = false),
            Ok(Discovered::Pod(wish)) => self.wished(wish),
            Ok(Discovered::Gone(uid)) => {
                if let Some(name) = self.pods.named(&uid) {
                    self.forget_pod(&name);
                }
            }
            Ok(Discovered::Complete) => {
                let unnamed = self.pods.pods.iter().filter(|(_, pod)| !pod.named);
                let unnamed: Vec<WorkloadName> = unnamed.map(|(name, _)| name.clone()).collect();
                unnamed.iter().for_each(|name| self.forget_pod(name));
                (self.pods.outage, self.pods.listed) = (None, true);
                tracing::info!(
                    pods = self.pods.pods.len(),
                    "the Kubernetes API told of all pods"
                );
            }
            Ok(Discovered::Connected) => {
                self.pods.outage = None;
                tracing::info!("the Kubernetes API answers again");
            }
            Err(reason) => {
                *self.repairs.entry("pods_watcher".into()).or_default() += 1;
                tracing::warn!(reason, "the watcher of pods is started anew");
                self.pods.outage = Some(reason);
            }
            Ok(Discovered::Outage(reason)) => {
                tracing::warn!(
                    reason,
                    "the Kubernetes API cannot be had; who is enrolled stays so"
                );
                self.pods.outage = Some(reason);
            }
        }
        self.changed = true;
    }

    fn wished(&mut self, wish: PodWish) {
        let name = wish.name.clone();
        if !is_sound(&wish)
            || self.pods.pods.len() >= MAX_PODS && !self.pods.pods.contains_key(&name)
        {
            tracing::warn!(pod = %name, "a pod is passed over");
            return;
        }
        let same = |pod: &Pod| pod.wish.uid == wish.uid;
        if self.pods.pods.get(&name).is_some_and(|pod| !same(pod)) {
            self.forget_pod(&name);
        }
        let refuses = wish.verdict == Verdict::Refuse;
        if let Verdict::Wrong(reason) = &wish.verdict {
            tracing::warn!(pod = %name, reason, "what a pod asks for is not understood; nothing becomes different");
        }
        match self.pods.pods.get_mut(&name) {
            Some(pod) => {
                pod.named = true;
                pod.taken_out &= pod.wish == wish;
                pod.wish = wish;
                if let Some(look) = &mut pod.look {
                    look.at = Instant::now();
                }
            }
            None => {
                self.pods.pods.insert(name.clone(), Pod::new(wish));
            }
        }
        self.pods.state.is_old();
        if refuses && !self.is_in_file(&name) {
            self.withdraw(&name);
        }
        self.fulfil(&name);
    }

    /// It is not of this node any more, or of no interest. Whom the CNI plugin enrolled, it withdraws.
    fn forget_pod(&mut self, name: &WorkloadName) {
        let Some(pod) = self.pods.pods.remove(name) else {
            return;
        };
        self.pods.state.is_old();
        let spec = self.workloads.get(name).map(|workload| &workload.spec);
        let ours = |spec: &WorkloadSpec| {
            spec.labels.get(POD).map(String::as_str) == Some(pod.wish.uid.as_str())
        };
        if spec.is_some_and(ours) && self.attachments.get(name).is_none() {
            self.withdraw(name);
        }
    }

    /// A tick's share: where pods are, and what is remembered of them.
    pub(super) fn look_for_pods(&mut self) {
        for name in self.pods.check() {
            let workload = self.workloads.get(&name);
            let ours = workload.is_some_and(|workload| workload.spec.labels.contains_key(POD));
            if ours && self.attachments.get(&name).is_none() {
                self.withdraw(&name);
            }
        }
        for name in self.pods.find() {
            self.fulfil(&name);
        }
        if self.pods.watcher.is_some() {
            let Pods { pods, state, .. } = &mut self.pods;
            state.catch_up(|| state::text(pods.values().map(|pod| &pod.wish)));
        }
    }
}

/// The watcher is not trusted with more than it is there for.
fn is_sound(wish: &PodWish) -> bool {
    let names = [&wish.name.namespace, &wish.name.name];
    let named = names.into_iter().all(|name| file::name(name).is_ok());
    let spec = match &wish.verdict {
        Verdict::Enrol(spec) => {
            let outbound_alone = spec.inbound == CapturePolicy::default() && !spec.dns.capture;
            spec.name == wish.name
                && (spec.netns == Path::new("") || spec.shares_netns() && outbound_alone)
                && spec.cgroup.is_none()
                && !spec.labels.contains_key(POD)
                && !spec.labels.keys().any(|key| key.starts_with(CNI_LABELS))
        }
        Verdict::Refuse | Verdict::Wrong(_) => true,
    };
    named && spec && shunt_workload::is_sound(&wish.said)
}
