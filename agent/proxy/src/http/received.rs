//! A request as it was received, made one that can be routed: who sent it, by which way, and what is only for this hop.

mod hop;
mod names;

use std::borrow::Cow;
use std::net::SocketAddr;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::{request::Parts, uri::Authority};
use hyper::{Method, Version};
use shunt_core::http::{HttpConnectionManager, PathRules, RequestView, StripPort};
use shunt_core::route::matching::without_port;

pub(super) use self::hop::{connection_says, drop_hop_by_hop, is_chunked_at_most};
use self::names::{EDGE, INTERNAL, ONE_LINE};

pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(super) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_ENVOY_EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");

/// A request, taken apart so that each piece can change.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) method: Method,
    /// Path and query.
    pub(super) path: String,
    /// `host`.
    pub(super) authority: String,
    pub(super) version: Version,
    /// With the `host` that was received, in its place: what counts is the authority.
    pub(super) headers: HeaderMap,
    /// Somebody asks for the headers when they are on their way already.
    pub(super) stays: bool,
    /// Whom it is from, where proxies before this one are believed.
    pub(super) client: Option<SocketAddr>,
}

/// Why a request is answered without being routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// HTTP/1.0 is not accepted.
    TooOld,
    NoHost,
    /// The path is none.
    NoPath,
    /// Its body is encoded in a way that nobody would tell the upstream of.
    UnknownEncoding,
    /// Who it is for is said more than once; RFC 9112, section 3.2.
    ManyHosts,
    /// What it says of who it is for is no host, or it is for nothing.
    NoTarget,
}

/// What a request wants beside its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    Plain,
    /// To become another protocol.
    Upgrade,
    /// To be a tunnel.
    Connect,
}

impl Head {
    /// # Errors
    /// It is not fit to be routed.
    pub(super) fn new(parts: Parts, manager: &HttpConnectionManager) -> Result<Self, Unfit> {
        let Parts {
            method,
            uri,
            version,
            headers,
            ..
        } = parts;
        if version < Version::HTTP_11 && !manager.accept_http_10 {
            return Err(Unfit::TooOld);
        }
        let is_connect = method == Method::CONNECT;
        // Bytes behind a CONNECT are the tunnel's, and never its body.
        let encoding = headers.contains_key(header::TRANSFER_ENCODING);
        if !is_chunked_at_most(&headers) || is_connect && encoding {
            return Err(Unfit::UnknownEncoding);
        }
        if headers.get_all(header::HOST).iter().nth(1).is_some() {
            return Err(Unfit::ManyHosts);
        }
        let said = headers.get(header::HOST);
        let said = said.and_then(|host| host.to_str().ok());
        // The target's own authority counts more; RFC 9112, section 3.2.2.
        let authority = uri.authority().map(without_user).or(said);
        let default = &manager.default_host_for_http_10;
        let authority = match authority.filter(|authority| !authority.is_empty()) {
            Some(authority) => authority.to_owned(),
            None if version < Version::HTTP_11 && !default.is_empty() => default.clone(),
            None => return Err(Unfit::NoHost),
        };
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        if !authority.bytes().all(is_of_authority) || path.is_empty() != is_connect {
            return Err(Unfit::NoTarget);
        }
        if is_connect {
            let length = headers.get(header::CONTENT_LENGTH);
            let has_body = length.is_some_and(|length| length.as_bytes() != b"0");
            if has_body || uri.port_u16().is_none() {
                return Err(Unfit::NoTarget);
            }
        } else if !path.starts_with('/') {
            return Err(Unfit::NoPath);
        }
        Ok(Self {
            path: match manager.paths == PathRules::default() || is_connect {
                true => path.to_owned(),
                false => manager.paths.apply(path),
            },
            method,
            authority,
            version,
            headers,
            stays: true,
            client: None,
        })
    }

    /// The headers for whoever is next.
    pub(super) fn hand_on(&mut self) -> HeaderMap {
        match self.stays {
            true => self.headers.clone(),
            false => std::mem::take(&mut self.headers),
        }
    }

    /// All of it for whoever is next.
    pub(super) fn hand_over(&mut self) -> Self {
        Self {
            method: self.method.clone(),
            path: self.path.clone(),
            authority: self.authority.clone(),
            version: self.version,
            headers: self.hand_on(),
            stays: true,
            client: self.client,
        }
    }

    /// Sent by one connection manager, and received by the next.
    pub(super) fn pass_on(&mut self, manager: &HttpConnectionManager) {
        self.version = Version::HTTP_11;
        if manager.paths != PathRules::default() && !self.path.is_empty() {
            self.path = manager.paths.apply(&self.path);
        }
    }

    /// Does the client say that it goes on with this connection?
    pub(super) fn keeps_alive(&self) -> bool {
        match self.version {
            Version::HTTP_10 => self.connection_says("keep-alive"),
            _ => !self.connection_says("close"),
        }
    }

