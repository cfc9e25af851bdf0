//! Programs attached to cgroups: loaded once, attached to each enrolled cgroup once however many workloads share it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::programs::Program;
use shunt_core::sockets::Family;
use shunt_core::workload::WorkloadId;

use super::kernel::{self, Hook, Link};
use super::object::{Object, failed, missing};
use super::pins::Pins;
use super::scopes::{Place, Scopes};
use crate::InterceptError;
use crate::drift::{Drift, Part};

/// In attachment order: what keeps accelerated sockets from harm, what shows addresses and what hands them over come before what changes them.
const HOOKS: [(&str, Hook); 8] = [
    ("shunt_setsockopt", Hook::SetSockOpt),
    (HANDSHAKE, Hook::SockOps),
    ("shunt_peername4", Hook::Peername4),
    ("shunt_peername6", Hook::Peername6),
    ("shunt_sockname4", Hook::Sockname4),
    ("shunt_sockname6", Hook::Sockname6),
    ("shunt_connect4", Hook::Connect4),
    ("shunt_connect6", Hook::Connect6),
];
pub(super) const HANDSHAKE: &str = "shunt_handshake";
pub(super) const AGENT: &str = "shunt_agent";
/// At the agent's own cgroup: what knows its sockets, and what answers them.
const AGENT_HOOKS: [(&str, Hook); 2] = [(AGENT, Hook::SockOps), ("shunt_room", Hook::GetSockOpt)];

/// A cgroup's inode, which is its id: never reused, however it is spelled or made anew.
type CgroupId = u64;

