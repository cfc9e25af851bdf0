//! HTTP/1.1 as it is on the wire, read without any library that could mend it.

use std::io;
use std::net::TcpStream;

use shunt_tests::Raw;

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
pub struct Reader(pub Raw);

impl Reader {
    pub fn new(stream: TcpStream) -> Self {
        Self(stream.into())
    }

    /// The next response, to a request that was a HEAD, or a CONNECT.
    pub fn answer(&mut self, [head, connect]: [bool; 2]) -> io::Result<Option<Message>> {
        let is_tunnel = connect && self.0.begins_with(b"HTTP/1.1 2")?;
        self.message(head || is_tunnel)
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
        let Some(head) = self.0.until(b"\r\n\r\n")? else {
            return Ok(None);
        };
        let head = String::from_utf8_lossy(&head);
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
                message.body.extend(self.0.exactly(size)?);
                self.0.line()?;
            }
        }
        if let Some(length) = message.header("content-length") {
            let length = length.parse().map_err(io::Error::other)?;
            message.body = self.0.exactly(length)?;
        } else if is_response {
            message.until_end = true;
            message.body = self.0.rest()?;
        }
        Ok(())
    }

    fn line(&mut self) -> io::Result<String> {
        let line = self.0.line()?;
        Ok(String::from_utf8_lossy(&line).into_owned())
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
