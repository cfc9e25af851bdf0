//! What the supervisor before this one has left, until it is taken over.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use shunt_core::flow::Direction;
use shunt_core::sockets::{Family, ListenerSpec};
use shunt_core::workload::{WorkloadId, WorkloadName};
use shunt_intercept::ebpf::Estate;
use shunt_intercept::iptables::keep_switch;
use shunt_intercept::netns::Netns;

use super::data_plane::Brought;
use crate::heartbeat::Heartbeats;
use crate::will::{Left, Served, Will};

/// How often gates are kept while this supervisor is not ready to do it.
const BEAT: Duration = Duration::from_millis(200);
/// For handshakes that have begun when nothing is captured any more.
const HANDSHAKES: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Inherited {
    /// Of programs whose connections may still come.
    pub(super) destinations: Option<OwnedFd>,
    /// What captures connections until ours does.
    capturing: Vec<OwnedFd>,
    /// What those connections need, and since when no more are captured.
    attending: Vec<OwnedFd>,
    released: Option<Instant>,
    /// Keeps gates as long as this is there.
    keeper: Option<SyncSender<()>>,
    pub(super) tables: Vec<(u64, OwnedFd)>,
    pub(super) admin: Vec<OwnedFd>,
    pub(super) node: BTreeMap<SocketAddr, Vec<OwnedFd>>,
    /// The listeners of all that, which the data planes have.
    pub(super) brought: Brought,
    served: BTreeMap<WorkloadName, Heirloom>,
}

/// Of a workload that was served.
#[derive(Debug, Default)]
pub(super) struct Heirloom {
    of: Option<(WorkloadId, Arc<Netns>)>,
    pub(super) claim: Option<UnixDatagram>,
    pub(super) flows: Option<UnixDatagram>,
    listeners: Vec<(ListenerSpec, Vec<OwnedFd>)>,
}

impl Inherited {
    /// Takes the descriptors of a will, and keeps its gates for as long as its data plane lives.
    ///
    /// # Errors
    /// One of them did not come.
    pub(super) fn take(will: &mut Will) -> Result<Self> {
        let switches = will.switches.drain(..);
        let switches = switches.map(|(family, left)| Ok((family, left.take()?)));
        let switches: Vec<(Family, OwnedFd)> = switches.collect::<io::Result<_>>()?;
        let mut inherited = Self::default();
        let mut gate = None;
        if let Some(left) = will.steering.take() {
            let estate = Estate {
                gate: left.gate.take()?,
                destinations: left.destinations.take()?,
                capturing: Left::take_all(left.capturing)?,
                attending: Left::take_all(left.attending)?,
            };
            inherited.destinations = Some(estate.destinations.try_clone()?);
            (inherited.capturing, inherited.attending) = (estate.capturing, estate.attending);
            gate = Some(estate.gate);
        }
        let mut planes = will.planes.iter_mut();
        let serving = planes.find(|plane| plane.retires_in_ms.is_none());
        if let Some(plane) = serving {
            let page = plane.page.take().context("no heartbeats")?.take()?;
            let heartbeats = Heartbeats::from_fd(page, will.workers);
            inherited.keeper = Some(keep(heartbeats, gate, switches)?);
        }
        let tables = will.tables.drain(..);
        let tables = tables.map(|(inode, left)| Ok((inode, left.take()?)));
        inherited.tables = tables.collect::<io::Result<_>>()?;
        let node = std::mem::take(&mut will.node).into_iter();
        let node = node.map(|(addr, left)| Ok((addr, Left::take_all(left)?)));
        inherited.node = node.collect::<io::Result<_>>()?;
        inherited.admin = Left::take_all(std::mem::take(&mut will.admin))?;
        inherited.brought.node = inherited.node.keys().copied().collect();
        for served in will.served.drain(..) {
            let listeners = served.listeners.iter().map(|(spec, _)| spec.clone());
            inherited.brought.listeners.extend(listeners);
            let name = served.name.clone();
            inherited.served.insert(name, Heirloom::of(served)?);
        }
        Ok(inherited)
    }

    /// After a death, of which only this is left: it is let go when its connections had time to be taken.
    pub(super) fn of_the_dead(destinations: Option<OwnedFd>) -> Self {
        Self {
            released: destinations.is_some().then(Instant::now),
            destinations,
            ..Self::default()
        }
    }

    /// What there is for this workload in this namespace: it stays here until it is [`claimed`](Self::claimed).
    pub(super) fn of(&self, name: &WorkloadName, netns: &Netns) -> io::Result<Heirloom> {
        let known = self
            .served
            .get(name)
            .filter(|_| self.id(name, netns).is_some());
        known.map_or_else(|| Ok(Heirloom::default()), Heirloom::share)
    }