#[derive(Debug)]
pub(super) struct Hooks {
    /// By name, those of [`HOOKS`], then those of [`AGENT_HOOKS`].
    programs: Vec<(&'static str, OwnedFd)>,
    attached: HashMap<CgroupId, Attached>,
    /// Where each workload's are.
    places: HashMap<WorkloadId, CgroupId>,
    /// In the order of [`AGENT_HOOKS`].
    agent: Vec<Link>,
    agent_cgroup: PathBuf,
    scopes: Scopes,
    /// When all of those were last seen attached: they are the same for every workload.
    agent_seen: Option<Instant>,
}

/// How long that is believed: not for two looks at one workload, nor for two of the supervisor's ticks.
const BELIEVED: Duration = Duration::from_millis(200);

#[derive(Debug)]
struct Attached {
    /// The last of [`HOOKS`] first: links detach when dropped, and those that rewrite must go before the others.
    links: Vec<Link>,
    users: Vec<WorkloadId>,
}

impl Hooks {
    pub(super) fn load(object: &mut Object, agent_cgroup: &Path) -> Result<Self, InterceptError> {
        let names = HOOKS.iter().chain(&AGENT_HOOKS);
        let programs = names
            .map(|(name, _)| *name)
            .map(|name| Ok((name, load(object, name)?)))
            .collect::<Result<Vec<_>, InterceptError>>()?;
        let agent = AGENT_HOOKS
            .into_iter()
            .map(|hook| attach(&programs, hook, agent_cgroup))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            programs,
            attached: HashMap::new(),
            places: HashMap::new(),
            agent,
            agent_cgroup: agent_cgroup.to_owned(),
            scopes: Scopes::load(object)?,
            agent_seen: None,
        })
    }

    /// With `pins`, they outlive this process.
    pub(super) fn attach(
        &mut self,
        id: WorkloadId,
        Place { cgroup, scope, .. }: Place<'_>,
        pins: Option<&Pins>,
    ) -> Result<(), InterceptError> {
        let cgroup_id = id_of(cgroup)?;
        let attached = match self.attached.entry(cgroup_id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let mut links = Vec::with_capacity(HOOKS.len());
                for hook in HOOKS {
                    links.insert(0, attach(&self.programs, hook, cgroup)?);
                }
                let users = Vec::new();
                entry.insert(Attached { links, users })
            }
        };
        attached.users.push(id);
        self.places.insert(id, cgroup_id);
        if let Some(scope) = scope {
            self.scopes
                .set(cgroup_id, HOOKS.map(|(_, hook)| hook), scope)?;
        }
        if let Some(pins) = pins {
            attached.pin(pins, cgroup_id)?;
            self.pin_agent(pins)?;
        }
        Ok(())
    }

    /// A data plane without its supervisor still serves those whom pinned hooks lead to it: its own connections must not
    /// be led to itself.
    fn pin_agent(&mut self, pins: &Pins) -> Result<(), InterceptError> {
        let cgroup_id = id_of(&self.agent_cgroup)?;
        let mut links = self.agent.iter_mut().zip(AGENT_HOOKS);
        links.try_for_each(|(link, (name, _))| pins.pin(link, cgroup_id, name))
    }

    pub(super) fn agent_cgroup(&self) -> &Path {
        &self.agent_cgroup
    }

    /// Does the kernel run the connect hook of this family for `cgroup`?
    pub(super) fn is_connecting(
        &self,
        cgroup: &Path,
        family: Family,
    ) -> Result<bool, InterceptError> {
        let (name, hook) = match family {
            Family::V4 => ("shunt_connect4", Hook::Connect4),
            Family::V6 => ("shunt_connect6", Hook::Connect6),
        };
        let program = self.programs.iter().find(|(known, _)| *known == name);
        let (_, program) = program.ok_or_else(|| missing("program", name))?;
        let io = |error| InterceptError::io("read the programs of", cgroup.display(), error);
        let directory = File::open(cgroup).map_err(io)?;
        let own = kernel::program_id(program.as_fd()).map_err(io)?;
        let attached = kernel::attached(directory.as_fd(), hook).map_err(io)?;
        Ok(attached.iter().any(|program| program.id == own))
    }

    /// The last user of a cgroup takes the programs with it.
    pub(super) fn detach(&mut self, id: WorkloadId) {
        if let Some(cgroup_id) = self.places.remove(&id) {
            self.scopes.forget(cgroup_id);
        }
        self.attached.retain(|_, attached| {
            attached.users.retain(|user| *user != id);
            !attached.users.is_empty()
        });
    }

    /// What is not attached to this workload's cgroup as it should be.
    pub(super) fn inspect(
        &mut self,
        id: WorkloadId,
        cgroup: &Path,
    ) -> Result<Vec<Drift>, InterceptError> {
        let mut found = Vec::new();
        if self.agent_seen.is_none_or(|at| at.elapsed() > BELIEVED) {
            for (link, (name, _)) in self.agent.iter().zip(AGENT_HOOKS) {
                if !is_attached(link)? {
                    let what = format!("{name} is detached from the agent's own cgroup");
                    found.push(Drift::new(Part::Links, what));
                }
            }
            self.agent_seen = found.is_empty().then(Instant::now);
        }
        let at = cgroup.display();
        let Some((cgroup_id, attached)) = self.of(id) else {
            found.push(Drift::new(
                Part::Links,
                format!("nothing is attached to {at}"),
            ));
            return Ok(found);
        };
        // With its cgroup every attachment ends, by and by.
        match fs::metadata(cgroup).map(|now| now.ino()) {
            Ok(now) if now == cgroup_id => {}
            Ok(_) => {
                let what = format!("{at} was removed and made anew");
                found.push(Drift::new(Part::Cgroup, what));
                return Ok(found);
            }
            Err(error) => {
                found.push(Drift::new(Part::Cgroup, format!("{at}: {error}")));
                return Ok(found);
            }
        }
        let mut detached = Vec::new();
        for (link, (name, _)) in attached.links.iter().rev().zip(HOOKS) {
            if !is_attached(link)? {
                detached.push(name);
            }
        }
        if !detached.is_empty() {
            found.push(Drift::new(
                Part::Links,
                format!("detached from {at}: {}", detached.join(", ")),
            ));
        }
        Ok(found)
    }

    /// Those that capture connections, or all others.
    pub(super) fn links(&self, capturing: bool) -> impl Iterator<Item = &Link> {
        let captures = |hook: Hook| matches!(hook, Hook::Connect4 | Hook::Connect6);
        let attached = self.attached.values();
        let attached = attached.flat_map(|attached| attached.links.iter().rev().zip(HOOKS));
        let all = attached.chain(self.agent.iter().zip(AGENT_HOOKS));
        all.filter(move |(_, (_, hook))| captures(*hook) == capturing)
            .map(|(link, _)| link)
    }

    /// Those of this workload's cgroup and of the agent's.
    pub(super) fn lost_pins(&self, id: WorkloadId) -> usize {
        let links = self.of(id).map(|(_, attached)| attached.links.iter());
        let links = links.into_iter().flatten().chain(&self.agent);
        links.filter(|link| link.has_lost_its_pin()).count()
    }

    /// Attaches what is not attached. What is stays: no connection is made between two states.
    pub(super) fn repair(
        &mut self,
        id: WorkloadId,
        place: Place<'_>,
        pins: Option<&Pins>,
    ) -> Result<(), InterceptError> {
        let cgroup = place.cgroup;
        for (link, hook) in self.agent.iter_mut().zip(AGENT_HOOKS) {
            if !is_attached(link)? {
                *link = attach(&self.programs, hook, &self.agent_cgroup)?;
            }
        }
        let cgroup_id = id_of(cgroup)?;
        if self
            .of(id)
            .is_none_or(|(attached, _)| attached != cgroup_id)
        {
            self.detach(id);
            return self.attach(id, place, pins);
        }
        let Some(attached) = self.attached.get_mut(&cgroup_id) else {
            return Ok(());
        };
        for (link, hook) in attached.links.iter_mut().rev().zip(HOOKS) {
            if !is_attached(link)? {
                *link = attach(&self.programs, hook, cgroup)?;
            }
        }
        if let Some(scope) = place.scope {
            self.scopes
                .set(cgroup_id, HOOKS.map(|(_, hook)| hook), scope)?;
        }
        if let Some(pins) = pins {
            attached.pin(pins, cgroup_id)?;
            self.pin_agent(pins)?;
        }
        Ok(())
    }

    fn of(&self, id: WorkloadId) -> Option<(CgroupId, &Attached)> {
        let cgroup_id = *self.places.get(&id)?;
        Some((cgroup_id, self.attached.get(&cgroup_id)?))
    }
}

