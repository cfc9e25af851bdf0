//! Format strings of header values: `%REQ(x-user)%` and the like.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::RequestView;

/// A format string that has been understood. Written as its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Format {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// The first of two names that is there, at most so many bytes.
    Request(String, Option<String>, Option<usize>),
    Response(String, Option<String>, Option<usize>),
    Peer(End, Piece),
    Local(End, Piece),
    Protocol,
    ResponseCode,
    RouteName,
    Cluster,
    /// Of a reply of the proxy's own.
    LocalReplyBody,
    ResponseFlags,
    ResponseCodeDetails,
    /// Milliseconds.
    Duration,
}

/// A format's value, as JSON has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Nothing,
    Number(u64),
    Text(Vec<u8>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Downstream,
    /// Whose connection it is, whatever anybody says.
    Direct,
    Upstream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Whole,
    Address,
    Port,
}

/// Looks a header up.
pub type Headers<'a> = &'a dyn Fn(&str) -> Option<Vec<u8>>;

/// What a format may ask for. What is `None` writes nothing.
#[expect(missing_debug_implementations, reason = "a borrowed view")]
#[derive(Clone, Copy)]
pub struct Known<'a> {
    pub request: &'a dyn RequestView,
    /// Of a name in lower case.
    pub response: Option<Headers<'a>>,
    pub protocol: &'a str,
    pub response_code: Option<u16>,
    pub client: SocketAddr,
    /// Whose connection it is, whatever a PROXY header or `x-forwarded-for` says.
    pub direct_client: SocketAddr,
    pub listener: SocketAddr,
    pub upstream: Option<SocketAddr>,
    pub route: &'a str,
    pub cluster: Option<&'a str>,
    /// The proxy's own reply, as far as it goes.
    pub local_reply: Option<&'a [u8]>,
    /// Envoy's response flags; none is empty.
    pub flags: &'a str,
    pub details: &'a str,
    /// Since the request began.
    pub so_far: Duration,
}

impl Format {
    /// # Errors
    /// What is wrong with the text, or not supported.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            plain.push_str(before);
            if let Some(after) = after.strip_prefix('%') {
                plain.push('%');
                rest = after;
                continue;
            }
            let (command, after) = after
                .split_once('%')
                .ok_or_else(|| format!("`%{after}` has no second `%`"))?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(part(command)?);
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self {
            text: text.to_owned(),
            parts,
        })
    }

    /// Does it ask for what is known of the proxy's own replies alone?
    pub fn is_of_local_replies(&self) -> bool {
        use Part::{Duration, LocalReplyBody, ResponseCodeDetails, ResponseFlags};
        let is_theirs = |part: &Part| {
            matches!(
                part,
                LocalReplyBody | ResponseFlags | ResponseCodeDetails | Duration
            )
        };
        self.parts.iter().any(is_theirs)
    }

    /// The bytes, which may be none.
    pub fn render<'a>(&'a self, known: &Known<'_>) -> Cow<'a, [u8]> {
        match self.parts.as_slice() {
            [Part::Text(text)] => text.as_bytes().into(),
            parts => {
                let mut value = Vec::new();
                parts.iter().for_each(|part| part.render(known, &mut value));
                value.into()
            }
        }
    }

    /// The bytes, with `missing` where there is nothing to say.
    pub fn render_or(&self, known: &Known<'_>, missing: &str) -> Vec<u8> {
        let mut value = Vec::new();
        for part in &self.parts {
            let before = value.len();
            part.render(known, &mut value);
            let may_be_empty = matches!(part, Part::LocalReplyBody | Part::Text(_));
            if value.len() == before && !may_be_empty {
                value.extend_from_slice(missing.as_bytes());
            }
        }
        value
    }

    /// Alone, what is a number stays one, and what is not there is nothing.
    pub fn value(&self, known: &Known<'_>) -> Value {
        let [part] = self.parts.as_slice() else {
            return Value::Text(self.render_or(known, "-"));
        };
        let mut text = Vec::new();
        part.render(known, &mut text);
        let number = || std::str::from_utf8(&text).ok()?.parse().ok();
        match part {
            Part::Text(_) | Part::LocalReplyBody => Value::Text(text),
            Part::ResponseCode
            | Part::Duration
            | Part::Peer(_, Piece::Port)
            | Part::Local(_, Piece::Port) => number().map_or(Value::Nothing, Value::Number),
            _ if text.is_empty() => Value::Nothing,
            _ => Value::Text(text),
        }
    }
}

