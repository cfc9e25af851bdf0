//! HTTP/1.1 as it is on the wire, read without any library that could mend it.

use std::io::{self, Read};
use std::net::TcpStream;

use shunt_tests::wait;

/// A request or a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Request or status line.
    pub first: String,
    /// Names as they stood.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Of the last one, where the connection's end is the body's.
    pub until_end: bool,
}

/// A connection and what was read from it and not understood yet.
#[derive(Debug)]
pub struct Reader {
    pub stream: TcpStream,
    read: Vec<u8>,
}

impl Reader {
    pub fn new(stream: TcpStream) -> Self {
        let read = Vec::new();
        Self { stream, read }
    }

    /// The next response, to a request that was a HEAD, or a CONNECT.
    pub fn answer(&mut self, [head, connect]: [bool; 2]) -> io::Result<Option<Message>> {
        let is_tunnel = connect && self.starts_with_success()?;
        self.message(head || is_tunnel)
    }

    fn starts_with_success(&mut self) -> io::Result<bool> {
        const BEGINNING: &[u8] = b"HTTP/1.1 2";
        while self.read.len() < BEGINNING.len() {
            if !self.more()? {
                return Ok(false);
            }
        }
        Ok(self.read.starts_with(BEGINNING))
    }

    /// The next message; `None` at the end. `answers_head`: a response that has no body whatever it says.
    pub fn message(&mut self, answers_head: bool) -> io::Result<Option<Message>> {
        let mut message = self.head()?;
        if let Some(message) = &mut message {
            self.body(message, answers_head)?;
        }
        Ok(message)
    }

    /// The next message's, without its body.
    pub fn head(&mut self) -> io::Result<Option<Message>> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            if !self.more()? {
                return match self.read.is_empty() {
                    true => Ok(None),
                    false => Err(io::Error::other(format!(
                        "broke off after {:?}",
                        String::from_utf8_lossy(&self.read)
                    ))),
                };
            }
        };
        let head = String::from_utf8_lossy(&self.read[..end]).into_owned();
        self.read.drain(..end + 4);
        let mut lines = head.split("\r\n");
        Ok(Some(Message {
            first: lines.next().unwrap_or_default().to_owned(),
            headers: lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                .collect(),
            body: Vec::new(),
            until_end: false,
        }))
    }

    pub fn body(&mut self, message: &mut Message, answers_head: bool) -> io::Result<()> {
        let is_response = message.first.starts_with("HTTP/");
        let status = message.first.split(' ').nth(1).unwrap_or_default();
        if answers_head
            || is_response && (status.starts_with('1') || matches!(status, "204" | "304"))
        {
            return Ok(());
        }
        if message.header("transfer-encoding").is_some() {
            loop {
                let line = self.line()?;
                let size =
                    usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16);
                let size = size
                    .map_err(|error| io::Error::other(format!("chunk size {line:?}: {error}")))?;
                if size == 0 {
                    loop {
                        let line = self.line()?;
                        let Some((name, value)) = line.split_once(':') else {
                            return Ok(());
                        };
                        let name = format!("trailer {name}");
                        message.headers.push((name, value.trim().to_owned()));
                    }
                }
                message.body.extend(self.exactly(size)?);
                self.line()?;
            }
        }
        if let Some(length) = message.header("content-length") {
            let length = length.parse().map_err(io::Error::other)?;
            message.body = self.exactly(length)?;
        } else if is_response {
            message.until_end = true;
            while self.more()? {}
            message.body = std::mem::take(&mut self.read);
        }
        Ok(())
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = self.read.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.read[..at]).into_owned();
                self.read.drain(..at + 2);
                return Ok(line);
            }
            self.must_have_more()?;
        }
    }

    fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.read.len() < length {
            self.must_have_more()?;
        }
        Ok(self.read.drain(..length).collect())
    }

    fn must_have_more(&mut self) -> io::Result<()> {
        match self.more()? {
            true => Ok(()),
            false => Err(io::Error::other("broke off within a body")),
        }
    }

    fn more(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 16 << 10];
        let read = wait::uninterrupted(|| self.stream.read(&mut buffer))?;
        self.read.extend_from_slice(&buffer[..read]);
        Ok(read > 0)
    }
}

impl Message {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self
            .headers
            .iter()
            .filter(|(known, _)| known.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.as_str())
    }

    /// What two proxies must agree on, line by line, each under a name.
    pub fn facts(&self) -> Vec<(String, String)> {
        let mut facts = vec![
            ("first line".to_owned(), self.first.clone()),
            (
                "body".to_owned(),
                String::from_utf8_lossy(&self.body).into_owned(),
            ),
        ];
        for (name, value) in &self.headers {
            facts.push((name.clone(), stable(name, value)));
        }
        facts.sort();
        facts
    }
}

/// The value, or what kind of value it is where chance or time makes it.
fn stable(name: &str, value: &str) -> String {
    let is_uuid = value.len() == 36 && value.matches('-').count() == 4;
    match name.to_ascii_lowercase().as_str() {
        "date" => "a date".to_owned(),
        "x-request-id" if is_uuid => "an id".to_owned(),
        "x-envoy-upstream-service-time" if value.parse::<u32>().is_ok() => "a time".to_owned(),
        _ => value.to_owned(),
    }
}