impl Attached {
    fn pin(&mut self, pins: &Pins, cgroup_id: CgroupId) -> Result<(), InterceptError> {
        let mut links = self.links.iter_mut().rev().zip(HOOKS);
        links.try_for_each(|(link, (name, _))| pins.pin(link, cgroup_id, name))
    }
}

pub(super) fn id_of(cgroup: &Path) -> Result<CgroupId, InterceptError> {
    let stat = fs::metadata(cgroup);
    let stat = stat.map_err(|error| InterceptError::io("stat cgroup", cgroup.display(), error))?;
    Ok(stat.ino())
}

pub(super) fn is_attached(link: &Link) -> Result<bool, InterceptError> {
    let target = link.target();
    let target = target.map_err(|error| InterceptError::io("ask about", "a link", error))?;
    Ok(target != 0)
}

pub(super) fn attach(
    programs: &[(&'static str, OwnedFd)],
    (name, hook): (&'static str, Hook),
    cgroup: &Path,
) -> Result<Link, InterceptError> {
    let io = |what, error| InterceptError::io(what, cgroup.display(), error);
    let directory = File::open(cgroup).map_err(|error| io("open cgroup", error))?;
    let program = programs.iter().find(|(known, _)| *known == name);
    let (_, program) = program.ok_or_else(|| missing("program", name))?;
    Link::attach(program.as_fd(), directory.as_fd(), hook)
        .map_err(|error| failed(&format!("attach {name} to {}", cgroup.display()), &error))
}

pub(super) fn load(object: &mut Object, name: &str) -> Result<OwnedFd, InterceptError> {
    let program = object.main.program_mut(name);
    let program = program.ok_or_else(|| missing("program", name))?;
    let loaded = match &mut *program {
        Program::SockOps(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        _ => return Err(missing("program of a kind for cgroups", name)),
    };
    let fd = loaded.and_then(|()| {
        program
            .fd()?
            .as_fd()
            .try_clone_to_owned()
            .map_err(Into::into)
    });
    fd.map_err(|error| failed(&format!("load {name}"), &error))
}
