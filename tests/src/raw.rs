//! A connection read part by part, without any library that could mend what is on the wire.

use std::io::{self, Read};
use std::net::TcpStream;

use crate::wait;

/// A connection, and what was read from it and not taken yet.
#[derive(Debug)]
pub struct Raw {
    pub stream: TcpStream,
    read: Vec<u8>,
}

impl From<TcpStream> for Raw {
    fn from(stream: TcpStream) -> Self {
        let read = Vec::new();
        Self { stream, read }
    }
}

impl Raw {
    /// Takes what comes before these bytes, and them; `None` at an end before anything came.
    ///
    /// # Errors
    /// The connection broke, or ended before they came: what there was is told.
    pub fn until(&mut self, end: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut looked_at = 0;
        loop {
            let unseen = &self.read[looked_at..];
            if let Some(at) = unseen.windows(end.len()).position(|part| part == end) {
                let at = looked_at + at;
                let mut taken: Vec<u8> = self.read.drain(..at + end.len()).collect();
                taken.truncate(at);
                return Ok(Some(taken));
            }
            looked_at = (self.read.len() + 1).saturating_sub(end.len());
            if !self.more()? {
                return match self.read.is_empty() {
                    true => Ok(None),
                    false => Err(self.broke_off()),
                };
            }
        }
    }

    /// Takes a line, without its end.
    ///
    /// # Errors
    /// The connection broke, or ended before one came.
    pub fn line(&mut self) -> io::Result<Vec<u8>> {
        let line = self.until(b"\r\n")?;
        line.ok_or_else(|| self.broke_off())
    }

    /// # Errors
    /// The connection broke, or ended before so many bytes came.
    pub fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        match self.at_least(length)? {
            true => Ok(self.read.drain(..length).collect()),
            false => Err(self.broke_off()),
        }
    }

    /// Whether what comes next begins like this; nothing is taken.
    ///
    /// # Errors
    /// The connection broke.
    pub fn begins_with(&mut self, beginning: &[u8]) -> io::Result<bool> {
        Ok(self.at_least(beginning.len())? && self.read.starts_with(beginning))
    }

    /// What comes until the end.
    ///
    /// # Errors
    /// The connection broke.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        while self.more()? {}
        Ok(std::mem::take(&mut self.read))
    }

    fn at_least(&mut self, length: usize) -> io::Result<bool> {
        while self.read.len() < length {
            if !self.more()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn more(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 16 << 10];
        let read = wait::uninterrupted(|| self.stream.read(&mut buffer))?;
        self.read.extend_from_slice(&buffer[..read]);
        Ok(read > 0)
    }

    fn broke_off(&self) -> io::Error {
        let text = String::from_utf8_lossy(&self.read);
        io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("broke off after {text:?}"),
        )
    }
}