impl TryFrom<String> for Format {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Format> for String {
    fn from(format: Format) -> Self {
        format.text
    }
}

fn part(command: &str) -> Result<Part, String> {
    let (name, argument, length) = pieces(command)?;
    let headers = || -> Result<(String, Option<String>, Option<usize>), String> {
        let names = argument.ok_or_else(|| format!("%{command}% names no header"))?;
        let (first, second) = match names.split_once('?') {
            Some((first, second)) => (first, Some(second.to_ascii_lowercase())),
            None => (names, None),
        };
        Ok((first.to_ascii_lowercase(), second, length))
    };
    use End::{Direct, Downstream, Upstream};
    use Piece::{Address, Port, Whole};
    let part = match name {
        "REQ" => {
            let (first, second, length) = headers()?;
            return Ok(Part::Request(first, second, length));
        }
        "RESP" => {
            let (first, second, length) = headers()?;
            return Ok(Part::Response(first, second, length));
        }
        "DOWNSTREAM_REMOTE_ADDRESS" => Part::Peer(Downstream, Whole),
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Part::Peer(Downstream, Address),
        "DOWNSTREAM_REMOTE_PORT" => Part::Peer(Downstream, Port),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Part::Peer(Direct, Whole),
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => Part::Peer(Direct, Address),
        "DOWNSTREAM_DIRECT_REMOTE_PORT" => Part::Peer(Direct, Port),
        "DOWNSTREAM_LOCAL_ADDRESS" => Part::Local(Downstream, Whole),
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => Part::Local(Downstream, Address),
        "DOWNSTREAM_LOCAL_PORT" => Part::Local(Downstream, Port),
        "UPSTREAM_REMOTE_ADDRESS" | "UPSTREAM_HOST" => Part::Peer(Upstream, Whole),
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Part::Peer(Upstream, Address),
        "UPSTREAM_REMOTE_PORT" => Part::Peer(Upstream, Port),
        "PROTOCOL" => Part::Protocol,
        "RESPONSE_CODE" => Part::ResponseCode,
        "ROUTE_NAME" => Part::RouteName,
        "UPSTREAM_CLUSTER" => Part::Cluster,
        "LOCAL_REPLY_BODY" => Part::LocalReplyBody,
        "RESPONSE_FLAGS" => Part::ResponseFlags,
        "RESPONSE_CODE_DETAILS" => Part::ResponseCodeDetails,
        "DURATION" => Part::Duration,
        _ => return Err(format!("%{command}% is not supported")),
    };
    match (argument, length) {
        (None, None) => Ok(part),
        _ => Err(format!("%{name}% takes no arguments")),
    }
}

/// `NAME(argument):length`.
fn pieces(command: &str) -> Result<(&str, Option<&str>, Option<usize>), String> {
    let wrong = || format!("%{command}% is not NAME, NAME(ARGUMENT) or NAME(ARGUMENT):LENGTH");
    let Some((name, rest)) = command.split_once('(') else {
        return Ok((command, None, None));
    };
    let (argument, rest) = rest.split_once(')').ok_or_else(wrong)?;
    let length = match rest.strip_prefix(':') {
        Some(digits) => Some(digits.parse().map_err(|_| wrong())?),
        None if rest.is_empty() => None,
        None => return Err(wrong()),
    };
    Ok((name, Some(argument), length))
}

impl Part {
    fn render(&self, known: &Known<'_>, out: &mut Vec<u8>) {
        match self {
            Self::Text(text) => out.extend_from_slice(text.as_bytes()),
            Self::Request(first, second, length) => {
                let names = std::iter::once(first).chain(second);
                let mut values = names.filter_map(|name| first_line(known.request, name));
                extend(out, values.next().as_deref(), *length);
            }
            Self::Response(first, second, length) => {
                let Some(response) = known.response else {
                    return;
                };
                let names = std::iter::once(first).chain(second);
                let mut values = names.filter_map(|name| response(name));
                extend(out, values.next().as_deref(), *length);
            }
            Self::Peer(End::Downstream, piece) => address(out, Some(known.client), *piece),
            Self::Peer(End::Direct, piece) => address(out, Some(known.direct_client), *piece),
            Self::Peer(End::Upstream, piece) => address(out, known.upstream, *piece),
            Self::Local(_, piece) => address(out, Some(known.listener), *piece),
            Self::Protocol => out.extend_from_slice(known.protocol.as_bytes()),
            Self::ResponseCode => {
                if let Some(code) = known.response_code {
                    out.extend_from_slice(code.to_string().as_bytes());
                }
            }
            Self::RouteName => out.extend_from_slice(known.route.as_bytes()),
            Self::Cluster => out.extend_from_slice(known.cluster.unwrap_or_default().as_bytes()),
            Self::LocalReplyBody => out.extend_from_slice(known.local_reply.unwrap_or_default()),
            Self::ResponseFlags => out.extend_from_slice(known.flags.as_bytes()),
            Self::ResponseCodeDetails => out.extend_from_slice(known.details.as_bytes()),
            Self::Duration => {
                out.extend_from_slice(known.so_far.as_millis().to_string().as_bytes());
            }
        }
    }
}

/// Of several lines of a name the first is meant.
fn first_line<'a>(request: &'a dyn RequestView, name: &str) -> Option<Cow<'a, [u8]>> {
    if name.starts_with(':') || name == "host" {
        return request.any_header(name);
    }
    let mut first = None;
    request.any_line(name, &mut |line| {
        first = Some(line.to_vec());
        true
    });
    first.map(Cow::Owned)
}

fn extend(out: &mut Vec<u8>, value: Option<&[u8]>, length: Option<usize>) {
    let value = value.unwrap_or_default();
    out.extend_from_slice(&value[..value.len().min(length.unwrap_or(usize::MAX))]);
}

fn address(out: &mut Vec<u8>, addr: Option<SocketAddr>, piece: Piece) {
    let Some(addr) = addr else { return };
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = match piece {
        Piece::Whole => write!(text, "{addr}"),
        Piece::Address => write!(text, "{}", addr.ip()),
        Piece::Port => write!(text, "{}", addr.port()),
    };
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests;
