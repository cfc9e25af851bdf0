//! Same-node connections past the TCP stack: loads what that needs, and tells the hooks whose address is whose.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{HashMap, IterableMap, MapData, SockHash};
use aya::programs::SkMsg;
use shunt_core::address::to_kernel;
use shunt_core::behaviour::Behaviour;
use shunt_core::workload::{Acceleration as Configured, AccelerationPolicy, WorkloadId};
use shunt_ebpf_common::classes::Wish;
use shunt_ebpf_common::decision::Address;
use shunt_ebpf_common::maps::{Handoff, NetnsCookie, OwnFlow, SocketCookie, Workload};

use super::EbpfBackend;
use super::classes::Classes;
use super::object::{Object, failed, missing};
use crate::{Enrolment, InterceptError};

pub(super) struct Acceleration {
    addresses: HashMap<MapData, Address, NetnsCookie>,
    handoffs: HashMap<MapData, SocketCookie, Handoff>,
    peers: HashMap<MapData, SocketCookie, SocketCookie>,
    cut: HashMap<MapData, SocketCookie, u32>,
    own_flows: HashMap<MapData, OwnFlow, u32>,
    ends: MapData,
    /// Who has each address.
    owners: BTreeMap<IpAddr, Vec<NetnsCookie>>,
    /// Of workloads that other rules than ours steer.
    unhooked: BTreeMap<NetnsCookie, Vec<IpAddr>>,
    pub(super) classes: Classes,
    sockets: SockHash<MapData, SocketCookie>,
}

impl Acceleration {
    /// # Errors
    /// This kernel cannot do it; everything else works.
    pub(super) fn load(object: &mut Object) -> Result<Self, InterceptError> {
        std::mem::replace(&mut object.offsets, Ok(()))?;
        let sockets: SockHash<MapData, SocketCookie> = object.map("SHUNT_SOCKHASH")?;
        let name = "shunt_message";
        let program = object.main.program_mut(name);
        let program = program.ok_or_else(|| missing("program", name))?;
        let attach = |program: &mut SkMsg| {
            program.load()?;
            program.attach(sockets.fd()).map(|_| ())
        };
        let attached = program.try_into().and_then(attach);
        attached.map_err(|error| failed("attach to the socket hash", &error))?;
        Ok(Self {
            addresses: object.map("SHUNT_ADDRESSES")?,
            handoffs: object.map("SHUNT_HANDOFFS")?,
            peers: object.map("SHUNT_PEERS")?,
            cut: object.map("SHUNT_CUT")?,
            own_flows: object.map("SHUNT_OWN_FLOWS")?,
            ends: object.sk_storage("SHUNT_ENDS")?,
            owners: BTreeMap::new(),
            unhooked: BTreeMap::new(),
            classes: Classes::load(object)?,
            sockets,
        })
    }

    /// What the data plane needs, in the order of [`super::Shortcuts::from_fds`].
    pub(super) fn fds(&self) -> std::io::Result<Vec<OwnedFd>> {
        let maps = [
            &self.ends,
            self.peers.map(),
            self.handoffs.map(),
            self.cut.map(),
        ];
        let clone = |map: &MapData| map.fd().as_fd().try_clone_to_owned();
        maps.into_iter().map(clone).collect()
    }

    /// The socket hash, for the battery alone.
    pub(super) fn sockets_fd(&self) -> std::io::Result<OwnedFd> {
        self.sockets.fd().as_fd().try_clone_to_owned()
    }

    /// A data plane is gone, and with it its flows: what it noted of them is worth nothing.
    pub(super) fn forget_flows(&mut self) {
        let proxied = |(_, handoff): &(SocketCookie, Handoff)| handoff.flags & Handoff::DIRECT == 0;
        let known: Vec<(SocketCookie, Handoff)> =
            self.handoffs.iter().filter_map(Result::ok).collect();
        for (cookie, _) in known.into_iter().filter(proxied) {
            let _ = self.handoffs.remove(&cookie);
        }
        let known: Vec<SocketCookie> = self.cut.keys().filter_map(Result::ok).collect();
        for cookie in known {
            let _ = self.cut.remove(&cookie);
        }
    }

