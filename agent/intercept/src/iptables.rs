//! The iptables backend: nat REDIRECT in the workload's namespace, behind a dead-man switch that the kernel judges.
//!
//! What differs from eBPF mode: sockets bound to a device are captured too (netfilter cannot see it), and inbound
//! ports are captured whether or not anybody listens on them, so a closed port is reset after the handshake.
//! A namespace's legacy nat table, once there, cannot be removed while the namespace lives: it stays, empty. Without
//! IPv6, or without a listener of a family, a namespace gets no rules of that family.

mod asked;
mod choice;
mod dead_man;
mod estate;
mod evaluate;
mod explain;
pub(crate) mod foreign;
mod inspection;
mod legacy;
mod live;
mod netfilter;
mod probe;
mod render;
mod sweep;
mod tools;
mod tracking;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::sync::Arc;

use shunt_core::explain::{Explanation, Inquiry};
use shunt_core::flow::Direction;
use shunt_core::sockets::Family;
use shunt_core::workload::{Mode, WorkloadId};

use self::asked::Asked;
use self::choice::{Abilities, Choice, loopback_is_up};
pub use self::dead_man::{DeadMan, keep_switch};
use self::dead_man::{Switch, create_sets, destroy_sets};
use self::inspection::Written;
use self::netfilter::Kept;
use self::render::{Rendered, has_chains, jumps, removal, return_to};
pub use self::sweep::{cleanup, leftovers};
use self::sweep::{sweep, unhook};
use self::tools::{Tools, Variant};
use self::tracking::Tracking;
use crate::drift::{Drift, Look};
use crate::netns::Netns;
use crate::{Backend, Enrolment, Finding, InterceptError, Marks};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Of more workloads than these every other one is refreshed at a time, so each every 500 ms, which still is twice as
/// often as its switch wants: an idle node costs no more then.
const MANY: usize = 64;

/// See the head of this module.
#[derive(Debug)]
pub struct IptablesBackend {
    marks: Marks,
    tools: Tools,
    abilities: Abilities,
    installed: HashMap<WorkloadId, Installed>,
    /// By namespace, then in the order of [`FAMILIES`]: what of the nat tables was there before us, and stays.
    foreign: HashMap<u64, Vec<Kept>>,
    /// By namespace: what keeps flows alive when the rules are gone, and connections from one port apart.
    tracking: HashMap<u64, Tracking>,
    asked: Asked,
    /// The same of the supervisor before this one, which nobody has taken over yet.
    inherited: HashMap<u64, OwnedFd>,
    beat: u32,
}

#[derive(Debug)]
struct Installed {
    choice: Choice,
    /// What keeps the rules closed.
    switches: Vec<Switch>,
    written: Written,
    /// Why there is no table of our own.
    untracked: Option<String>,
}

/// The nat tables as they were.
type Before = Vec<(Family, String)>;

impl IptablesBackend {
    /// # Errors
    /// No usable iptables is installed.
    pub fn new(marks: Marks) -> Result<Self, InterceptError> {
        Self::with_dead_man(marks, None)
    }

    /// With this dead-man switch instead of the first that works.
    ///
    /// # Errors
    /// As [`IptablesBackend::new`].
    pub fn with_dead_man(marks: Marks, wanted: Option<DeadMan>) -> Result<Self, InterceptError> {
        let tools = Tools::find()?;
        let abilities = Abilities::new(&tools, wanted);
        Ok(Self {
            marks,
            tools,
            abilities,
            installed: HashMap::new(),
            foreign: HashMap::new(),
            tracking: HashMap::new(),
            asked: Asked::default(),
            inherited: HashMap::new(),
            beat: 0,
        })
    }

    fn put(&mut self, enrolment: &Enrolment, choice: Choice) -> Result<(), InterceptError> {
        let switches = self.apply(enrolment, &choice)?;
        let written = Written::read(enrolment, &choice, self.marks)?;
        let untracked = self.track(enrolment);
        let installed = Installed {
            choice,
            switches,
            written,
            untracked,
        };
        self.installed.insert(enrolment.id, installed);
        Ok(())
    }

    /// Why it cannot be.
    fn track(&mut self, enrolment: &Enrolment) -> Option<String> {
        match self.tracking.entry(enrolment.netns.inode()) {
            Entry::Occupied(mut kept) => kept.get_mut().serve(enrolment),
            Entry::Vacant(place) => {
                let inherited = self.inherited.remove(&enrolment.netns.inode());
                let tracking = match inherited {
                    Some(socket) => Ok(Tracking::take_over(socket, enrolment)),
                    None => Tracking::keep(enrolment),
                };
                match tracking {
                    Ok(tracking) => drop(place.insert(tracking)),
                    Err(error) => return Some(error.chain()),
                }
            }
        }
        None
    }

