//! The seam between the data path, which holds no privilege, and whoever prepares sockets for it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::address::OriginalDst;
use crate::flow::Direction;
use crate::workload::WorkloadId;

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(addr: SocketAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// What a ready socket is for; this decides its mark and options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketRole {
    /// Connects from the workload's namespace to anywhere. Carries the agent's mark.
    Upstream,
    /// Delivers to an application in the workload's own namespace with the client's source address
    /// (`IP_TRANSPARENT`). Carries the delivery mark, so that answers find their way back.
    Delivery,
    /// For datagrams: asks a DNS resolver from the workload's namespace. Carries the mark of [`SocketRole::Upstream`].
    Resolver,
}

/// A kind of socket in a workload's stock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SocketWant {
    pub workload: WorkloadId,
    pub role: SocketRole,
    pub family: Family,
}

/// Hands out unconnected, non-blocking sockets that already live in the right namespace with the right mark.
pub trait SocketSupply: Clone + Send + 'static {
    /// Waits only when the stock is empty.
    ///
    /// # Errors
    /// The workload is gone, or the supplier could not make one.
    fn take(&self, want: SocketWant) -> impl Future<Output = io::Result<OwnedFd>>;
}

/// How the listener's connections got there, hence how their original destination is recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Steering {
    /// The connect hook rewrote the destination; the accepted socket's storage has the original.
    ConnectHook,
    /// Netfilter REDIRECT: conntrack knows.
    Redirect,
    /// `sk_lookup` chose the listener: the local address is the original destination.
    SkLookup,
}

/// A listener of the agent inside a workload's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerSpec {
    pub workload: WorkloadId,
    #[serde(with = "crate::flow::direction")]
    pub direction: Direction,
    pub steering: Steering,
    /// As bound: the port is the real one.
    pub addr: SocketAddr,
}

/// A socket of the agent inside a workload's namespace that takes its DNS queries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsListenerSpec {
    pub workload: WorkloadId,
    /// [`Steering::ConnectHook`] or [`Steering::Redirect`].
    pub steering: Steering,
    /// As bound: the port is the real one.
    pub addr: SocketAddr,
    /// Which of its family's; each stands for one resolver where hooks steer.
    pub slot: usize,
}

/// Knows whom a steered query was for.
pub trait ResolverSource: Send + Sync {
    /// `client` is the address that it came from. An error: nobody knows, and the query is dropped.
    fn resolver<'a>(
        &'a self,
        listener: &'a DnsListenerSpec,
        client: SocketAddr,
    ) -> Pin<Box<dyn Future<Output = io::Result<SocketAddr>> + Send + 'a>>;
}

/// Recovers where an accepted connection was going.
pub trait OriginalDstSource: Clone + Send + 'static {
    /// `local` is the accepted socket's own address.
    ///
    /// # Errors
    /// See [`OriginalDstError`]; the caller refuses the connection, it never guesses.
    fn original_dst(
        &self,
        listener: &ListenerSpec,
        accepted: BorrowedFd<'_>,
        local: SocketAddr,
    ) -> Result<OriginalDst, OriginalDstError>;
}

/// `SO_COOKIE` of a socket.
pub type SocketCookie = u64;

/// Who is at the other end of a connection of the agent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FarEnd {
    /// The connection is TCP only.
    NotAccelerated,
    /// The agent's end is ready to be accelerated, the other one was not found or is not there yet.
    Unknown,
    Found(SocketCookie),
}

/// What went from one application's socket into another's queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    pub bytes: u64,
    /// Calls that sent, more or less: the kernel takes a large one to pieces.
    pub messages: u64,
}

/// Lets the two applications of a flow send to each other past the agent.
pub trait Accelerator: std::fmt::Debug + Send + Sync {
    /// Of one of the agent's own sockets.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn far_end(&self, socket: BorrowedFd<'_>) -> io::Result<FarEnd>;

    /// Is everything that was ever sent on this socket, `bytes`, in its far end's queue?
    ///
    /// # Errors
    /// The kernel does not tell.
    fn has_delivered(&self, socket: BorrowedFd<'_>, bytes: u64) -> io::Result<bool>;

    /// How many bytes the queue takes yet into which this socket writes. `None`: it writes into none.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn room(&self, socket: BorrowedFd<'_>) -> io::Result<Option<u64>>;

    /// From now on what `from` sends goes straight to `to`, provided that it has sent exactly `at` bytes: those that the
    /// agent has delivered.
    ///
    /// # Errors
    /// There is no room for more.
    fn hand_over(&self, from: SocketCookie, to: SocketCookie, at: u64) -> io::Result<()>;

    /// What `from` has sent past the agent.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn moved(&self, from: SocketCookie) -> io::Result<Moved>;

    /// [`Accelerator::moved`] of every socket that was handed over.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn each_moved(&self, told: &mut dyn FnMut(SocketCookie, u64)) -> io::Result<()>;

    /// Was this socket closed with bytes in its queue? By TCP its close would have been a reset.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn was_cut(&self, far_end: SocketCookie) -> io::Result<bool>;

    /// The flow has ended.
    fn forget(&self, far_end: SocketCookie);
}

#[derive(Debug, Error)]
pub enum OriginalDstError {
    #[error("nobody noted an original destination for this connection")]
    Missing,
    #[error("cannot look up the original destination")]
    Lookup(#[source] io::Error),
}
