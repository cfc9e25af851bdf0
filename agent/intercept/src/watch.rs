//! What the kernel announces of the namespaces that are served: addresses, routing, nftables. One descriptor for all of
//! them, however many there are.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use shunt_core::workload::WorkloadId;

use crate::InterceptError;
use crate::netlink::{Answer, NFTABLES};
use crate::netns::Netns;

/// RTNLGRP_*: IPv4 addresses, routes, rules, and the same of IPv6.
const ROUTE_GROUPS: [u32; 6] = [5, 7, 8, 9, 11, 19];
/// NFNLGRP_NFTABLES.
const NFTABLES_GROUP: u32 = 7;
/// A transaction's end; says who made it.
const NEW_GENERATION: u16 = NFTABLES | libc::NFT_MSG_NEWGEN as u16;
/// NFTA_GEN_PROC_PID and NFTA_GEN_PROC_NAME.
const PROC_PID: u16 = 2;
const PROC_NAME: u16 = 3;
/// Namespaces looked at in one go; the rest is still readable.
const BATCH: usize = 64;
/// Messages read from one namespace in one go: who makes more of them waits like the others.
const READS: usize = 64;

/// Which of the two sockets of a workload.
const RULES: u64 = 1 << 32;

/// See the head of this module.
#[derive(Debug)]
pub struct Watch {
    epoll: Epoll,
    sockets: HashMap<WorkloadId, Vec<Socket>>,
}

/// What was announced of one workload's namespace since the last time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    pub addresses: bool,
    /// Rules of netfilter or of routing: worth a close look.
    pub rules: bool,
    /// Who changed nftables, where the kernel says so.
    pub by: Vec<String>,
}

impl Watch {
    /// # Errors
    /// Descriptors ran out.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            sockets: HashMap::new(),
        })
    }

    /// Listens in a namespace from now on.
    ///
    /// # Errors
    /// The namespace cannot be entered, or descriptors ran out.
    pub fn add(&mut self, id: WorkloadId, netns: &Netns) -> Result<(), InterceptError> {
        let failed =
            |error| InterceptError::io("listen for changes in", netns.path().display(), error);
        let open = || -> io::Result<Vec<Socket>> {
            let routes = subscribed(NETLINK_ROUTE, &ROUTE_GROUPS)?;
            // A kernel without nftables has no rules there to lose.
            let rules = subscribed(NETLINK_NETFILTER, &[NFTABLES_GROUP]).ok();
            Ok([Some(routes), rules].into_iter().flatten().collect())
        };
        let sockets = netns
            .enter(open)
            .and_then(|opened| opened)
            .map_err(failed)?;
        for (socket, which) in sockets.iter().zip([0, RULES]) {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::from(id.0) | which);
            let added = self.epoll.add(socket, event);
            added.map_err(|error| failed(error.into()))?;
        }
        self.sockets.insert(id, sockets);
        Ok(())
    }

    /// Closing the sockets takes them out.
    pub fn remove(&mut self, id: WorkloadId) {
        self.sockets.remove(&id);
    }

    /// Everything announced, by workload. Does not wait. What does not fit is told by the next call.
    pub fn announced(&mut self) -> BTreeMap<WorkloadId, Announced> {
        let mut events = [EpollEvent::empty(); BATCH];
        let ready = self.epoll.wait(&mut events, EpollTimeout::ZERO);
        let mut all: BTreeMap<WorkloadId, Announced> = BTreeMap::new();
        for event in &events[..ready.unwrap_or(0)] {
            let id = WorkloadId(event.data() as u32);
            let which = usize::from(event.data() & RULES != 0);
            if let Some(socket) = self.sockets.get(&id).and_then(|sockets| sockets.get(which)) {
                all.entry(id).or_default().read(socket);
            }
        }
        all
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

impl Announced {
    fn read(&mut self, socket: &Socket) {
        let mut buffer = Vec::with_capacity(16 << 10);
        for _ in 0..READS {
            buffer.clear();
            match socket.recv(&mut buffer, 0) {
                Ok(_) => self.take(&buffer),
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    // Some were lost: anything may have happened.
                    (self.addresses, self.rules) = (true, true);
                }
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while let Some((message, rest)) = Answer::first(bytes) {
            bytes = rest;
            match message.kind {
                libc::RTM_NEWADDR | libc::RTM_DELADDR => self.addresses = true,
                NEW_GENERATION => {
                    self.rules = true;
                    let author = author(&message);
                    self.by
                        .extend(author.filter(|author| !self.by.contains(author)));
                }
                _ => self.rules = true,
            }
        }
    }
}

/// Program and process that made a transaction.
fn author(generation: &Answer<'_>) -> Option<String> {
    let (mut pid, mut name) = (None, None);
    for (kind, data) in generation.attributes() {
        match kind {
            PROC_PID => pid = data.first_chunk().map(|pid| u32::from_be_bytes(*pid)),
            PROC_NAME => name = data.strip_suffix(b"\0").map(String::from_utf8_lossy),
            _ => {}
        }
    }
    Some(format!("{} (pid {})", name?, pid?))
}

fn subscribed(protocol: isize, groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    groups
        .iter()
        .try_for_each(|group| socket.add_membership(*group))?;
    Ok(socket)
}
