//! What others do to what steers a workload: seen, said, and put back.
//!
//! ```text
//! the kernel announces ---> close look --.
//! every minute -----------> close look --+-> as it should be
//! every 1.75 to 5 s ------> full look ---'-> not: told once -> repair, one step -> close look -> counted
//!                                                    ^                                |
//!                                                    '--- later, when it failed or is undone again and again
//! ```
//! A look changes nothing and takes microseconds. What belongs to others is never changed.

mod round;

use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};
use std::time::{Duration, Instant};

use shunt_core::workload::{WorkloadId, WorkloadName, WorkloadSpec};
use shunt_intercept::drift::{Drift, Look, Part};
use shunt_intercept::watch::Announced;
use shunt_intercept::{cgroup, foreign, return_path};

use super::Supervisor;
use super::backends::Backends;
use super::enrolment::Serving;
use super::lifecycle::{Phase, Retry, Workload};

/// How long until a close look that nothing asked for: an announcement may have been lost.
const CLOSE: Duration = Duration::from_secs(60);
/// How long what others have on the node is taken as known.
const NODE: Duration = Duration::from_secs(20);
/// Repairs that are made at once, within [`WINDOW`]. Who undoes more than that is not an accident.
const FREE: usize = 5;
const WINDOW: Duration = Duration::from_secs(60);
/// Between repairs of somebody who keeps undoing them, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// What is known about what steers a workload.
#[derive(Debug)]
pub(super) struct Health {
    announced: Announced,
    close_at: Instant,
    found: Vec<Drift>,
    /// When what was found is repaired; `None`: there is nothing to repair.
    repair: Option<Retry>,
    /// When it was repaired, within [`WINDOW`].
    repaired: VecDeque<Instant>,
    /// For people. Empty: all is well.
    pub(super) reason: String,
    /// Who else works at the same places.
    pub(super) notes: Vec<String>,
    /// Which processes the hooks do not see.
    pub(super) strays: Option<String>,
    /// What this host does not have.
    pub(super) shortcoming: Option<String>,
}

impl Health {
    /// To be looked at closely first of all.
    pub(super) fn new() -> Self {
        Self {
            announced: Announced::default(),
            close_at: Instant::now(),
            found: Vec::new(),
            repair: None,
            repaired: VecDeque::new(),
            reason: String::new(),
            notes: Vec::new(),
            strays: None,
            shortcoming: None,
        }
    }

    pub(super) fn repair_due(&self) -> Option<Instant> {
        self.repair.map(|retry| retry.at)
    }

    /// What waits to be repaired is tried at once. False: nothing does.
    pub(super) fn hurry(&mut self) -> bool {
        let waits = self.repair.is_some();
        self.repair = waits.then(Retry::now);
        waits
    }

    fn heard(&mut self, news: Announced) {
        self.announced.addresses |= news.addresses;
        self.announced.rules |= news.rules;
        let by = news.by.into_iter();
        let new: Vec<String> = by.filter(|who| !self.announced.by.contains(who)).collect();
        self.announced.by.extend(new);
    }

    fn next_look(&mut self) -> Look {
        if std::mem::take(&mut self.announced.rules) || self.close_at <= Instant::now() {
            self.close_at = Instant::now() + CLOSE;
            Look::Close
        } else {
            Look::Full
        }
    }

    /// How long the next repair waits.
    fn pause(&mut self) -> Duration {
        while self
            .repaired
            .front()
            .is_some_and(|at| at.elapsed() > WINDOW)
        {
            self.repaired.pop_front();
        }
        let Some(over) = self.repaired.len().checked_sub(FREE) else {
            return Duration::ZERO;
        };
        let since = self.repaired.back().map_or(LAST_PAUSE, Instant::elapsed);
        let pause = FIRST_PAUSE * 2_u32.saturating_pow(over.min(5) as u32);
        pause.min(LAST_PAUSE).saturating_sub(since)
    }

    /// Takes in what a look found. True: `reason` changed.
    fn judge(&mut self, name: &WorkloadName, found: Vec<Drift>) -> bool {
        let by = std::mem::take(&mut self.announced.by).join(", ");
        if found.is_empty() {
            (self.found, self.repair) = (found, None);
            return !std::mem::take(&mut self.reason).is_empty();
        }
        if found == self.found {
            return false;
        }
        let pause = self.pause();
        let what = describe(&found);
        let by = if by.is_empty() {
            "not known".to_owned()
        } else {
            by
        };
        if pause.is_zero() {
            tracing::warn!(workload = %name, found = what, by, "somebody changed what steers it; this is repaired");
        } else {
            let (times, wait) = (self.repaired.len(), pause.as_secs() + 1);
            tracing::warn!(workload = %name, found = what, by, times, wait_seconds = wait,
                "somebody keeps undoing what steers it; the next repair waits");
            self.reason = format!(
                "somebody keeps undoing what steers it ({what}; by: {by}): repaired {times} times within a minute, \
                 the next repair in {wait} s, until then connections may go directly"
            );
        }
        self.found = found;
        self.repair = Some(Retry::after(pause));
        !pause.is_zero()
    }
}