    /// What Envoy's connection manager does with every request before it is routed.
    pub(super) fn receive(
        &mut self,
        manager: &HttpConnectionManager,
        client: SocketAddr,
        listener: SocketAddr,
    ) -> Received {
        self.strip_port(manager.strip_host_port, listener.port());
        let wanted = self.wanted();
        let expected = self.expects().filter(|_| manager.passes_informational);
        self.drop_hop_by_hop();
        self.join_lines();
        let received = match wanted {
            _ if self.method == Method::CONNECT => Received::Connect,
            Some((connection, upgrade)) => {
                self.headers.insert(header::CONNECTION, connection);
                self.headers.insert(header::UPGRADE, upgrade);
                Received::Upgrade
            }
            None => Received::Plain,
        };
        if let Some(expected) = expected {
            self.headers.insert(header::EXPECT, expected);
        }
        self.client = match manager.use_remote_address {
            true => None,
            false => self.last_forwarded_for(),
        };
        if manager.use_remote_address {
            if !manager.skip_xff_append {
                append(
                    &mut self.headers,
                    &X_FORWARDED_FOR,
                    &client.ip().to_string(),
                    ",",
                );
            }
            if let Ok(address) = HeaderValue::from_str(&client.ip().to_string()) {
                self.headers.insert(X_ENVOY_EXTERNAL_ADDRESS, address);
            }
            self.headers
                .insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
        }
        self.drop_internal(manager.use_remote_address);
        self.headers
            .entry(X_FORWARDED_PROTO)
            .or_insert(HeaderValue::from_static("http"));
        if manager.request_id.generate {
            let keep = !manager.use_remote_address || manager.request_id.preserve_external;
            if !(keep && self.headers.contains_key(X_REQUEST_ID)) {
                self.headers.insert(X_REQUEST_ID, request_id());
            }
        }
        if !manager.via.is_empty() {
            append(&mut self.headers, &header::VIA, &manager.via, ", ");
        }
        received
    }

    /// As the proxy before this one has it: without its port, and nobody where that is no address.
    fn last_forwarded_for(&self) -> Option<SocketAddr> {
        let said = self.headers.get_all(X_FORWARDED_FOR).iter().next_back()?;
        let last = said.to_str().ok()?.rsplit(',').next()?;
        Some(SocketAddr::new(last.trim().parse().ok()?, 0))
    }

    /// Few requests have any of them, and most names are none at the first look.
    fn drop_internal(&mut self, is_edge: bool) {
        let is_internal = |name: &&HeaderName| {
            let name = name.as_str();
            name.starts_with("x-envoy-")
                && (INTERNAL.contains(&name) || is_edge && EDGE.contains(&name))
        };
        let internal: Vec<HeaderName> = self.headers.keys().filter(is_internal).cloned().collect();
        for name in internal {
            self.headers.remove(name);
        }
    }

    fn strip_port(&mut self, rule: StripPort, own: u16) {
        let host = without_port(&self.authority);
        let port = self.authority.get(host.len() + 1..);
        let strip = match rule {
            StripPort::Never => false,
            StripPort::Any => true,
            StripPort::Matching => port == Some(own.to_string().as_str()),
        };
        if strip {
            self.authority = host.to_owned();
        }
    }

    fn connection_says(&self, wanted: &str) -> bool {
        connection_says(&self.headers, wanted)
    }

    /// Headers of which Envoy knows one line only.
    fn join_lines(&mut self) {
        if self.headers.keys_len() == self.headers.len() {
            return;
        }
        for name in ONE_LINE {
            if self.headers.get_all(name).iter().nth(1).is_some() {
                let values: Vec<&[u8]> = self
                    .headers
                    .get_all(name)
                    .iter()
                    .map(HeaderValue::as_bytes)
                    .collect();
                let joined = values.join(&b","[..]);
                if let Ok(joined) = HeaderValue::from_bytes(&joined) {
                    self.headers.insert(name, joined);
                }
            }
        }
    }

    fn drop_hop_by_hop(&mut self) {
        drop_hop_by_hop(&mut self.headers);
        self.headers.remove(header::EXPECT);
        if let Some(te) = self.headers.remove(header::TE)
            && te.to_str().is_ok_and(|te| te.contains("trailers"))
        {
            self.headers
                .insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// As Envoy makes them: version 4, of chance.
fn request_id() -> HeaderValue {
    let bits = fastrand::u128(..) & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let mut text = [b'-'; 36];
    let places = (0..text.len()).filter(|at| ![8, 13, 18, 23].contains(at));
    for (digit, at) in places.enumerate() {
        let value = (bits >> (124 - 4 * digit)) as usize & 0xf;
        text[at] = b"0123456789abcdef"[value];
    }
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static(""))
}

/// To the value that is there, or alone.
pub(super) fn append(headers: &mut HeaderMap, name: &HeaderName, value: &str, separator: &str) {
    let text = match joined(headers, name.as_str()) {
        Some(before) if !before.is_empty() => {
            [&before[..], separator.as_bytes(), value.as_bytes()].concat()
        }
        _ => value.as_bytes().to_vec(),
    };
    if let Ok(value) = HeaderValue::from_bytes(&text) {
        headers.insert(name, value);
    }
}

/// All values of a name.
pub(super) fn joined<'a>(headers: &'a HeaderMap, name: &str) -> Option<Cow<'a, [u8]>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.as_bytes();
    let mut rest = values.peekable();
    if rest.peek().is_none() {
        return Some(first.into());
    }
    let mut all = first.to_vec();
    for value in rest {
        all.push(b',');
        all.extend_from_slice(value.as_bytes());
    }
    Some(all.into())
}

impl RequestView for Head {
    fn method(&self) -> &str {
        self.method.as_str()
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn authority(&self) -> &str {
        &self.authority
    }

    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        joined(&self.headers, name)
    }

    fn any_line(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> Option<bool> {
        let mut lines = self.headers.get_all(name).iter().peekable();
        lines.peek()?;
        Some(lines.any(|line| test(line.as_bytes())))
    }
}

pub(super) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

/// Who the client is, is nothing that an upstream is told as its own name.
fn without_user(authority: &Authority) -> &str {
    let all = authority.as_str();
    all.rsplit_once('@').map_or(all, |(_, host)| host)
}

/// What may stand in `host`; RFC 3986, section 3.2.
fn is_of_authority(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]@".contains(&byte)
}
