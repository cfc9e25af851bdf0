//! Requests and answers, as bytes.

use std::io::{self, Write};
use std::time::Duration;

use serde_json::{Value, json};

use super::api::Failing;
use crate::wait;

#[derive(Debug)]
pub(super) struct Query {
    pub(super) watch: bool,
    pub(super) bookmarks: bool,
    pub(super) version: u64,
    pub(super) limit: usize,
    pub(super) from: usize,
    node: Option<String>,
}

impl Query {
    pub(super) fn of(text: &str) -> Self {
        let value = |key: &str| {
            let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
            let mut found = pairs.filter(|(name, _)| *name == key);
            found.next().map(|(_, value)| value.replace("%3D", "="))
        };
        let number = |key: &str| value(key).and_then(|text| text.parse().ok());
        let is = |key: &str| value(key).is_some_and(|text| text == "true");
        let selector = value("fieldSelector");
        Self {
            watch: is("watch"),
            bookmarks: is("allowWatchBookmarks"),
            version: number("resourceVersion").unwrap_or(0),
            // Pages of two, so that there are some.
            limit: number("limit").map_or(usize::MAX, |_| 2),
            from: number("continue").unwrap_or(0) as usize,
            node: selector.and_then(|text| text.strip_prefix("spec.nodeName=").map(str::to_owned)),
        }
    }

    pub(super) fn selects(&self, object: &Value) -> bool {
        self.node
            .as_ref()
            .is_none_or(|node| object["spec"]["nodeName"] == **node)
    }
}

pub(super) fn status(stream: &mut impl Write, code: u16, reason: &str) -> io::Result<()> {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": format!("it is so: {reason}"), "reason": reason, "code": code});
    respond(stream, &format!("{code} {reason}"), &body.to_string())
}

pub(super) fn respond(stream: &mut impl Write, status: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes())
}

/// The empty one is the end.
pub(super) fn chunk(stream: &mut impl Write, text: &str, failing: Failing) -> io::Result<()> {
    let piece = if failing == Failing::Slow {
        700
    } else {
        text.len().max(1)
    };
    for part in text.as_bytes().chunks(piece) {
        write!(stream, "{:x}\r\n", part.len())?;
        stream.write_all(part)?;
        stream.write_all(b"\r\n")?;
        if failing == Failing::Slow {
            wait::pause(Duration::from_millis(5));
        }
    }
    if text.is_empty() {
        stream.write_all(b"0\r\n\r\n")?;
    }
    Ok(())
}
