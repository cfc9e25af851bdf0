//! Programs attached to cgroups: loaded once, attached to each enrolled cgroup once however many workloads share it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Display;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, SockOps};
use shunt_core::workload::WorkloadId;

use super::object::{Object, failed};
use super::pins::{HeldLink, Pins};
use crate::InterceptError;

/// In attachment order: what shows addresses and what hands them over come before what changes them.
const SOCK_ADDR: [&str; 6] = [
    "shunt_peername4",
    "shunt_peername6",
    "shunt_sockname4",
    "shunt_sockname6",
    "shunt_connect4",
    "shunt_connect6",
];
const HANDSHAKE: &str = "shunt_handshake";
const AGENT: &str = "shunt_agent";

/// A cgroup's inode, which is its id: never reused, however it is spelled or made anew.
type CgroupId = u64;

#[derive(Debug)]
pub(super) struct Hooks {
    attached: HashMap<CgroupId, Attached>,
    _agent: FdLink,
}

/// By program, in the order in which they are dropped and detached: the rewriting hooks first.
#[derive(Debug)]
struct Attached {
    links: Vec<(&'static str, HeldLink)>,
    users: Vec<WorkloadId>,
}

impl Hooks {
    pub(super) fn load(object: &mut Object, agent_cgroup: &Path) -> Result<Self, InterceptError> {
        for name in SOCK_ADDR {
            sock_addr(object, name)?
                .load()
                .map_err(|error| failed(&format!("load {name}"), &error))?;
        }
        for name in [HANDSHAKE, AGENT] {
            sock_ops(object, name)?
                .load()
                .map_err(|error| failed(&format!("load {name}"), &error))?;
        }
        let agent = attach_sock_ops(object, AGENT, &open(agent_cgroup)?)?;
        Ok(Self {
            attached: HashMap::new(),
            _agent: agent,
        })
    }

    /// With `pins`, they outlive this process.
    pub(super) fn attach(
        &mut self,
        object: &mut Object,
        id: WorkloadId,
        cgroup: &Path,
        pins: Option<&Pins>,
    ) -> Result<(), InterceptError> {
        let directory = open(cgroup)?;
        let cgroup_id = directory
            .metadata()
            .map_err(|error| InterceptError::io("stat cgroup", cgroup.display(), error))?
            .ino();
        let attached = match self.attached.entry(cgroup_id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Attached {
                links: links(object, &directory, cgroup)?,
                users: Vec::new(),
            }),
        };
        attached.users.push(id);
        if let Some(pins) = pins {
            for (program, link) in &mut attached.links {
                link.pin(&pins.path(cgroup_id, program))?;
            }
        }
        Ok(())
    }

    /// The last user of a cgroup takes the programs with it.
    pub(super) fn detach(&mut self, id: WorkloadId) {
        self.attached.retain(|_, attached| {
            attached.users.retain(|user| *user != id);
            !attached.users.is_empty()
        });
    }
}

fn links(
    object: &mut Object,
    directory: &File,
    cgroup: &Path,
) -> Result<Vec<(&'static str, HeldLink)>, InterceptError> {
    let mut links = Vec::with_capacity(SOCK_ADDR.len() + 1);
    let handshake = attach_sock_ops(object, HANDSHAKE, directory)?;
    links.push((HANDSHAKE, HeldLink::new(handshake)));
    for name in SOCK_ADDR {
        let failed =
            |error: &dyn Display| failed(&format!("attach {name} to {}", cgroup.display()), error);
        let program = sock_addr(object, name)?;
        let link = program
            .attach(directory, CgroupAttachMode::Single)
            .and_then(|link| program.take_link(link))
            .map_err(|error| failed(&error))?;
        let link = FdLink::try_from(link).map_err(|error| failed(&error))?;
        links.push((name, HeldLink::new(link)));
    }
    links.reverse();
    Ok(links)
}

fn open(cgroup: &Path) -> Result<File, InterceptError> {
    File::open(cgroup).map_err(|error| InterceptError::io("open cgroup", cgroup.display(), error))
}

fn sock_addr<'a>(
    object: &'a mut Object,
    name: &str,
) -> Result<&'a mut CgroupSockAddr, InterceptError> {
    let program = object
        .main
        .program_mut(name)
        .ok_or_else(|| failed("find program", &name))?;
    program
        .try_into()
        .map_err(|error| failed(&format!("use {name}"), &error))
}

fn sock_ops<'a>(object: &'a mut Object, name: &str) -> Result<&'a mut SockOps, InterceptError> {
    let program = object
        .main
        .program_mut(name)
        .ok_or_else(|| failed("find program", &name))?;
    program
        .try_into()
        .map_err(|error| failed(&format!("use {name}"), &error))
}

fn attach_sock_ops(
    object: &mut Object,
    name: &str,
    cgroup: &File,
) -> Result<FdLink, InterceptError> {
    let program = sock_ops(object, name)?;
    let link = program
        .attach(cgroup, CgroupAttachMode::Single)
        .and_then(|link| program.take_link(link))
        .map_err(|error| failed(&format!("attach {name}"), &error))?;
    FdLink::try_from(link).map_err(|error| failed(&format!("keep {name}"), &error))
}
