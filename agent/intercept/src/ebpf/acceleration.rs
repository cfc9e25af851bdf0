//! Same-node connections past the TCP stack: loads what that needs, and says what of it a workload may have.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{HashMap, IterableMap, MapData, SockHash};
use aya::programs::SkMsg;
use shunt_core::behaviour::Behaviour;
use shunt_core::workload::{Acceleration as Configured, AccelerationPolicy, WorkloadId};
use shunt_ebpf_common::bulk::BulkShare;
use shunt_ebpf_common::classes::Wish;
use shunt_ebpf_common::maps::{Handoff, ListeningPort, SocketCookie, Workload};

use super::EbpfBackend;
use super::classes::Classes;
use super::leftovers::{Leftovers, Others};
use super::object::{Object, failed, missing};
use super::proxied::Proxied;
use crate::{Enrolment, InterceptError};

pub(super) struct Acceleration {
    handoffs: HashMap<MapData, SocketCookie, Handoff>,
    peers: HashMap<MapData, SocketCookie, SocketCookie>,
    cut: HashMap<MapData, SocketCookie, u32>,
    bulk: HashMap<MapData, ListeningPort, BulkShare>,
    ends: MapData,
    pub(super) classes: Classes,
    sockets: SockHash<MapData, SocketCookie>,
    leftovers: Leftovers,
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
            handoffs: object.map("SHUNT_HANDOFFS")?,
            peers: object.map("SHUNT_PEERS")?,
            cut: object.map("SHUNT_CUT")?,
            bulk: object.map("SHUNT_BULK")?,
            ends: object.sk_storage("SHUNT_ENDS")?,
            classes: Classes::load(object)?,
            leftovers: Leftovers::load(object)?,
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

    /// Are the direct connections to this port of a workload bulk, mostly?
    pub(super) fn is_bulk_service(&self, workload: u32, port: u16) -> bool {
        let service = ListeningPort {
            workload,
            port: port.into(),
        };
        // What is not there, and what cannot be read, is none.
        let known = self.bulk.get(&service, 0);
        known.is_ok_and(|known| known.is_mostly_bulk())
    }

    /// The socket hash, for the battery alone.
    pub(super) fn sockets_fd(&self) -> std::io::Result<OwnedFd> {
        self.sockets.fd().as_fd().try_clone_to_owned()
    }

    /// A workload was withdrawn: nobody tells any more when its connections end.
    pub(super) fn released(&mut self) {
        self.leftovers.released();
    }

    /// Now and then.
    pub(super) fn sweep(&mut self) {
        self.leftovers.sweep(Others {
            sockets: &self.sockets,
            peers: &mut self.peers,
            handoffs: &mut self.handoffs,
        });
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

    pub(super) fn possible<'a>(&'a self, enrolment: &'a Enrolment) -> Possible<'a> {
        let wish = &enrolment.spec.acceleration;
        Possible {
            wish,
            classes: match (self.why_not(), &self.acceleration) {
                // Its addresses, and so its connections' other ends, are not known to be its own.
                _ if enrolment.spec.shares_netns() => None,
                (None, Ok(acceleration)) => Some(&acceleration.classes),
                _ => None,
            },
            proxied: Proxied::of(enrolment),
            direct: wish.direct && enrolment.needs_proxy.is_none() && self.counts_exactly,
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
            let learns = spec.acceleration.learns() && !spec.shares_netns();
            let name = learns.then_some(&spec.name);
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
    pub(super) proxied: Proxied,
}

impl Possible<'_> {
    /// What the programs are told of a wish.
    pub(super) fn in_kernel(&self, wish: Configured) -> Wish {
        let known = self
            .classes
            .filter(|_| wish != Configured::Auto || self.wish.learns());
        known.map_or(Wish::Off, |classes| classes.in_kernel(wish))
    }

    /// What the programs read of a port with this wish, whatever listeners there are.
    pub(super) fn bits(&self, wish: Configured) -> u32 {
        self.in_kernel(wish).bits() | self.direct(wish)
    }

    /// The bits of [`Workload::flags`].
    pub(super) fn flags(&self) -> u32 {
        let by_port = match self.wish.ports.is_empty() && self.proxied.ports.is_empty() {
            true => 0,
            false => Workload::ACCELERATION_BY_PORT,
        };
        self.bits(self.wish.default) | self.proxied.rest | by_port
    }

    fn direct(&self, wish: Configured) -> u32 {
        match self.direct && wish != Configured::Off {
            true => Workload::DIRECT,
            false => 0,
        }
    }
}
