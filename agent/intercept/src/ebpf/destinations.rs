//! Where an accepted connection was going: the kernel keeps it in the accepted socket's own storage.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use shunt_ebpf_common::maps::Destination;

use super::element::Elements;

/// The data plane's end of `ACCEPTED`.
#[derive(Debug)]
pub struct Destinations {
    /// By descriptor of the socket.
    map: Elements<i32, Destination>,
}

impl Destinations {
    /// `map` as [`super::EbpfBackend::destinations_fd`] gave it.
    pub fn from_fd(map: OwnedFd) -> Self {
        let map = Elements::from_fd(map);
        Self { map }
    }

    /// The destination of a connection that the connect hooks captured.
    ///
    /// # Errors
    /// The kernel does not let this process use the map.
    pub fn of(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<Destination>> {
        self.map.get(&accepted.as_raw_fd())
    }
}
