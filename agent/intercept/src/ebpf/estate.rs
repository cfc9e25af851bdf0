//! Programs that the supervisor before this one has attached. They steer to the same listeners, until its successor has
//! attached its own and lets them go.

use std::io;
use std::os::fd::OwnedFd;

use super::clock;
use super::element::Elements;

/// Raised when the value that [`Estate::destinations`] has changes its layout: whoever takes over reads it.
pub const LAYOUT: u32 = 1;

/// Dropping it detaches them. What attends to connections must not go before what captures them, and their handshakes.
#[derive(Debug)]
pub struct Estate {
    pub gate: OwnedFd,
    /// What [`super::Destinations::from_fd`] takes.
    pub destinations: OwnedFd,
    /// What captures connections is attached as long as these are open.
    pub capturing: Vec<OwnedFd>,
    /// The same of what captured connections need: a handshake that has begun, addresses as applications know them.
    pub attending: Vec<OwnedFd>,
}

/// What keeps them steering.
#[derive(Debug)]
pub struct Gate(Elements<u32, u64>);

impl Estate {
    /// Of [`Estate::gate`].
    pub fn gate(gate: OwnedFd) -> Gate {
        Gate(Elements::from_fd(gate))
    }
}

impl Gate {
    /// They steer for a second more.
    ///
    /// # Errors
    /// This is no gate.
    pub fn keep_alive(&self) -> io::Result<()> {
        self.0.set(&0, &clock::kernel_ns())
    }
}