    /// These addresses are this namespace's, in place of `before`. One that two namespaces have is nobody's: it proves
    /// nothing.
    pub(super) fn move_in(
        &mut self,
        before: &[IpAddr],
        now: &[IpAddr],
        netns: NetnsCookie,
    ) -> Result<(), InterceptError> {
        for address in before.iter().filter(|address| !now.contains(address)) {
            self.move_out(*address, netns);
        }
        for address in now {
            let owners = self.owners.entry(*address).or_default();
            if !owners.contains(&netns) {
                owners.push(netns);
            }
            self.write_owner(*address)?;
        }
        Ok(())
    }

    pub(super) fn move_out(&mut self, address: IpAddr, netns: NetnsCookie) {
        if let Some(owners) = self.owners.get_mut(&address) {
            owners.retain(|owner| *owner != netns);
        }
        if let Err(error) = self.write_owner(address) {
            let error = error.chain();
            tracing::warn!(%address, error, "connections to it are not recognised");
        }
    }

    /// Nobody tells any more when direct connections from these addresses end. Another one with the same ports would be
    /// let through unasked.
    pub(super) fn forget_direct_flows(&mut self, from: &[IpAddr]) {
        let from: Vec<Address> = from.iter().map(|address| to_kernel(*address)).collect();
        let flows = self.own_flows.iter().filter_map(Result::ok);
        let of_these =
            |(flow, by): &(OwnFlow, u32)| *by == OwnFlow::DIRECT && from.contains(&flow.source);
        let gone: Vec<(OwnFlow, u32)> = flows.filter(of_these).collect();
        for (flow, _) in gone {
            let _ = self.own_flows.remove(&flow);
        }
    }

    fn write_owner(&mut self, address: IpAddr) -> Result<(), InterceptError> {
        let key = to_kernel(address);
        match self.owners.get(&address).map(Vec::as_slice) {
            Some([owner]) => self
                .addresses
                .insert(key, owner, 0)
                .map_err(|error| failed("write a workload's address", &error)),
            owners => {
                if owners.is_none_or(<[_]>::is_empty) {
                    self.owners.remove(&address);
                }
                // It fails when it was nobody's before.
                let _ = self.addresses.remove(&key);
                Ok(())
            }
        }
    }

    /// These namespaces' workloads have no hooks: whoever connects to them is the agent's.
    fn note_unhooked(
        &mut self,
        now: BTreeMap<NetnsCookie, Vec<IpAddr>>,
    ) -> Result<(), InterceptError> {
        if self.unhooked == now {
            return Ok(());
        }
        let before = std::mem::take(&mut self.unhooked);
        let gone = before.iter().filter(|(netns, _)| !now.contains_key(netns));
        for (netns, addresses) in gone {
            self.move_in(addresses, &[], *netns)?;
        }
        for (netns, addresses) in &now {
            let before = before.get(netns).map_or(&[][..], Vec::as_slice);
            self.move_in(before, addresses, *netns)?;
        }
        self.unhooked = now;
        Ok(())
    }

    pub(super) fn owner(&self, address: IpAddr) -> Option<NetnsCookie> {
        self.addresses.get(&to_kernel(address), 0).ok()
    }
}

impl EbpfBackend {
    /// Accelerates nothing when this kernel may not: `learned` is what [`super::battery::Trial::learn`] said.
    pub fn heed(&mut self, learned: &Result<Behaviour, String>) {
        let refusal = match learned {
            Ok(behaviour) => behaviour.refusal(),
            Err(reason) => Some(reason.clone()),
        };
        if let Some(reason) = &refusal {
            tracing::warn!(reason, "nothing is accelerated");
        }
        self.refusal = refusal;
    }

    /// Why nothing is accelerated.
    pub(super) fn why_not(&self) -> Option<&str> {
        let missing = self.acceleration.as_ref().err();
        missing.or(self.refusal.as_ref()).map(String::as_str)
    }

