//! What a connection's first bytes say. Pure: the same bytes, and more of them, always lead to the same answer.

/// How far the bytes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sniffed<T> {
    /// Too few of them to tell.
    More,
    /// It is something else.
    Other,
    Found(T),
}

/// Of a TLS client's first message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// In lower case.
    pub server_name: Option<String>,
    pub protocols: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    One,
    OneZero,
    Two,
}

impl Http {
    /// As filter chains name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::One => "http/1.1",
            Self::OneZero => "http/1.0",
            Self::Two => "h2c",
        }
    }
}

/// RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Longest request line that is looked at, bytes.
const MAX_LINE: usize = 8 << 10;
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
];

pub fn http(bytes: &[u8]) -> Sniffed<Http> {
    if bytes.starts_with(PREFACE) {
        return Sniffed::Found(Http::Two);
    }
    if PREFACE.starts_with(bytes) {
        return Sniffed::More;
    }
    let method = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
    let is_known = METHODS
        .iter()
        .any(|known| match method.len() < bytes.len() {
            true => known.as_bytes() == method,
            false => known.as_bytes().starts_with(method),
        });
    if !is_known {
        return Sniffed::Other;
    }
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return match bytes.len() < MAX_LINE {
            true => Sniffed::More,
            false => Sniffed::Other,
        };
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    if line.ends_with(b" HTTP/1.1") {
        Sniffed::Found(Http::One)
    } else if line.ends_with(b" HTTP/1.0") {
        Sniffed::Found(Http::OneZero)
    } else {
        Sniffed::Other
    }
}

/// Bytes of a ClientHello; a longer one is none.
const MAX_HELLO: usize = 64 << 10;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Bytes of a record; RFC 8446, section 5.1.
const MAX_RECORD: usize = 1 << 14;
const SERVER_NAME: u16 = 0;
const PROTOCOLS: u16 = 16;

/// A ClientHello may lie in several records, and its bytes come as they like.
pub fn client_hello(bytes: &[u8]) -> Sniffed<ClientHello> {
    let mut hello = Vec::new();
    let mut rest = bytes;
    let needed = loop {
        match rest {
            [HANDSHAKE, 3, _, high, low, after @ ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                if length == 0 || length > MAX_RECORD {
                    return Sniffed::Other;
                }
                hello.extend_from_slice(&after[..length.min(after.len())]);
                rest = after.get(length..).unwrap_or_default();
            }
            [] => return Sniffed::More,
            [HANDSHAKE] | [HANDSHAKE, 3] | [HANDSHAKE, 3, _] | [HANDSHAKE, 3, _, _] => {
                return Sniffed::More;
            }
            _ => return Sniffed::Other,
        }
        match hello.as_slice() {
            [] => {}
            [CLIENT_HELLO, a, b, c, ..] => {
                let length = 4 + usize::from(*a) * 65536 + usize::from(*b) * 256 + usize::from(*c);
                if length > MAX_HELLO {
                    return Sniffed::Other;
                }
                if hello.len() >= length {
                    break length;
                }
            }
            [CLIENT_HELLO, ..] => {}
            _ => return Sniffed::Other,
        }
    };
    match extensions(&hello[4..needed]) {
        Some(found) => Sniffed::Found(found),
        None => Sniffed::Other,
    }
}

/// `None`: this is no ClientHello.
fn extensions(hello: &[u8]) -> Option<ClientHello> {
    // Version and random.
    let rest = hello.get(34..)?;
    let (_session, rest) = vector(rest, 1)?;
    let (_ciphers, rest) = vector(rest, 2)?;
    let (_compressions, rest) = vector(rest, 1)?;
    let mut found = ClientHello::default();
    if rest.is_empty() {
        return Some(found);
    }
    let (mut extensions, _) = vector(rest, 2)?;
    while let [high, low, after @ ..] = extensions {
        let (content, rest) = vector(after, 2)?;
        match u16::from_be_bytes([*high, *low]) {
            SERVER_NAME => found.server_name = server_name(content)?,
            PROTOCOLS => found.protocols = protocols(content)?,
            _ => {}
        }
        extensions = rest;
    }
    Some(found)
}

/// RFC 6066, section 3.
fn server_name(content: &[u8]) -> Option<Option<String>> {
    let (mut names, _) = vector(content, 2)?;
    while let [kind, after @ ..] = names {
        let (name, rest) = vector(after, 2)?;
        if *kind == 0 {
            let name = std::str::from_utf8(name).ok()?;
            return Some(Some(name.to_ascii_lowercase()));
        }
        names = rest;
    }
    Some(None)
}

/// RFC 7301, section 3.1.
fn protocols(content: &[u8]) -> Option<Vec<String>> {
    let (mut list, _) = vector(content, 2)?;
    let mut protocols = Vec::new();
    while !list.is_empty() {
        let (name, rest) = vector(list, 1)?;
        protocols.push(String::from_utf8_lossy(name).into_owned());
        list = rest;
    }
    Some(protocols)
}

/// Bytes behind their length, which has `width` bytes; and what follows.
fn vector(bytes: &[u8], width: usize) -> Option<(&[u8], &[u8])> {
    let length = bytes.get(..width)?;
    let length = length
        .iter()
        .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    bytes.get(width..)?.split_at_checked(length)
}

#[cfg(test)]
mod tests;
