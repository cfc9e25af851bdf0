//! Single connections from a pod, one after the other, without the cost of a program for each.

use std::net::SocketAddr;

use crate::script::Script;
use crate::world::Pod;

const SCRIPT: &str = "
import socket, sys
for line in sys.stdin:
    host, port = line.split()
    try:
        with socket.create_connection((host, int(port)), 5) as s:
            got = b''
            while more := s.recv(4096): got += more
        print(got.decode().strip(), flush=True)
    except OSError as error: print('failed:', error, flush=True)
";

/// A program in a pod that connects when told to; killed when dropped.
#[derive(Debug)]
pub struct Prober(Script);

impl Prober {
    /// # Panics
    /// It cannot be started.
    pub fn start(pod: &Pod) -> Self {
        Self(Script::start(pod, SCRIPT, &[]))
    }

    /// What a server said until its end, or `failed: ...`.
    ///
    /// # Panics
    /// The program is gone.
    pub fn ask(&mut self, to: SocketAddr) -> String {
        self.0.tell(&format!("{} {}", to.ip(), to.port()));
        self.0.says()
    }
}