    /// All families or none. The switches are open, nobody has refreshed them.
    fn apply(
        &mut self,
        enrolment: &Enrolment,
        choice: &Choice,
    ) -> Result<Vec<Switch>, InterceptError> {
        let netns = &enrolment.netns;
        if choice.dead_man == Some(DeadMan::Set) {
            create_sets(netns, &captured(enrolment))?;
        }
        let mut before = Before::new();
        for family in FAMILIES {
            before.push((family, self.tools.save(netns, choice.variant, family)?));
        }
        // What was there when we first came counts: later it is ours.
        if !self.foreign.contains_key(&netns.inode()) {
            let seen = before
                .iter()
                .map(|(family, saved)| self.tools.foreign(netns, choice.variant, *family, saved));
            self.foreign
                .insert(netns.inode(), seen.collect::<Result<_, _>>()?);
        }
        let applied = self
            .apply_families(enrolment, choice, &before)
            .and_then(|()| switches(enrolment, choice.dead_man));
        if applied.is_err() {
            self.roll_back(netns, choice.variant, &before);
        }
        applied
    }

    /// At the same time, where their programs do not wait for each other's lock.
    fn apply_families(
        &self,
        enrolment: &Enrolment,
        choice: &Choice,
        before: &Before,
    ) -> Result<(), InterceptError> {
        let apply = |(family, saved): &(Family, String)| {
            self.apply_family(enrolment, choice, *family, saved)
        };
        if choice.variant == Variant::Legacy {
            return before.iter().try_for_each(apply);
        }
        std::thread::scope(|scope| {
            let started = before.iter().map(|each| scope.spawn(move || apply(each)));
            let started: Vec<_> = started.collect();
            // All of them: what they did is undone together.
            let done = started
                .into_iter()
                .map(|each| each.join().unwrap_or_else(|panic| resume_unwind(panic)));
            done.collect::<Vec<_>>().into_iter().collect()
        })
    }

    fn apply_family(
        &self,
        enrolment: &Enrolment,
        choice: &Choice,
        family: Family,
        saved: &str,
    ) -> Result<(), InterceptError> {
        let rendered = Rendered::of(enrolment, self.marks, choice, family);
        let text = match rendered.captures_nothing() {
            // The family may have gone from the namespace since.
            true => removal(saved),
            false => Some(rendered.transaction(&jumps(saved))),
        };
        text.map_or(Ok(()), |text| {
            self.tools
                .restore(&enrolment.netns, choice.variant, family, &text)
        })
    }

    fn roll_back(&self, netns: &Netns, variant: Variant, before: &Before) {
        let mut foreign = self.foreign.get(&netns.inode()).into_iter().flatten();
        for (family, before) in before {
            let undone = self.tools.save(netns, variant, *family).and_then(|now| {
                let text = return_to(before, &now);
                text.map_or(Ok(()), |text| {
                    self.tools.restore(netns, variant, *family, &text)
                })?;
                let unhooked = has_chains(before);
                match foreign.next().filter(|_| !unhooked) {
                    Some(keep) => self.tools.drop_empty_table(netns, variant, *family, keep),
                    None => Ok(()),
                }
            });
            if let Err(error) = undone {
                tracing::error!(error = error.chain(), "cannot undo a failed transaction");
            }
        }
        if !before.iter().any(|(_, saved)| has_chains(saved))
            && let Err(error) = destroy_sets(netns)
        {
            tracing::error!(error = error.chain(), "cannot undo a failed transaction");
        }
    }
}

impl Backend for IptablesBackend {
    fn mode(&self) -> Mode {
        Mode::Iptables
    }

