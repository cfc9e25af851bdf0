//! Same-node connections past the TCP stack: loads what that needs, and tells the hooks whose address is whose.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{HashMap, IterableMap, MapData, SockHash};
use aya::programs::SkMsg;
use shunt_core::address::to_kernel;
use shunt_core::explain::Inquiry;
use shunt_core::flow::{DataPath, Direction};
use shunt_core::workload::{Acceleration as Configured, AccelerationPolicy, WorkloadId};
use shunt_ebpf_common::classes::{ClassKey, Verdict, Wish};
use shunt_ebpf_common::decision::Address;
use shunt_ebpf_common::maps::{Handoff, NetnsCookie, RuleKey, SocketCookie, Workload};

use super::classes::Classes;
use super::object::{Object, failed, missing};
use super::{EbpfBackend, Enrolled, RuleEntry, trie};
use crate::{Enrolment, InterceptError};

pub(super) struct Acceleration {
    addresses: HashMap<MapData, Address, NetnsCookie>,
    handoffs: HashMap<MapData, SocketCookie, Handoff>,
    peers: HashMap<MapData, SocketCookie, SocketCookie>,
    cut: HashMap<MapData, SocketCookie, u32>,
    ends: MapData,
    pub(super) classes: Classes,
    _sockets: SockHash<MapData, SocketCookie>,
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
            classes: Classes::load(object)?,
            _sockets: sockets,
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
    /// What [`super::Shortcuts::from_fds`] takes. Empty: this kernel cannot accelerate. Flows of an earlier data plane are
    /// forgotten.
    ///
    /// # Errors
    /// Descriptors ran out.
    pub fn shortcut_fds(&mut self) -> std::io::Result<Vec<OwnedFd>> {
        match &mut self.acceleration {
            Ok(acceleration) => {
                acceleration.forget_flows();
                acceleration.fds()
            }
            Err(_) => Ok(Vec::new()),
        }
    }

    /// Why nothing of what is wished can be had, for people; empty if it can.
    pub(super) fn without_acceleration(&self, wishes: &AccelerationPolicy) -> String {
        match &self.acceleration {
            Err(reason) if wishes.is_any() => format!("; nothing is accelerated: {reason}"),
            Ok(acceleration) if wishes.learns() => match &acceleration.classes.observer {
                Err(reason) => format!("; `acceleration: auto` accelerates nothing: {reason}"),
                Ok(_) => String::new(),
            },
            _ => String::new(),
        }
    }

    /// The path that a captured connection is meant to take, and why.
    pub(super) fn path(&self, enrolment: &Enrolment, inquiry: &Inquiry) -> (DataPath, String) {
        let port = inquiry.destination.port();
        let copied = |reason: String| (DataPath::Copy, reason);
        let acceleration = match &self.acceleration {
            Ok(acceleration) => acceleration,
            Err(reason) => return copied(format!("nothing is accelerated here: {reason}")),
        };
        let judge = |wish, id, role| acceleration.classes.judge(wish, id, role, port);
        let configured = enrolment.spec.acceleration.of(port);
        if configured == Configured::Off {
            return copied(format!("acceleration of port {port} is off"));
        }
        let wish = acceleration.classes.in_kernel(configured);
        if inquiry.direction == Direction::Inbound {
            let (_, reason) = judge(wish, enrolment.id.0, ClassKey::SERVER);
            return copied(format!(
                "a client that is not enrolled here is not accelerated; port {port} is {reason}"
            ));
        }
        let owner = acceleration.owner(inquiry.destination.ip().to_canonical());
        let is_owner = |enrolled: &&Enrolled| Some(enrolled.cookie) == owner;
        let Some(server) = self.enrolled.values().find(is_owner) else {
            return copied(
                "the destination is no workload that is in eBPF mode on this node".into(),
            );
        };
        let (own, client) = if wish == Wish::Off {
            judge_unobserved(acceleration)
        } else {
            acceleration
                .classes
                .judge_clients(wish, enrolment.id.0, port)
        };
        let wanted = wish_of(&server.value, &server.rules, port);
        let (theirs, server) = judge(wanted, server.value.id, ClassKey::SERVER);
        let path = match own.accelerates() && theirs.accelerates() {
            true => DataPath::Handoff,
            false => DataPath::Copy,
        };
        let reason =
            format!("port {port}: the client's end is {client}; the server's end is {server}");
        (path, reason)
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
            let learns = spec.acceleration.learns().then_some(&spec.name);
            acceleration.classes.learn(&mut self.object, id, learns);
        }
    }

    pub(super) fn unlearn(&mut self, id: WorkloadId) {
        if let Ok(acceleration) = &mut self.acceleration {
            acceleration.classes.learn(&mut self.object, id.0, None);
            acceleration.classes.forget(id.0);
        }
    }
}

/// It is `auto`, and the programs were told `off`.
fn judge_unobserved(acceleration: &Acceleration) -> (Verdict, String) {
    acceleration
        .classes
        .judge(Wish::Auto, 0, ClassKey::CLIENT, 0)
}

/// As the programs look it up.
fn wish_of(workload: &Workload, rules: &[RuleEntry], port: u16) -> Wish {
    let table = |(key, _): &&RuleEntry| key.data().table == RuleKey::ACCELERATION;
    let by_port: Vec<RuleEntry> = rules.iter().filter(table).copied().collect();
    let wanted = RuleKey::acceleration(workload.rules, port);
    trie::longest(&by_port, &wanted).map_or_else(
        || Wish::by_default(workload),
        |(_, marks)| Wish::from(*marks),
    )
}

/// The bits of [`Workload::flags`] that say this.
pub(super) fn flags(policy: &AccelerationPolicy, classes: &Classes) -> u32 {
    let by_default = match classes.in_kernel(policy.default) {
        Wish::Always => Workload::ACCELERATE,
        Wish::Auto => Workload::ACCELERATE_PROVEN,
        Wish::Off => 0,
    };
    let by_port = match policy.ports.is_empty() {
        true => 0,
        false => Workload::ACCELERATION_BY_PORT,
    };
    by_default | by_port
}
