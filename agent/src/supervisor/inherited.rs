//! What the supervisor before this one has left, until it is taken over.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use shunt_core::flow::Direction;
use shunt_core::sockets::ListenerSpec;
use shunt_core::workload::WorkloadId;
use shunt_intercept::ebpf::Estate;

use crate::will::{Left, Served, Will};

#[derive(Debug, Default)]
pub(super) struct Inherited {
    /// Programs that steer until ours do.
    pub(super) steering: Option<Estate>,
    pub(super) tables: Vec<(u64, OwnedFd)>,
    pub(super) admin: Vec<OwnedFd>,
    pub(super) node: BTreeMap<SocketAddr, Vec<OwnedFd>>,
    /// By the cookie of their namespace.
    served: BTreeMap<u64, Heirloom>,
}

/// Of a workload that was served.
#[derive(Debug, Default)]
pub(super) struct Heirloom {
    pub(super) id: Option<WorkloadId>,
    pub(super) claim: Option<UnixDatagram>,
    pub(super) flows: Option<UnixDatagram>,
    listeners: Vec<(ListenerSpec, Vec<OwnedFd>)>,
}

impl Inherited {
    /// Takes the descriptors of a will.
    ///
    /// # Errors
    /// One of them did not come.
    pub(super) fn of(will: &mut Will) -> io::Result<Self> {
        let steering = match will.steering.take() {
            None => None,
            Some(left) => Some(Estate {
                gate: left.gate.take()?,
                destinations: left.destinations.take()?,
                links: Left::take_all(left.links)?,
            }),
        };
        let tables = will.tables.drain(..);
        let tables = tables.map(|(inode, left)| Ok((inode, left.take()?)));
        let node = std::mem::take(&mut will.node).into_iter();
        let node = node.map(|(addr, left)| Ok((addr, Left::take_all(left)?)));
        let served = will.served.drain(..);
        Ok(Self {
            steering,
            tables: tables.collect::<io::Result<_>>()?,
            admin: Left::take_all(std::mem::take(&mut will.admin))?,
            node: node.collect::<io::Result<_>>()?,
            served: served
                .map(|served| Ok((served.cookie, Heirloom::of(served)?)))
                .collect::<io::Result<_>>()?,
        })
    }

    pub(super) fn keep_alive(&self) {
        if let Some(steering) = &self.steering
            && let Err(error) = steering.keep_alive()
        {
            tracing::error!(%error, "the programs of the supervisor before this one are let go");
        }
    }

    /// What there is for the namespace of this cookie. Once.
    pub(super) fn of_namespace(&mut self, cookie: u64) -> Heirloom {
        self.served.remove(&cookie).unwrap_or_default()
    }

    /// The id that it had.
    pub(super) fn id(&self, cookie: u64) -> Option<WorkloadId> {
        self.served.get(&cookie)?.id
    }

    /// What nobody has taken is closed.
    pub(super) fn close(&mut self) {
        *self = Self::default();
    }
}

impl Heirloom {
    fn of(served: Served) -> io::Result<Self> {
        let take = |left: Option<Left>| left.map(Left::take).transpose();
        let listeners = served.listeners.into_iter();
        let listeners = listeners.map(|(spec, left)| Ok((spec, Left::take_all(left)?)));
        Ok(Self {
            id: Some(served.id),
            claim: take(served.claim)?.map(UnixDatagram::from),
            flows: take(served.flows)?.map(UnixDatagram::from),
            listeners: listeners.collect::<io::Result<_>>()?,
        })
    }

    /// One that listens there, on whatever port, with so many sockets.
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