    /// The same for people, of what is wished; empty if it can be had.
    pub(super) fn without_acceleration(&self, wishes: &AccelerationPolicy) -> String {
        match (self.why_not(), &self.acceleration) {
            (Some(reason), _) if wishes.is_any() => format!("; nothing is accelerated: {reason}"),
            (None, Ok(acceleration)) if wishes.learns() => match &acceleration.classes.observer {
                Err(reason) => format!("; `acceleration: auto` accelerates nothing: {reason}"),
                Ok(_) => String::new(),
            },
            _ => String::new(),
        }
    }

    /// The namespaces, by cookie, and addresses of workloads that are steered without hooks: what connects to them does
    /// not go past the agent.
    pub fn steered_by_rules(&mut self, workloads: BTreeMap<NetnsCookie, Vec<IpAddr>>) {
        let Ok(acceleration) = &mut self.acceleration else {
            return;
        };
        if let Err(error) = acceleration.note_unhooked(workloads) {
            let error = error.chain();
            tracing::error!(
                error,
                "connections to workloads in iptables mode are told of twice"
            );
        }
    }

    pub(super) fn possible<'a>(&'a self, enrolment: &'a Enrolment) -> Possible<'a> {
        let wish = &enrolment.spec.acceleration;
        Possible {
            wish,
            classes: match (self.why_not(), &self.acceleration) {
                (None, Ok(acceleration)) => Some(&acceleration.classes),
                _ => None,
            },
            direct: wish.direct && enrolment.needs_proxy.is_none() && self.acceleration.is_ok(),
        }
    }

    /// What is known of a workload's sockets, by verdict.
    pub fn classes(&self, id: WorkloadId) -> BTreeMap<String, u64> {
        let known = self.acceleration.as_ref();
        known.map_or_else(|_| BTreeMap::new(), |known| known.classes.summary(id.0))
    }

    /// Has [`EbpfBackend::classes`] changed since this was asked last?
    pub fn has_learned(&mut self) -> bool {
        let known = self.acceleration.as_mut();
        known.is_ok_and(|known| std::mem::take(&mut known.classes.has_learned))
    }

    /// Begins or ends learning about a workload's sockets, as it is configured. Before its programs are told.
    pub(super) fn learn(&mut self, enrolment: &Enrolment) {
        if let Ok(acceleration) = &mut self.acceleration {
            let (id, spec) = (enrolment.id.0, &enrolment.spec);
            let name = spec.acceleration.learns().then_some(&spec.name);
            acceleration.classes.learn(&mut self.object, id, name);
        }
    }

    pub(super) fn unlearn(&mut self, id: WorkloadId) {
        if let Ok(acceleration) = &mut self.acceleration {
            acceleration.classes.learn(&mut self.object, id.0, None);
            acceleration.classes.forget(id.0);
        }
    }
}

/// What a workload wishes, and what of it can be had.
pub(super) struct Possible<'a> {
    pub(super) wish: &'a AccelerationPolicy,
    /// `None`: nothing is accelerated.
    classes: Option<&'a Classes>,
    direct: bool,
}

impl Possible<'_> {
    /// What the programs are told of a wish.
    pub(super) fn in_kernel(&self, wish: Configured) -> Wish {
        let known = self
            .classes
            .filter(|_| wish != Configured::Auto || self.wish.learns());
        known.map_or(Wish::Off, |classes| classes.in_kernel(wish))
    }

    /// What the programs read of a port with this wish.
    pub(super) fn bits(&self, wish: Configured) -> u32 {
        self.in_kernel(wish).bits() | self.direct(wish)
    }

    /// The bits of [`Workload::flags`].
    pub(super) fn flags(&self) -> u32 {
        let by_port = match self.wish.ports.is_empty() {
            true => 0,
            false => Workload::ACCELERATION_BY_PORT,
        };
        self.bits(self.wish.default) | by_port
    }

    fn direct(&self, wish: Configured) -> u32 {
        match self.direct && wish != Configured::Off {
            true => Workload::DIRECT,
            false => 0,
        }
    }
}
