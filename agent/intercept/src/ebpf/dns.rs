//! DNS capture: hooks at the cgroups of the workloads that want it, and at no other's. They are loaded when the first
//! one does.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya::maps::{HashMap as BpfHashMap, IterableMap, MapData};
use shunt_core::address::from_kernel;
use shunt_core::sockets::{DnsListenerSpec, Family};
use shunt_core::workload::{OnFailure, WorkloadId};
use shunt_ebpf_common::dns::{DnsListeners, ResolverKey};
use shunt_ebpf_common::maps::{Destination, Event, NetnsCookie};

use super::EbpfBackend;
use super::element::Elements;
use super::hooks::{attach, id_of, is_attached, load};
use super::kernel::{Hook, Link};
use super::object::{Object, failed};
use super::pins::Pins;
use crate::drift::{Drift, Part};
use crate::{Enrolment, InterceptError};

/// In attachment order: who reads an answer must be ready before a query is led away.
const HOOKS: [(&str, Hook); 6] = [
    ("shunt_dns_recvmsg4", Hook::Recvmsg4),
    ("shunt_dns_recvmsg6", Hook::Recvmsg6),
    ("shunt_dns_sendmsg4", Hook::Sendmsg4),
    ("shunt_dns_sendmsg6", Hook::Sendmsg6),
    ("shunt_dns_connect4", Hook::Connect4),
    ("shunt_dns_connect6", Hook::Connect6),
];

#[derive(Debug)]
pub(super) struct Dns {
    listeners: BpfHashMap<MapData, NetnsCookie, DnsListeners>,
    resolvers: BpfHashMap<MapData, ResolverKey, Destination>,
    /// Loaded, by name.
    programs: Vec<(&'static str, OwnedFd)>,
    /// By inode.
    attached: HashMap<u64, Attached>,
    served: HashMap<WorkloadId, Served>,
}

#[derive(Debug)]
struct Attached {
    /// The last of [`HOOKS`] first, see there.
    links: Vec<Link>,
    users: Vec<WorkloadId>,
}

#[derive(Debug)]
struct Served {
    netns: NetnsCookie,
    value: DnsListeners,
    cgroup: u64,
}

impl Dns {
    pub(super) fn new(object: &mut Object) -> Result<Self, InterceptError> {
        Ok(Self {
            listeners: object.map("SHUNT_DNS")?,
            resolvers: object.map("SHUNT_RESOLVERS")?,
            programs: Vec::new(),
            attached: HashMap::new(),
            served: HashMap::new(),
        })
    }

    /// What [`Resolvers::from_fd`] takes.
    pub(super) fn resolvers_fd(&self) -> io::Result<OwnedFd> {
        self.resolvers.map().fd().as_fd().try_clone_to_owned()
    }

    /// Leads the workload's queries to its sockets for them. Without such sockets nothing happens.
    pub(super) fn install(
        &mut self,
        object: &mut Object,
        enrolment: &Enrolment,
        cgroup: &Path,
        pins: Option<&Pins>,
    ) -> Result<(), InterceptError> {
        if enrolment.dns.is_empty() {
            return Ok(());
        }
        if self.programs.is_empty() {
            let loaded = HOOKS
                .iter()
                .map(|(name, _)| Ok((*name, load(object, name)?)));
            self.programs = loaded.collect::<Result<_, InterceptError>>()?;
        }
        let (netns, value) = (enrolment.netns.cookie(), value_of(enrolment));
        let written = self.listeners.insert(netns, value, 0);
        written.map_err(|error| failed("write the places for queries", &error))?;
        self.served.insert(
            enrolment.id,
            Served {
                netns,
                value,
                cgroup: 0,
            },
        );
        self.join(enrolment.id, cgroup, pins)
    }

    fn join(
        &mut self,
        id: WorkloadId,
        cgroup: &Path,
        pins: Option<&Pins>,
    ) -> Result<(), InterceptError> {
        let inode = id_of(cgroup)?;
        if !self.attached.contains_key(&inode) {
            let mut links = Vec::with_capacity(HOOKS.len());
            for hook in HOOKS {
                links.insert(0, attach(&self.programs, hook, cgroup)?);
            }
            let users = Vec::new();
            self.attached.insert(inode, Attached { links, users });
        }
        if let Some(attached) = self.attached.get_mut(&inode) {
            attached.users.push(id);
            attached.pin(pins, inode)?;
        }
        if let Some(served) = self.served.get_mut(&id) {
            served.cgroup = inode;
        }
        Ok(())
    }

    /// Its queries go directly from now on.
    pub(super) fn release(&mut self, id: WorkloadId) {
        self.leave(id);
        let Some(served) = self.served.remove(&id) else {
            return;
        };
        // Somebody enrolled since then may have an entry of its own.
        let ours = self.listeners.get(&served.netns, 0);
        if ours.is_ok_and(|value| value.workload == id.0) {
            let _ = self.listeners.remove(&served.netns);
        }
        for v4 in [true, false] {
            for index in 0..DnsListeners::SLOTS {
                let _ = self.resolvers.remove(&ResolverKey::new(id.0, v4, index));
            }
        }
    }

