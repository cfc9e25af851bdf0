//! Words between the two sides of a row, past the network: the other side's moment is known, not guessed.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::row::Fault;

/// The other side is gone, or so late that its row has hung.
const LONGEST: Duration = Duration::from_secs(20);

/// See the head of this module.
#[derive(Debug)]
pub(super) struct Link {
    read: BufReader<UnixStream>,
    write: UnixStream,
}

impl Link {
    pub(super) fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(LONGEST))?;
        let write = stream.try_clone()?;
        Ok(Self {
            read: BufReader::new(stream),
            write,
        })
    }

    pub(super) fn tell(&mut self, text: &str) -> Result<(), Fault> {
        writeln!(self.write, "{text}").map_err(|_| Fault::Alone)
    }

    pub(super) fn hear(&mut self) -> Result<String, Fault> {
        let mut line = String::new();
        match self.read.read_line(&mut line) {
            Ok(1..) if line.ends_with('\n') => Ok(line.trim_end().to_owned()),
            _ => Err(Fault::Alone),
        }
    }

    /// Both sides are here before either goes on.
    pub(super) fn meet(&mut self) -> Result<(), Fault> {
        self.tell("here")?;
        self.hear().map(drop)
    }
}