impl Supervisor {
    /// A tick's share of looking: whoever something was announced of, and those whose turn it is.
    pub(super) fn look(&mut self) {
        self.hear(None);
        let announced = |workload: &&Workload| {
            let serving = workload.serving();
            serving.is_some_and(|serving| serving.health.announced != Announced::default())
        };
        let mut names: BTreeSet<WorkloadName> = self
            .workloads
            .values()
            .filter(announced)
            .map(|workload| workload.spec.name.clone())
            .collect();
        let share = round::share(self.workloads.len());
        let after = self.looked_at.clone().map_or(Unbounded, Excluded);
        let rest = self.workloads.range((after, Unbounded));
        let turn = rest.chain(&self.workloads).take(share);
        let turn: Vec<WorkloadName> = turn.map(|(name, _)| name.clone()).collect();
        self.looked_at = turn.last().cloned();
        names.extend(turn);
        for name in names {
            self.look_at(&name);
        }
    }

    /// Takes in what the kernel announced. What follows a change of ours to `own` was done by us.
    pub(super) fn hear(&mut self, own: Option<WorkloadId>) {
        for (id, mut news) in self.watch.announced() {
            if own == Some(id) {
                news.by.clear();
            }
            let mut all = self
                .workloads
                .values_mut()
                .filter_map(Workload::serving_mut);
            if let Some(serving) = all.find(|serving| serving.enrolment.id == id) {
                serving.health.heard(news);
            }
        }
    }

    pub(super) fn look_at(&mut self, name: &WorkloadName) {
        let served = self.workloads.get(name).and_then(Workload::serving);
        let netns = served.map(|serving| &serving.enrolment.netns);
        let lost = netns.is_some_and(|netns| !netns.is_current());
        if self.attachments.is_gone(name, netns, lost) {
            tracing::warn!(workload = %name, "its network namespace is gone, though nobody said so to the CNI plugin");
            self.withdraw(name);
            self.changed = true;
            return;
        }
        if lost {
            tracing::warn!(workload = %name, "its network namespace is gone or was replaced");
            self.enrol_anew(name);
            return;
        }
        let Some(Workload { spec, phase }) = self.workloads.get_mut(name) else {
            return;
        };
        let Phase::Serving { serving, change } = phase else {
            return;
        };
        let look = serving.health.next_look();
        let addresses = std::mem::take(&mut serving.health.announced.addresses);
        if (look == Look::Close || addresses) && serving.refresh_addresses() {
            *change = change.or_else(|| Some(Retry::now()));
        }
        if look == Look::Close {
            self.changed |= serving.note_others(self.node.get());
        }
        match inspect(&mut self.backends, serving, look) {
            Ok(found) => self.changed |= serving.health.judge(&spec.name, found),
            Err(reason) => tracing::debug!(workload = %name, reason, "cannot be looked at"),
        }
        if look == Look::Close {
            self.changed |= serving.note_shortcoming(&mut self.backends);
        }
    }

    /// Puts back what was found missing.
    pub(super) fn repair(
        &mut self,
        spec: WorkloadSpec,
        mut serving: Box<Serving>,
        change: Option<Retry>,
    ) -> Workload {
        let retry = serving.health.repair.take().unwrap_or_else(Retry::now);
        let found = std::mem::take(&mut serving.health.found);
        let parts: BTreeSet<Part> = found.iter().map(|drift| drift.part).collect();
        if parts.contains(&Part::Listeners) {
            tracing::info!(workload = %spec.name, "it is enrolled anew, with new listeners");
            self.count_repairs(&parts);
            self.leave(*serving);
            return Workload::new(spec);
        }
        let repaired = self.put_back(&serving, &parts);
        self.hear(Some(serving.enrolment.id));
        let left = repaired.and_then(|()| inspect(&mut self.backends, &mut serving, Look::Close));
        let left = left.and_then(|left| {
            if left.is_empty() {
                Ok(())
            } else {
                Err(describe(&left))
            }
        });
        let health = &mut serving.health;
        match left {
            Ok(()) => {
                tracing::info!(workload = %spec.name, found = describe(&found), "repaired");
                // A cgroup that is made anew is nobody's undoing.
                if !parts.iter().all(|part| *part == Part::Cgroup) {
                    health.repaired.push_back(Instant::now());
                }
                health.reason.clear();
                self.count_repairs(&parts);
                if self.data_plane.alive() {
                    self.backends.keep_alive();
                }
            }
            Err(reason) => {
                let stopped = spec.shares_netns() && parts.contains(&Part::Cgroup);
                let reason = match stopped {
                    true => format!("its service does not run: {reason}"),
                    false => format!("cannot be repaired yet: {reason}"),
                };
                if health.reason != reason && stopped {
                    tracing::info!(workload = %spec.name, reason, "nothing of it connects");
                    health.reason = reason;
                } else if health.reason != reason {
                    tracing::error!(workload = %spec.name, reason, "this is retried; until then connections may go directly");
                    health.reason = reason;
                }
                (health.found, health.repair) = (found, Some(retry.later()));
            }
        }
        let phase = Phase::Serving { serving, change };
        Workload { spec, phase }
    }