    fn leave(&mut self, id: WorkloadId) {
        self.attached.retain(|_, attached| {
            attached.users.retain(|user| *user != id);
            !attached.users.is_empty()
        });
    }

    pub(super) fn inspect(&self, id: WorkloadId) -> Result<Vec<Drift>, InterceptError> {
        let Some(served) = self.served.get(&id) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        if self.listeners.get(&served.netns, 0).ok() != Some(served.value) {
            let what = "the entry of SHUNT_DNS is gone or changed";
            found.push(Drift::new(Part::Maps, what));
        }
        let mut detached = Vec::new();
        if let Some(attached) = self.attached.get(&served.cgroup) {
            for (link, (name, _)) in attached.links.iter().rev().zip(HOOKS) {
                if !is_attached(link)? {
                    detached.push(name);
                }
            }
        }
        if !detached.is_empty() {
            let what = format!("detached from its cgroup: {}", detached.join(", "));
            found.push(Drift::new(Part::Links, what));
        }
        Ok(found)
    }

    /// Does every place of a family stand for a resolver?
    fn is_full(&self, id: WorkloadId) -> bool {
        let all = |v4| {
            let mut slots = 0..DnsListeners::SLOTS;
            slots.all(|slot| {
                self.resolvers
                    .get(&ResolverKey::new(id.0, v4, slot), 0)
                    .is_ok()
            })
        };
        self.served.contains_key(&id) && (all(true) || all(false))
    }

    pub(super) fn lost_pins(&self, id: WorkloadId) -> usize {
        let served = self.served.get(&id);
        let attached = served.and_then(|served| self.attached.get(&served.cgroup));
        let links = attached.into_iter().flat_map(|attached| &attached.links);
        links.filter(|link| link.has_lost_its_pin()).count()
    }

    pub(super) fn repair(
        &mut self,
        id: WorkloadId,
        cgroup: &Path,
        pins: Option<&Pins>,
    ) -> Result<(), InterceptError> {
        let Some(served) = self.served.get(&id) else {
            return Ok(());
        };
        let written = self.listeners.insert(served.netns, served.value, 0);
        written.map_err(|error| failed("write the places for queries", &error))?;
        if id_of(cgroup)? != served.cgroup {
            self.leave(id);
            return self.join(id, cgroup, pins);
        }
        let Some(attached) = self.attached.get_mut(&served.cgroup) else {
            return self.join(id, cgroup, pins);
        };
        for (link, hook) in attached.links.iter_mut().rev().zip(HOOKS) {
            if !is_attached(link)? {
                *link = attach(&self.programs, hook, cgroup)?;
            }
        }
        attached.pin(pins, served.cgroup)
    }
}

impl Attached {
    fn pin(&mut self, pins: Option<&Pins>, inode: u64) -> Result<(), InterceptError> {
        let Some(pins) = pins else { return Ok(()) };
        let mut links = self.links.iter_mut().rev().zip(HOOKS);
        links.try_for_each(|(link, (name, _))| pins.pin(link, inode, name))
    }
}

impl EbpfBackend {
    /// Queries that do not come to the agent, for want of a place.
    pub(super) fn unheard(&self, enrolment: &Enrolment) -> Option<String> {
        let refused = self.events.get(&(Event::ResolversFull as u32), 0);
        let refused: u64 = refused.map_or(0, |per_cpu| per_cpu.iter().sum());
        if refused == 0 || !self.dns.is_full(enrolment.id) {
            return None;
        }
        let others = match enrolment.spec.on_failure {
            OnFailure::Open => "further ones are asked directly",
            OnFailure::Closed => "queries to further ones are refused",
        };
        let places = DnsListeners::SLOTS;
        Some(format!(
            "its queries to {places} resolvers go through the agent, those that were asked first; {others}"
        ))
    }
}

fn value_of(enrolment: &Enrolment) -> DnsListeners {
    let mut value = DnsListeners {
        workload: enrolment.id.0,
        ..DnsListeners::default()
    };
    for listener in &enrolment.dns {
        let DnsListenerSpec { addr, slot, .. } = listener.spec;
        let ports = match Family::of(addr) {
            Family::V4 => &mut value.ports_v4,
            Family::V6 => &mut value.ports_v6,
        };
        if let Some(port) = ports.get_mut(slot) {
            *port = addr.port();
        }
    }
    value
}

/// The data plane's end of `RESOLVERS`.
#[derive(Debug)]
pub struct Resolvers {
    map: Elements<ResolverKey, Destination>,
}

impl Resolvers {
    /// `map` as [`super::EbpfBackend::resolvers_fd`] gave it.
    pub fn from_fd(map: OwnedFd) -> Self {
        let map = Elements::from_fd(map);
        Self { map }
    }

    /// Whom queries that come by this socket are for.
    ///
    /// # Errors
    /// The kernel does not let this process use the map.
    pub fn of(&self, listener: &DnsListenerSpec) -> io::Result<Option<std::net::SocketAddr>> {
        let v4 = listener.addr.is_ipv4();
        let key = ResolverKey::new(listener.workload.0, v4, listener.slot);
        let found = self.map.get(&key)?;
        Ok(found.map(|to| std::net::SocketAddr::new(from_kernel(to.address), to.port)))
    }
}
