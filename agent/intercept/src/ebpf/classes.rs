//! What the kernel has learned of classes of sockets, in words; see `ebpf/src/classes.rs`.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use aya::maps::{HashMap as BpfHashMap, MapData, PerCpuArray};
use shunt_core::workload::{Acceleration, WorkloadName};
use shunt_ebpf_common::classes::{Class, ClassKey, Verdict, Wish, fault};

use super::clock;
use super::object::Object;
use super::observer::Observer;
use crate::InterceptError;

pub(super) struct Classes {
    map: BpfHashMap<MapData, ClassKey, Class>,
    verdicts: PerCpuArray<MapData, u64>,
    /// Or why nothing can be learned.
    pub(super) observer: Result<Observer, String>,
    /// Those for whom something is to be learned, by [`ClassKey::workload`].
    learners: HashMap<u32, WorkloadName>,
    /// As at the last look.
    known: HashMap<ClassKey, Class>,
    /// Since somebody asked.
    pub(super) has_learned: bool,
    changes: u64,
}

impl Classes {
    pub(super) fn load(object: &mut Object) -> Result<Self, InterceptError> {
        Ok(Self {
            map: object.map("SHUNT_CLASSES")?,
            verdicts: object.map("SHUNT_VERDICTS")?,
            observer: Observer::load(object).map_err(|error| error.chain()),
            learners: HashMap::new(),
            known: HashMap::new(),
            has_learned: false,
            changes: 0,
        })
    }

    /// What the programs are told of a wish: without an observer nothing is ever proven.
    pub(super) fn in_kernel(&self, wish: Acceleration) -> Wish {
        match wish {
            Acceleration::Off => Wish::Off,
            Acceleration::Always => Wish::Always,
            Acceleration::Auto if self.observer.is_ok() => Wish::Auto,
            Acceleration::Auto => Wish::Off,
        }
    }

    /// This workload is, or is not, to be learned about from now on.
    pub(super) fn learn(&mut self, object: &mut Object, id: u32, name: Option<&WorkloadName>) {
        match name {
            Some(name) => drop(self.learners.insert(id, name.clone())),
            None => drop(self.learners.remove(&id)),
        }
        let Ok(observer) = &mut self.observer else {
            return;
        };
        if self.learners.is_empty() {
            observer.detach();
        } else if let Err(error) = observer.attach(object) {
            let error = error.chain();
            tracing::error!(error, "nothing is learned of sockets any more");
            self.observer = Err(error);
        }
    }

    /// An enrolment has ended, and its id is never used again.
    pub(super) fn forget(&mut self, id: u32) {
        let all: Vec<ClassKey> = self.map.keys().filter_map(Result::ok).collect();
        for key in all.iter().filter(|key| key.workload == id) {
            let _ = self.map.remove(key);
            self.known.remove(key);
        }
    }

    /// Tells the log what is new.
    pub(super) fn look(&mut self) {
        let changes = self.counted(Verdict::CHANGES);
        if changes == self.changes {
            return;
        }
        self.changes = changes;
        let now: HashMap<ClassKey, Class> = self.map.iter().filter_map(Result::ok).collect();
        for (key, class) in &now {
            let before = self.known.get(key).copied().unwrap_or_default();
            self.say(key, &before, class);
        }
        self.known = now;
        self.has_learned = true;
    }

    fn say(&self, key: &ClassKey, before: &Class, now: &Class) {
        let Some(workload) = self.learners.get(&key.workload) else {
            return;
        };
        let (class, verdict) = (named(key), now.verdict());
        let reason = reason(now);
        if now.late > before.late {
            tracing::error!(
                %workload, class, reason, sockets = now.late,
                "sockets had been accelerated when a program was seen that may notice: see docs/semantics.md, and \
                 configure `acceleration: off` for this port if it misbehaved"
            );
        } else if verdict != before.verdict() {
            match verdict {
                Verdict::Fault => tracing::info!(%workload, class, reason, "not accelerated"),
                Verdict::Proven => {
                    tracing::info!(%workload, class, reason, "accelerated from now on")
                }
                _ => tracing::debug!(%workload, class, reason, "learning about acceleration"),
            }
        }
    }

