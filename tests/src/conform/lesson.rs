//! Connections before a row, from which an agent may learn how sockets like the row's are used.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};

use super::row::Fault;
use super::wire::Wire;

/// More than it takes to be known, by a few: `Class::ENOUGH` and `Class::LONG` of the agent's kernel programs.
const CONNECTIONS: usize = 10;
const TURNS: usize = 40;

/// A port that no other row of this agent has: what is learned is learned of a port.
pub(super) fn port() -> u16 {
    /// More than there are variants, and room for them below the ports that the kernel hands out.
    const ROWS: u16 = 500;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let run = (std::process::id() % 40) as u16;
    10_000 + run * ROWS + NEXT.fetch_add(1, Ordering::Relaxed) % ROWS
}

/// Answers all of them.
pub(super) fn give(listener: &TcpListener, nonblocking: bool) -> Result<(), Fault> {
    for _ in 0..CONNECTIONS {
        let wire = Wire::new(listener.accept()?.0, nonblocking)?;
        for _ in 0..TURNS {
            wire.take(0, 100)?;
            wire.pour(0, 100)?;
        }
        // The other one ends first.
        wire.drink();
    }
    Ok(())
}

pub(super) fn take(to: SocketAddr, nonblocking: bool) -> Result<(), Fault> {
    for _ in 0..CONNECTIONS {
        let wire = Wire::new(TcpStream::connect(to)?, nonblocking)?;
        for _ in 0..TURNS {
            wire.pour(0, 100)?;
            wire.take(0, 100)?;
        }
    }
    Ok(())
}
