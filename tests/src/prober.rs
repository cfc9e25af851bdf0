//! Single connections from a pod, one after the other, without the cost of a program for each.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

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
pub struct Prober {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Prober {
    /// # Panics
    /// It cannot be started.
    pub fn start(pod: &Pod) -> Self {
        let mut command = pod.command("python3");
        command.args(["-c", SCRIPT]).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let stdin = child.stdin.take().expect("a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        Self {
            child,
            stdin,
            stdout,
        }
    }

    /// What a server said until its end, or `failed: ...`.
    ///
    /// # Panics
    /// The program is gone.
    pub fn ask(&mut self, to: SocketAddr) -> String {
        writeln!(self.stdin, "{} {}", to.ip(), to.port()).expect("it reads");
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("it answers");
        line.trim().to_owned()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
