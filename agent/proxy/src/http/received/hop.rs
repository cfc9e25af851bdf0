//! What is about one hop only, and who wants more of it than an answer.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Version};

use super::{Head, X_FORWARDED_FOR, joined};

/// Headers that no client can have taken away, and `te`, of which the rest is seen to.
const KEPT: [HeaderName; 6] = [
    X_FORWARDED_FOR,
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    header::HOST,
    header::CONTENT_LENGTH,
    header::TE,
];
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

impl Head {
    /// `connection` and `upgrade` of a request that wants its connection to become another protocol. HTTP/2 is none, and
    /// HTTP/1.0 has none: such a request is one as any other (RFC 9110, section 7.8).
    pub(super) fn wanted(&self) -> Option<(HeaderValue, HeaderValue)> {
        let upgrade = joined(&self.headers, header::UPGRADE.as_str())?;
        if self.version < Version::HTTP_11
            || upgrade.eq_ignore_ascii_case(b"h2c")
            || !self.connection_says("upgrade")
        {
            return None;
        }
        let upgrade = HeaderValue::from_bytes(&upgrade).ok()?;
        // What else it names is gone.
        let stays = |word: &&str| {
            ["upgrade", "keep-alive", "close"].contains(&word.to_ascii_lowercase().as_str())
        };
        let words: Vec<&str> = connection(&self.headers).filter(stays).collect();
        Some((HeaderValue::try_from(words.join(", ")).ok()?, upgrade))
    }

    /// What `expect` says, where that is to hear before the body whether it is wanted.
    pub(in crate::http) fn expects(&self) -> Option<HeaderValue> {
        if self.version < Version::HTTP_11 {
            return None; // RFC 9110, section 10.1.1.
        }
        let expected = self.headers.get(header::EXPECT)?;
        let is_known = expected.as_bytes().eq_ignore_ascii_case(b"100-continue");
        is_known.then(|| expected.clone())
    }

    /// Does what wants to be a tunnel get to be one by a response of this status?
    pub(in crate::http) fn becomes_tunnel(&self, status: StatusCode) -> bool {
        match self.method == Method::CONNECT {
            true => status.is_success(),
            false => status == StatusCode::SWITCHING_PROTOCOLS,
        }
    }

    /// It wants to be a tunnel.
    pub(in crate::http) fn is_tunnel(&self) -> bool {
        self.method == Method::CONNECT || self.headers.contains_key(header::UPGRADE)
    }
}

/// Is `transfer-encoding`, where there is any, that of which the framing takes care, and nothing else?
pub(in crate::http) fn is_chunked_at_most(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (lines.next(), lines.next()) {
        (None, _) => true,
        (Some(only), None) => only.as_bytes().eq_ignore_ascii_case(b"chunked"),
        _ => false,
    }
}

/// The words of `connection`.
pub(super) fn connection(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(header::CONNECTION).iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(',').map(str::trim))
}

pub(in crate::http) fn connection_says(headers: &HeaderMap, wanted: &str) -> bool {
    connection(headers).any(|word| word.eq_ignore_ascii_case(wanted))
}

/// What is about this hop only.
pub(in crate::http) fn drop_hop_by_hop(headers: &mut HeaderMap) {
    // What it names is about this hop too (RFC 9110, section 7.6.1), unless others rely on it.
    let named = connection(headers).filter_map(|word| word.parse().ok());
    let named: Vec<HeaderName> = named.filter(|name| !KEPT.contains(name)).collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::UPGRADE,
        header::TRANSFER_ENCODING,
        KEEP_ALIVE,
        PROXY_CONNECTION,
    ] {
        headers.remove(name);
    }
}
