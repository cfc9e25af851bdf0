//! Blocking sockets as a program uses them that knows what docs/semantics.md says of accelerated ones.

use std::io::{self, Read, Write};
use std::net::TcpStream;

/// Asks again when it is told `EAGAIN`: it has been woken without data.
pub(super) struct Patient(pub(super) TcpStream);

impl Read for Patient {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