    /// Puts in its place what was found missing: parts of ours, nothing of others.
    fn put_back(&mut self, serving: &Serving, parts: &BTreeSet<Part>) -> Result<(), String> {
        let enrolment = &serving.enrolment;
        if parts.contains(&Part::ReturnPath) {
            let put =
                return_path::ensure(&enrolment.netns, self.backends.marks.delivery, serving.mode);
            put.map_err(|error| error.chain())?;
        }
        if parts.iter().all(|part| *part == Part::ReturnPath) {
            return Ok(());
        }
        let backend = self.backends.get(serving.mode)?;
        backend.repair(enrolment).map_err(|error| error.chain())
    }

    fn count_repairs(&mut self, parts: &BTreeSet<Part>) {
        for part in parts {
            *self.repairs.entry(part.as_str().to_owned()).or_default() += 1;
        }
    }
}

/// What others have on the whole node: looked at rarely, there may be thousands of maps.
#[derive(Debug, Default)]
pub(super) struct NodeNotes {
    looked: Option<Instant>,
    notes: Vec<String>,
}

impl NodeNotes {
    fn get(&mut self) -> &[String] {
        if self.looked.is_none_or(|at| at.elapsed() > NODE) {
            self.looked = Some(Instant::now());
            self.notes = foreign::sockmap_notes();
        }
        &self.notes
    }
}

impl Serving {
    /// True: there is another than before.
    fn note_shortcoming(&mut self, backends: &mut Backends) -> bool {
        let backend = backends.get(self.mode);
        let now = backend.map_or(None, |backend| backend.shortcoming(&self.enrolment));
        if now == self.health.shortcoming {
            return false;
        }
        if let Some(shortcoming) = &now {
            tracing::info!(workload = %self.enrolment.spec.name, shortcoming, "something is not to be had here");
        }
        self.health.shortcoming = now;
        true
    }

    /// True: others came or went.
    fn note_others(&mut self, node: &[String]) -> bool {
        let spec = &self.enrolment.spec;
        let configured = spec.cgroup.as_deref().map(cgroup::resolve);
        let cgroup = configured.unwrap_or_else(cgroup::mount_point).ok();
        let mut notes = foreign::notes(&self.enrolment.netns, cgroup.as_deref());
        notes.extend_from_slice(node);
        if notes == self.health.notes {
            return false;
        }
        for note in notes
            .iter()
            .filter(|note| !self.health.notes.contains(note))
        {
            tracing::info!(workload = %spec.name, note, "somebody else works here too, and is left alone");
        }
        self.health.notes = notes;
        true
    }
}

fn inspect(
    backends: &mut Backends,
    serving: &mut Serving,
    look: Look,
) -> Result<Vec<Drift>, String> {
    let mut found: Vec<Drift> = serving
        .ears
        .iter()
        .filter_map(|ears| ears.deaf(&serving.enrolment.listeners, &serving.enrolment.dns))
        .collect();
    let enrolment = &serving.enrolment;
    let backend = backends.get(serving.mode)?;
    found.extend(
        backend
            .inspect(enrolment, look)
            .map_err(|error| error.chain())?,
    );
    if let Some(path) = &serving.return_path {
        let off = match look {
            Look::Full => Ok(path.glance()),
            Look::Close => path.inspect(&enrolment.netns),
        };
        found.extend(off.map_err(|error| error.chain())?);
    }
    Ok(found)
}

fn describe(found: &[Drift]) -> String {
    let each = |drift: &Drift| format!("{}: {}", drift.part.as_str(), drift.found);
    found.iter().map(each).collect::<Vec<_>>().join("; ")
}