    /// The workload is served by what there was for it.
    pub(super) fn claimed(&mut self, name: &WorkloadName) {
        self.served.remove(name);
    }

    pub(super) fn unclaimed(&self) -> impl Iterator<Item = &WorkloadName> {
        self.served.keys()
    }

    /// Of the supervisor before that one: its data planes may have connections still.
    pub(super) fn attending(&self) -> &[OwnedFd] {
        &self.attending
    }

    /// The id that it had there.
    pub(super) fn id(&self, name: &WorkloadName, netns: &Netns) -> Option<WorkloadId> {
        let (id, known) = self.served.get(name)?.of.as_ref()?;
        (known.cookie() == netns.cookie()).then_some(*id)
    }

    /// The namespace of a workload whose turn has not come.
    pub(super) fn netns(&self, id: WorkloadId) -> Option<Arc<Netns>> {
        let mut of = self.served.values().filter_map(|served| served.of.as_ref());
        of.find(|(known, _)| *known == id)
            .map(|(_, netns)| Arc::clone(netns))
    }

    /// Ours captures now. What nobody has taken is closed.
    pub(super) fn release(&mut self) {
        *self = Self {
            destinations: self.destinations.take(),
            attending: std::mem::take(&mut self.attending),
            released: Some(Instant::now()),
            ..Self::default()
        };
    }

    /// Detaches the rest, once no data plane has connections of then any more. True: it has done so now.
    pub(super) fn let_go(&mut self, connections_are_gone: bool) -> bool {
        let due = self.released.is_some_and(|at| at.elapsed() > HANDSHAKES);
        if due && connections_are_gone {
            *self = Self::default();
            return true;
        }
        false
    }
}

/// Until the sender is gone, and only while all workers beat.
fn keep(
    heartbeats: Heartbeats,
    gate: Option<OwnedFd>,
    switches: Vec<(Family, OwnedFd)>,
) -> io::Result<SyncSender<()>> {
    let (keeper, end) = sync_channel::<()>(0);
    let gate = gate.map(Estate::gate);
    let beat = move || {
        if heartbeats.alive() {
            let kept = gate.as_ref().map_or(Ok(()), |gate| gate.keep_alive());
            let kept = switches
                .iter()
                .map(|(family, switch)| keep_switch(*family, switch))
                .fold(kept, Result::and);
            if let Err(error) = kept {
                tracing::debug!(%error, "a gate is not kept any more");
            }
        }
    };
    beat();
    Builder::new().name("gates".into()).spawn(move || {
        while end.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
            beat();
        }
    })?;
    Ok(keeper)
}

impl Heirloom {
    fn of(served: Served) -> Result<Self> {
        let file = File::from(served.netns.take()?);
        let netns = match served.shares_netns {
            true => Netns::own()?,
            false => Netns::handed_over(file, &served.path)?,
        };
        let take = |left: Option<Left>| left.map(Left::take).transpose();
        let listeners = served.listeners.into_iter();
        let listeners = listeners.map(|(spec, left)| Ok((spec, Left::take_all(left)?)));
        Ok(Self {
            of: Some((served.id, Arc::new(netns))),
            claim: take(served.claim)?.map(UnixDatagram::from),
            flows: take(served.flows)?.map(UnixDatagram::from),
            listeners: listeners.collect::<io::Result<_>>()?,
        })
    }

    fn share(&self) -> io::Result<Self> {
        let share = |(spec, sockets): &(ListenerSpec, Vec<OwnedFd>)| {
            let sockets = sockets.iter().map(OwnedFd::try_clone);
            Ok((spec.clone(), sockets.collect::<io::Result<_>>()?))
        };
        let datagram = |socket: &Option<UnixDatagram>| {
            let socket = socket.as_ref().map(UnixDatagram::try_clone);
            socket.transpose()
        };
        Ok(Self {
            of: self.of.clone(),
            claim: datagram(&self.claim)?,
            flows: datagram(&self.flows)?,
            listeners: self
                .listeners
                .iter()
                .map(share)
                .collect::<io::Result<_>>()?,
        })
    }

    /// One that listens there, on whatever port where none is wished, with so many sockets.
    pub(super) fn listener(
        &mut self,
        direction: Direction,
        at: SocketAddr,
        count: usize,
    ) -> Option<(SocketAddr, Vec<OwnedFd>)> {
        let fits = |(spec, sockets): &(ListenerSpec, Vec<OwnedFd>)| {
            spec.direction == direction
                && spec.addr.ip() == at.ip()
                && (at.port() == 0 || at.port() == spec.addr.port())
                && sockets.len() == count
        };
        let at = self.listeners.iter().position(fits)?;
        let (spec, sockets) = self.listeners.remove(at);
        Some((spec.addr, sockets))
    }
}
