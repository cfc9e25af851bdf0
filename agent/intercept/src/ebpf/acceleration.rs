//! Same-node connections past the TCP stack: loads what that needs, and tells the hooks whose address is whose.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{HashMap, IterableMap, MapData, SockHash};
use aya::programs::SkMsg;
use shunt_core::address::to_kernel;
use shunt_core::behaviour::Behaviour;
use shunt_core::explain::Inquiry;
use shunt_core::flow::{DataPath, Direction};
use shunt_core::workload::{Acceleration as Wish, AccelerationPolicy};
use shunt_ebpf_common::decision::Address;
use shunt_ebpf_common::maps::{Handoff, NetnsCookie, RuleKey, SocketCookie, Workload};

use super::object::{Object, failed, missing};
use super::{EbpfBackend, Enrolled, RuleEntry, trie};
use crate::{Enrolment, InterceptError};

pub(super) struct Acceleration {
    addresses: HashMap<MapData, Address, NetnsCookie>,
    handoffs: HashMap<MapData, SocketCookie, Handoff>,
    peers: HashMap<MapData, SocketCookie, SocketCookie>,
    cut: HashMap<MapData, SocketCookie, u32>,
    ends: MapData,
    /// Who has each address.
    owners: BTreeMap<IpAddr, Vec<NetnsCookie>>,
    /// Of workloads that other rules than ours steer.
    unhooked: BTreeMap<NetnsCookie, Vec<IpAddr>>,
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
            ends: object.sk_storage("SHUNT_ENDS")?,
            owners: BTreeMap::new(),
            unhooked: BTreeMap::new(),
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

    fn owner(&self, address: IpAddr) -> Option<NetnsCookie> {
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

    pub(super) fn possible<'a>(&self, enrolment: &'a Enrolment) -> Possible<'a> {
        let wish = &enrolment.spec.acceleration;
        Possible {
            wish,
            accelerates: self.why_not().is_none(),
            direct: wish.direct && enrolment.needs_proxy.is_none() && self.acceleration.is_ok(),
        }
    }

    /// The path that a steered connection takes, and why.
    pub(super) fn path(&self, enrolment: &Enrolment, inquiry: &Inquiry) -> (DataPath, String) {
        let copied = |reason: String| (DataPath::Copy, reason);
        if inquiry.direction == Direction::Inbound {
            return copied("a client that is not enrolled here is not accelerated".into());
        }
        let dialled = inquiry.destination;
        let Some(endpoints) = self.services.at(dialled) else {
            return self.path_to(enrolment, dialled.port(), dialled);
        };
        let mut paths = endpoints
            .iter()
            .map(|endpoint| self.path_to(enrolment, dialled.port(), *endpoint));
        let Some(first) = paths.next() else {
            return copied("the service has no endpoint".into());
        };
        match paths.find(|other| other.0 != first.0) {
            Some(other) => copied(format!(
                "it depends on the endpoint: {} ({}), or {} ({})",
                first.0.as_str(),
                first.1,
                other.0.as_str(),
                other.1
            )),
            None => first,
        }
    }

    /// `dialled`: the port that the client asks for, perhaps of a service; `server`: where the connection goes.
    fn path_to(
        &self,
        enrolment: &Enrolment,
        dialled: u16,
        server: SocketAddr,
    ) -> (DataPath, String) {
        let port = server.port();
        let wish = enrolment.spec.acceleration.of(dialled);
        let copied = |reason: String| (DataPath::Copy, reason);
        if wish == Wish::Off {
            return copied(format!("acceleration of port {dialled} is off"));
        }
        let own = self.possible(enrolment).marks(wish);
        let server = match self.server(server.ip().to_canonical()) {
            Server::Elsewhere => None,
            Server::NotHooked => {
                return copied("the destination's workload is not in eBPF mode".into());
            }
            Server::Hooked(server) => Some(marks(&server.value, &server.rules, port)),
        };
        if own & server.unwrap_or(Workload::DIRECT) & Workload::DIRECT != 0 {
            return (DataPath::Direct, self.directly(own, server, port));
        }
        let Some(server) = server else {
            return copied(
                "the agent stays in the way, and the destination is no workload of this node"
                    .into(),
            );
        };
        match self.why_not() {
            Some(reason) => copied(format!("nothing is accelerated here: {reason}")),
            None if own & server & Workload::ACCELERATE != 0 => {
                let reason = format!("both workloads always accelerate port {port}");
                (DataPath::Handoff, reason)
            }
            None if own & Workload::ACCELERATE != 0 => copied(format!(
                "the destination's workload does not accelerate its port {port}"
            )),
            None => copied(format!(
                "acceleration of port {port} is auto: only for sockets that are proven not to notice, and nothing \
                 proves that yet"
            )),
        }
    }

    /// Why a connection goes directly, and what of it passes the TCP stack.
    fn directly(&self, own: u32, server: Option<u32>, port: u16) -> String {
        let bytes = match (self.why_not(), server) {
            (Some(reason), _) => format!("its bytes by TCP: {reason}"),
            (None, None) => "its bytes by TCP to another node".to_owned(),
            (None, Some(server)) if own & server & Workload::ACCELERATE != 0 => {
                format!("past the TCP stack: both workloads always accelerate port {port}")
            }
            (None, Some(_)) => format!(
                "its bytes by TCP: not both workloads always accelerate port {port}, and nothing proves yet that their \
                 sockets would not notice"
            ),
        };
        format!("nothing needs the agent in the way; {bytes}")
    }

    /// As the hooks find it.
    fn server(&self, address: IpAddr) -> Server<'_> {
        let owner = self.acceleration.as_ref().ok();
        let Some(owner) = owner.and_then(|acceleration| acceleration.owner(address)) else {
            return Server::Elsewhere;
        };
        let is_owner = |enrolled: &&Enrolled| enrolled.cookie == owner;
        let hooked = self.enrolled.values().find(is_owner);
        hooked.map_or(Server::NotHooked, Server::Hooked)
    }
}

enum Server<'a> {
    /// Not enrolled on this node.
    Elsewhere,
    NotHooked,
    Hooked(&'a Enrolled),
}

/// As the programs look it up: [`Workload::ACCELERATE`] and [`Workload::DIRECT`].
fn marks(workload: &Workload, rules: &[RuleEntry], port: u16) -> u32 {
    let table = |(key, _): &&RuleEntry| key.data().table == RuleKey::ACCELERATION;
    let by_port: Vec<RuleEntry> = rules.iter().filter(table).copied().collect();
    let wanted = RuleKey::acceleration(workload.rules, port);
    trie::longest(&by_port, &wanted).map_or(workload.flags, |(_, marks)| *marks)
}

/// What a workload wishes, and what of it can be had.
pub(super) struct Possible<'a> {
    pub(super) wish: &'a AccelerationPolicy,
    accelerates: bool,
    direct: bool,
}

impl Possible<'_> {
    /// Of a port with this wish.
    pub(super) fn marks(&self, wish: Wish) -> u32 {
        let accelerated = self.accelerates && wish == Wish::Always;
        let direct = self.direct && wish != Wish::Off;
        let accelerated = if accelerated { Workload::ACCELERATE } else { 0 };
        accelerated | if direct { Workload::DIRECT } else { 0 }
    }

    /// The bits of [`Workload::flags`].
    pub(super) fn flags(&self) -> u32 {
        let by_port = match self.wish.ports.is_empty() {
            true => 0,
            false => Workload::ACCELERATION_BY_PORT,
        };
        self.marks(self.wish.default) | by_port
    }
}
