//! Programs that the supervisor before this one has attached. They steer to the same listeners, until its successor has
//! attached its own and lets them go.

use std::io;
use std::os::fd::OwnedFd;

use super::clock;
use super::element::Elements;

/// Raised when the value that [`Estate::destinations`] has changes its layout: whoever takes over reads it.
pub const LAYOUT: u32 = 1;

/// Dropping it detaches them.
#[derive(Debug)]
pub struct Estate {
    pub gate: OwnedFd,
    /// What [`super::Destinations::from_fd`] takes.
    pub destinations: OwnedFd,
    /// They are attached as long as these are open.
    pub links: Vec<OwnedFd>,
}

impl Estate {
    /// They steer for a second more.
    ///
    /// # Errors
    /// This is no gate.
    pub fn keep_alive(&self) -> io::Result<()> {
        let gate: Elements<u32, u64> = Elements::from_fd(self.gate.try_clone()?);
        gate.set(&0, &clock::kernel_ns())
    }
}
