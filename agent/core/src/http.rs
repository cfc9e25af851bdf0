//! What an HTTP connection manager is told.

pub mod filters;
pub mod format;
pub mod local_reply;
pub mod path;
pub mod record;

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::filters::HttpFilter;
use self::local_reply::LocalReplies;
pub use self::path::PathRules;
use crate::route::RouteConfiguration;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HttpConnectionManager {
    /// What its statistics are called; not empty.
    pub stat_prefix: String,
    pub server_name: String,
    pub server_header: ServerHeader,
    /// Appended to `via` of requests and responses; empty: nothing is.
    pub via: String,
    /// The peer is the client: `x-forwarded-for` and `x-forwarded-proto` are this proxy's to say.
    pub use_remote_address: bool,
    pub skip_xff_append: bool,
    pub request_id: RequestId,
    pub limits: HttpLimits,
    pub timeouts: HttpTimeouts,
    /// Take HTTP/1.0 requests rather than answer 426.
    pub accept_http_10: bool,
    /// Host of HTTP/1.0 requests without one; empty: they are refused.
    pub default_host_for_http_10: String,
    /// Names begin with upper case letters on the wire.
    pub proper_case: bool,
    pub paths: PathRules,
    /// `host:80` of a listener on port 80 is `host`.
    pub strip_host_port: StripPort,
    /// What a connection may become, unless a route says otherwise.
    pub upgrades: Vec<Upgrade>,
    /// Pass on `100 Continue` and its kin from upstreams rather than say the first in their place.
    pub passes_informational: bool,
    /// Requests' trailers are read, and responses' are written.
    pub trailers: bool,
    /// Tell upstreams and clients nothing in `x-envoy-` headers.
    pub suppress_envoy_headers: bool,
    /// In the order in which requests meet them, without the router.
    pub filters: Vec<HttpFilter>,
    pub local_replies: LocalReplies,
    pub routes: RouteConfiguration,
    /// The routes come by RDS: clusters that they name may come later.
    pub rds: bool,
}

/// One of `upgrade_configs`: a protocol that a connection may become, or may not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrade {
    /// `CONNECT` for the method.
    pub name: String,
    pub enabled: bool,
}

/// May a connection become what `name` says? What the route says counts more. Names are the same in any case of letters.
pub fn may_upgrade(manager: &[Upgrade], route: &[Upgrade], name: &[u8]) -> bool {
    let mut said = route.iter().chain(manager);
    let found = said.find(|known| known.name.as_bytes().eq_ignore_ascii_case(name));
    found.is_some_and(|known| known.enabled)
}

/// `server_header_transformation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerHeader {
    Overwrite,
    AppendIfAbsent,
    PassThrough,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestId {
    pub generate: bool,
    /// Keep what a client says that is not ours.
    pub preserve_external: bool,
    pub always_in_response: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpLimits {
    /// Bytes of a request's headers.
    pub header_bytes: usize,
    pub headers: usize,
    /// Requests that a client's connection carries; 0: any number.
    pub requests_per_connection: u32,
}

/// Zero: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpTimeouts {
    /// A connection without a request.
    pub idle: Duration,
    /// A request of which nothing moves.
    pub stream_idle: Duration,
    /// From a request's beginning to its end.
    pub request: Duration,
    /// From a request's first byte to the end of its headers.
    pub request_headers: Duration,
    /// A connection older than this is closed with its next response.
    pub connection: Duration,
    /// For such a connection to have a next response; then it is closed without one. Zero: no time.
    pub drain: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StripPort {
    #[default]
    Never,
    /// When it is the listener's.
    Matching,
    Any,
}

/// A request, as routing sees it.
pub trait RequestView {
    fn method(&self) -> &str;
    /// Path and query.
    fn path(&self) -> &str;
    /// `host`, with its port.
    fn authority(&self) -> &str;
    /// Several of a name are joined by commas. `name` is in lower case, and no pseudo header.
    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>>;

    /// Does any line of that name pass? `None`: there is none.
    fn any_line(&self, name: &str, test: &mut dyn FnMut(&[u8]) -> bool) -> Option<bool>;

    /// With Envoy's names for what stands in no header line.
    fn any_header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        match name {
            ":method" => Some(self.method().as_bytes().into()),
            ":path" => Some(self.path().as_bytes().into()),
            ":authority" | "host" => Some(self.authority().as_bytes().into()),
            ":scheme" => Some(b"http".into()),
            name => self.header(name),
        }
    }
}

/// The part of a path before its query.
pub fn without_query(path: &str) -> &str {
    path.split(['?', '#']).next().unwrap_or_default()
}
