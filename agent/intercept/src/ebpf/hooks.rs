//! Programs attached to cgroups: loaded once, attached to each enrolled cgroup once however many workloads share it.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use aya::programs::cgroup_sock_addr::CgroupSockAddrLink;
use aya::programs::sock_ops::SockOpsLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, SockOps};
use shunt_core::sockets::Family;
use shunt_core::workload::WorkloadId;

use super::attached;
use super::object::{Object, failed, missing};
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
    _agent: SockOpsLink,
}

/// Links detach when dropped; fields drop in order, so the rewriting hooks go first.
#[derive(Debug)]
struct Attached {
    _sock_addr: Vec<CgroupSockAddrLink>,
    _handshake: SockOpsLink,
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

    pub(super) fn attach(
        &mut self,
        object: &mut Object,
        id: WorkloadId,
        cgroup: &Path,
    ) -> Result<(), InterceptError> {
        let directory = open(cgroup)?;
        let cgroup_id = directory
            .metadata()
            .map_err(|error| InterceptError::io("stat cgroup", cgroup.display(), error))?
            .ino();
        if let Some(attached) = self.attached.get_mut(&cgroup_id) {
            attached.users.push(id);
            return Ok(());
        }
        let handshake = attach_sock_ops(object, HANDSHAKE, &directory)?;
        let mut links = Vec::with_capacity(SOCK_ADDR.len());
        for name in SOCK_ADDR {
            let program = sock_addr(object, name)?;
            let link = program
                .attach(&directory, CgroupAttachMode::Single)
                .and_then(|link| program.take_link(link))
                .map_err(|error| {
                    failed(&format!("attach {name} to {}", cgroup.display()), &error)
                })?;
            links.push(link);
        }
        // Dropped from the back of this list's point of view: connect hooks first.
        links.reverse();
        let attached = Attached {
            _sock_addr: links,
            _handshake: handshake,
            users: vec![id],
        };
        self.attached.insert(cgroup_id, attached);
        Ok(())
    }

    /// Does the kernel run the connect hook of this family for `cgroup`?
    pub(super) fn is_attached(
        object: &Object,
        cgroup: &Path,
        family: Family,
    ) -> Result<bool, InterceptError> {
        let (name, place) = match family {
            Family::V4 => ("shunt_connect4", attached::INET4_CONNECT),
            Family::V6 => ("shunt_connect6", attached::INET6_CONNECT),
        };
        let program = object
            .main
            .program(name)
            .ok_or_else(|| missing("program", name))?;
        let id = program
            .info()
            .map_err(|error| failed(&format!("ask about {name}"), &error))?
            .id();
        let attached = attached::programs(&open(cgroup)?, place)
            .map_err(|error| InterceptError::io("read the programs of", cgroup.display(), error))?;
        Ok(attached.contains(&id))
    }

    /// The last user of a cgroup takes the programs with it.
    pub(super) fn detach(&mut self, id: WorkloadId) {
        self.attached.retain(|_, attached| {
            attached.users.retain(|user| *user != id);
            !attached.users.is_empty()
        });
    }
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
        .ok_or_else(|| missing("program", name))?;
    program
        .try_into()
        .map_err(|error| failed(&format!("use {name}"), &error))
}

fn sock_ops<'a>(object: &'a mut Object, name: &str) -> Result<&'a mut SockOps, InterceptError> {
    let program = object
        .main
        .program_mut(name)
        .ok_or_else(|| missing("program", name))?;
    program
        .try_into()
        .map_err(|error| failed(&format!("use {name}"), &error))
}

fn attach_sock_ops(
    object: &mut Object,
    name: &str,
    cgroup: &File,
) -> Result<SockOpsLink, InterceptError> {
    let program = sock_ops(object, name)?;
    program
        .attach(cgroup, CgroupAttachMode::Single)
        .and_then(|link| program.take_link(link))
        .map_err(|error| failed(&format!("attach {name}"), &error))
}
