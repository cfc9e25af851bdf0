//! Whether a workload's listeners still listen: whoever may destroy sockets (`ss -K`) may also close the agent's.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use shunt_intercept::drift::{Drift, Part};
use shunt_intercept::{DnsListener, Listener};

/// All listening sockets of a workload, some for each worker, and those for its queries: one call looks at them all.
#[derive(Debug)]
pub(super) struct Ears(Epoll);

impl Ears {
    /// # Errors
    /// Descriptors ran out.
    pub(super) fn of(listeners: &[Listener], dns: &[DnsListener]) -> Result<Self, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (index, listener) in listeners.iter().enumerate() {
            for socket in &listener.sockets {
                // Nothing is asked for, so that only what is always told is: a socket that is closed.
                let event = EpollEvent::new(EpollFlags::empty(), index as u64);
                epoll.add::<&OwnedFd>(socket, event)?;
            }
        }
        for (index, listener) in dns.iter().enumerate() {
            let event = EpollEvent::new(EpollFlags::empty(), (listeners.len() + index) as u64);
            epoll.add::<&OwnedFd>(&listener.socket, event)?;
        }
        Ok(Self(epoll))
    }

    /// `None`: all of `listeners`, of which this was made, listen.
    pub(super) fn deaf(&self, listeners: &[Listener], dns: &[DnsListener]) -> Option<Drift> {
        let mut told = [EpollEvent::empty(); 16];
        // It fails for a signal only, and the next look tells.
        let count = self.0.wait(&mut told, 0_u8).unwrap_or(0);
        let mut deaf: Vec<u64> = told.iter().take(count).map(EpollEvent::data).collect();
        deaf.sort_unstable();
        deaf.dedup();
        let all: Vec<SocketAddr> = listeners
            .iter()
            .map(|listener| listener.spec.addr)
            .chain(dns.iter().map(|listener| listener.spec.addr))
            .collect();
        let of = |index: &u64| all.get(usize::try_from(*index).ok()?);
        let deaf: Vec<String> = deaf
            .iter()
            .filter_map(of)
            .map(SocketAddr::to_string)
            .collect();
        let found = format!("{} listens no more", deaf.join(", "));
        (!deaf.is_empty()).then_some(Drift {
            part: Part::Listeners,
            found,
        })
    }
}