    fn install(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError> {
        if !loopback_is_up(&enrolment.netns) {
            return Err(InterceptError::Unsupported(format!(
                "the loopback interface is down in {}: redirected connections would reach nobody; \
                 set it up (ip link set lo up)",
                enrolment.netns.path().display()
            )));
        }
        self.asked.attempt(enrolment)?;
        let on_failure = enrolment.spec.on_failure;
        let choice = self
            .abilities
            .choose(&self.tools, &enrolment.netns, on_failure)?;
        self.put(enrolment, choice)
    }

    fn update(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError> {
        let Some(installed) = self.installed.get(&enrolment.id) else {
            return self.install(enrolment);
        };
        // The rules stay where they are, whatever others have done since.
        let variant = installed.choice.variant;
        let choice = self
            .abilities
            .stay(&self.tools, variant, enrolment.spec.on_failure)?;
        self.put(enrolment, choice)
    }

    /// Takes out the jumps only. The REDIRECT rules stay where nothing leads to them: with the last of them the kernel
    /// would stop tracking the namespace's connections, and with that translating the flows under way.
    fn release(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError> {
        let Some(installed) = self.installed.remove(&enrolment.id) else {
            return Ok(());
        };
        unhook(&self.tools, &enrolment.netns, installed.choice.variant)
    }

    fn finish(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError> {
        let inode = enrolment.netns.inode();
        self.asked.forget(inode);
        let tracking = self.tracking.remove(&inode);
        // One for all of it: closing holds up the next.
        let netfilter = tracking.map(Tracking::let_go);
        let Some(foreign) = self.foreign.get(&inode) else {
            // Nothing of ours was ever there.
            return Ok(());
        };
        let swept = sweep(&self.tools, &enrolment.netns, Some(foreign), netfilter);
        swept.failure.map_or(Ok(()), Err)?;
        self.foreign.remove(&inode);
        Ok(())
    }

    fn inspect(&mut self, enrolment: &Enrolment, look: Look) -> Result<Vec<Drift>, InterceptError> {
        let Some(installed) = self.installed.get_mut(&enrolment.id) else {
            return Ok(Vec::new());
        };
        let found = installed.inspect(&enrolment.netns, look);
        if look == Look::Close && installed.untracked.is_some() {
            // The other agent's flows may have ended.
            let untracked = self.track(enrolment);
            if let Some(installed) = self.installed.get_mut(&enrolment.id) {
                installed.untracked = untracked;
            }
        }
        found
    }

    fn repair(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError> {
        self.update(enrolment)
    }

    fn describe(&self, enrolment: &Enrolment) -> String {
        let installed = self.installed.get(&enrolment.id);
        installed.map_or("not installed".into(), |installed| {
            installed.choice.reason.clone()
        })
    }

    fn shortcoming(&self, enrolment: &Enrolment) -> Option<String> {
        let tracking = self.tracking.get(&enrolment.netns.inode());
        let untracked = self.installed.get(&enrolment.id)?.untracked.as_deref();
        let why = tracking.and_then(Tracking::refusal).or(untracked)?;
        Some(format!(
            "of connections from one source port at the same moment one may take a second: {why}"
        ))
    }

    fn resolver(
        &mut self,
        netns: &Arc<Netns>,
        listener: SocketAddr,
        client: SocketAddr,
    ) -> Result<SocketAddr, InterceptError> {
        self.asked.resolver(netns, listener, client)
    }

    fn explain(
        &self,
        enrolment: &Enrolment,
        inquiry: &Inquiry,
    ) -> Result<Explanation, InterceptError> {
        self.explanation(enrolment, inquiry)
    }

    fn keep_alive(&mut self) {
        self.beat = self.beat.wrapping_add(1);
        let many = self.installed.len() > MANY;
        for (id, installed) in &mut self.installed {
            // Whoever is new is told at once that he is captured, and relies on it.
            let is_new = installed.switches.iter().any(Switch::is_new);
            if many && !is_new && (id.0 ^ self.beat) & 1 == 1 {
                continue;
            }
            installed.switches.iter_mut().for_each(Switch::keep_alive);
        }
    }
}

/// The families that are steered.
fn captured(enrolment: &Enrolment) -> Vec<Family> {
    let directions = [Direction::Outbound, Direction::Inbound];
    let listens = |family| {
        directions
            .into_iter()
            .any(|way| enrolment.port(way, family).is_some())
    };
    FAMILIES
        .into_iter()
        .filter(|family| listens(*family))
        .collect()
}

fn switches(
    enrolment: &Enrolment,
    dead_man: Option<DeadMan>,
) -> Result<Vec<Switch>, InterceptError> {
    let Some(kind) = dead_man else {
        return Ok(Vec::new());
    };
    let families = captured(enrolment).into_iter();
    families
        .map(|family| Switch::open(&enrolment.netns, family, kind))
        .collect()
}

/// What `shunt check` says of iptables mode. Tries everything for real, in namespaces made for it.
pub fn probe() -> Vec<Finding> {
    probe::probe()
}