    /// Classes of a workload, by verdict, as at the last look.
    pub(super) fn summary(&self, id: u32) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for (key, class) in &self.known {
            if key.workload == id {
                let verdict = class.verdict().as_str().to_owned();
                *counts.entry(verdict).or_default() += 1;
            }
        }
        counts
    }

    /// Connections by the verdict of their worse end.
    pub(super) fn connections(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counted = |verdict: Verdict| (verdict.event(), self.counted(verdict as u32));
        Verdict::ALL.into_iter().map(counted)
    }

    fn counted(&self, slot: u32) -> u64 {
        let per_cpu = self.verdicts.get(&slot, 0);
        per_cpu.map_or(0, |counts| counts.iter().sum())
    }

    /// May this end of connections to `port` be accelerated, and why or why not? `wish` as the programs know it.
    pub(super) fn judge(&self, wish: Wish, id: u32, role: u16, port: u16) -> (Verdict, String) {
        match (wish, &self.observer) {
            (Wish::Always, _) => (Verdict::Always, "always".into()),
            (Wish::Off, _) => (Verdict::Off, "off".into()),
            (Wish::Auto, Err(reason)) => {
                let reason = format!("auto, but nothing can be learned here: {reason}");
                (Verdict::Off, reason)
            }
            (Wish::Auto, Ok(_)) => {
                let key = ClassKey {
                    workload: id,
                    port,
                    role,
                };
                let class = self.map.get(&key, 0).unwrap_or_default();
                (class.verdict(), reason(&class))
            }
        }
    }

    /// The same, of clients: of those that block when they connect and of those that do not.
    pub(super) fn judge_clients(&self, wish: Wish, id: u32, port: u16) -> (Verdict, String) {
        let (verdict, reason) = self.judge(wish, id, ClassKey::CLIENT, port);
        let (blocking, other) = self.judge(wish, id, ClassKey::BLOCKING_CLIENT, port);
        let unknown = |role| {
            let key = ClassKey {
                workload: id,
                port,
                role,
            };
            self.map.get(&key, 0).is_err()
        };
        if wish != Wish::Auto || unknown(ClassKey::BLOCKING_CLIENT) {
            (verdict, reason)
        } else if unknown(ClassKey::CLIENT) {
            (blocking, other)
        } else {
            let both = format!("{reason} (of sockets that block when they connect: {other})");
            (verdict.min(blocking), both)
        }
    }
}

fn named(key: &ClassKey) -> String {
    let what = match key.role {
        ClassKey::CLIENT => "its connections to",
        ClassKey::BLOCKING_CLIENT => "its connections, made while blocking, to",
        _ => "connections to its",
    };
    format!("{what} port {}", key.port)
}

/// Why a class has its verdict.
fn reason(class: &Class) -> String {
    let Class { good, watched, .. } = *class;
    let reads = class.reads / Class::SCALE;
    match class.verdict() {
        Verdict::Fault => faulty(class),
        Verdict::Learning => {
            let enough = Class::ENOUGH;
            format!("learning: {good} of {enough} connections seen ({watched} begun)")
        }
        Verdict::Short => format!(
            "short connections: about {reads} reads in each, it pays from {}",
            Class::SHORT
        ),
        _ => format!("proven: nothing that would be different was seen on {good} connections"),
    }
}

fn faulty(class: &Class) -> String {
    let what = match class.fault {
        fault::BLOCKING => "a blocking read",
        fault::FLAGS => "a read with MSG_WAITALL, MSG_TRUNC, MSG_OOB or MSG_ERRQUEUE",
        fault::OTHERWISE => "a socket whose bytes were taken without reading it (splice, mmap)",
        fault::OPTION => "a socket with SO_ZEROCOPY or SO_RCVLOWAT",
        _ => "something",
    };
    let since = Duration::from_nanos(clock::kernel_ns().saturating_sub(class.fault_at));
    let program = class.program.split(|byte| *byte == 0).next();
    let program = String::from_utf8_lossy(program.unwrap_or_default());
    let program = program.replace(char::is_control, "?");
    let mut text = format!("off: {what} was seen {} s ago", since.as_secs());
    if class.process != 0 {
        text += &format!(", by {program} (process {})", class.process);
    }
    if class.late > 0 {
        text += &format!("; {} sockets had been accelerated", class.late);
    }
    text
}
