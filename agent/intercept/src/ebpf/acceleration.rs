//! Same-node connections past the TCP stack: loads what that needs, and tells the hooks whose address is whose.

use std::net::IpAddr;
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
        let known: Vec<SocketCookie> = self.handoffs.keys().filter_map(Result::ok).collect();
        for cookie in known {
            let _ = self.handoffs.remove(&cookie);
        }
        let known: Vec<SocketCookie> = self.cut.keys().filter_map(Result::ok).collect();
        for cookie in known {
            let _ = self.cut.remove(&cookie);
        }
    }

    /// These addresses are this namespace's, in place of `before`. Of two namespaces with one address the last has it:
    /// connections to the other are merely not accelerated.
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
            let written = self.addresses.insert(to_kernel(*address), netns, 0);
            written.map_err(|error| failed("write a workload's address", &error))?;
        }
        Ok(())
    }

    fn owner(&self, address: IpAddr) -> Option<NetnsCookie> {
        self.addresses.get(&to_kernel(address), 0).ok()
    }

    pub(super) fn move_out(&mut self, address: IpAddr, netns: NetnsCookie) {
        let address = to_kernel(address);
        if self
            .addresses
            .get(&address, 0)
            .is_ok_and(|owner| owner == netns)
        {
            let _ = self.addresses.remove(&address);
        }
    }
}

impl EbpfBackend {
    /// Accelerates nothing when this kernel may not: `learned` is what [`super::battery::Trial::learn`] said.
    pub fn heed(&mut self, learned: &Result<Behaviour, String>) {
        let refusal = match learned {
            Ok(behaviour) => behaviour.refusal(),
            Err(reason) => Some(reason.clone()),
        };
        if let Some(reason) = refusal
            && self.acceleration.is_ok()
        {
            tracing::warn!(reason, "nothing is accelerated");
            self.acceleration = Err(reason);
        }
    }

    /// The path that a captured connection is meant to take, and why.
    pub(super) fn path(&self, enrolment: &Enrolment, inquiry: &Inquiry) -> (DataPath, String) {
        let port = inquiry.destination.port();
        let wish = enrolment.spec.acceleration.of(port);
        let copied = |reason: String| (DataPath::Copy, reason);
        let acceleration = match &self.acceleration {
            Ok(acceleration) => acceleration,
            Err(reason) => return copied(format!("nothing is accelerated here: {reason}")),
        };
        match wish {
            Wish::Always => {}
            Wish::Off => return copied(format!("acceleration of port {port} is off")),
            Wish::Auto => {
                return copied(format!(
                    "acceleration of port {port} is auto: only for sockets that are proven not to notice, and nothing \
                     proves that yet"
                ));
            }
        }
        if inquiry.direction == Direction::Inbound {
            return copied("a client that is not enrolled here is not accelerated".into());
        }
        let owner = acceleration.owner(inquiry.destination.ip().to_canonical());
        let is_owner = |enrolled: &&Enrolled| Some(enrolled.cookie) == owner;
        let Some(server) = self.enrolled.values().find(is_owner) else {
            return copied(
                "the destination is no workload that is in eBPF mode on this node".into(),
            );
        };
        if !accelerates(&server.value, &server.rules, port) {
            return copied(format!(
                "the destination's workload does not accelerate its port {port}"
            ));
        }
        let reason = format!("both workloads always accelerate port {port}");
        (DataPath::Handoff, reason)
    }
}

/// As the programs look it up.
fn accelerates(workload: &Workload, rules: &[RuleEntry], port: u16) -> bool {
    let table = |(key, _): &&RuleEntry| key.data().table == RuleKey::ACCELERATION;
    let by_port: Vec<RuleEntry> = rules.iter().filter(table).copied().collect();
    let wanted = RuleKey::acceleration(workload.rules, port);
    trie::longest(&by_port, &wanted)
        .map_or(workload.flags & Workload::ACCELERATE != 0, |(_, marks)| {
            *marks != 0
        })
}

/// The bits of [`Workload::flags`] that say this.
pub(super) fn flags(policy: &AccelerationPolicy) -> u32 {
    let by_default = match policy.default {
        Wish::Always => Workload::ACCELERATE,
        Wish::Off | Wish::Auto => 0,
    };
    let by_port = match policy.ports.is_empty() {
        true => 0,
        false => Workload::ACCELERATION_BY_PORT,
    };
    by_default | by_port
}
