//! Why a request gets no response of an upstream's, and what its client is told: Envoy's words.

use std::error::Error;
use std::io;
use std::net::SocketAddr;

use hyper::Response;
use hyper::header::{HeaderName, HeaderValue};
use shunt_core::flow::CloseReason;

use super::body::ResponseBody;
use super::pool::NoLink;
use super::reply::{self, Told};
use super::talk::Expired;
use crate::connect::ConnectError;

const X_ENVOY_OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// What went wrong with an upstream before its response began, as Envoy words it.
pub(super) enum Failure {
    NoLink(NoLink),
    /// Taken from the pool or new, it ended with the request under way.
    Reset(hyper::Error),
    Expired(Expired),
    /// What the client sends as the request's body is none.
    Malformed,
    /// The response's head leaves open where its body ends.
    Unframed,
    /// The upstream has changed to a protocol that nobody asked for, or in the middle of the request.
    NotAsked,
    /// What a pattern made of the path is none.
    NoPath,
    /// The far end's listener has nobody for it.
    NoChain,
}

impl Failure {
    pub(super) fn of(error: hyper::Error) -> Self {
        // An error of the body's is told as the cause of what it did to the request.
        let of_body = error.source().and_then(|cause| cause.downcast_ref());
        let cause = of_body.and_then(|error: &hyper::Error| error.source()?.downcast_ref());
        let is_malformed = cause.is_some_and(|cause: &io::Error| {
            matches!(
                cause.kind(),
                io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData
            )
        });
        match is_malformed && error.is_user() {
            true => Self::Malformed,
            false => Self::Reset(error),
        }
    }
}

const REFUSED: &str = "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}";

/// `quiet`: nothing is told in `x-envoy-` headers.
pub(super) fn failed(failure: &Failure, quiet: bool) -> Response<ResponseBody> {
    const BEFORE: &str = "upstream connect error or disconnect/reset before headers. reset reason:";
    let reset = |status, reason: &str, flags, details| {
        reply::because(
            reply::local(status, format!("{BEFORE} {reason}")),
            flags,
            details,
        )
    };
    let unspoken = || {
        reset(
            502,
            "protocol error",
            "UPE",
            "upstream_reset_before_response_started{protocol_error}",
        )
    };
    match failure {
        Failure::Expired(expired) => late(*expired),
        Failure::Malformed => {
            reply::because(reply::local(400, "Bad Request"), "DPE", "http1.codec_error")
        }
        Failure::NoPath => {
            let reply = reply::local(500, "the rewritten path is no path");
            reply::because(reply, "", "no_path")
        }
        Failure::NoLink(NoLink::Connect(ConnectError::Refused(CloseReason::PolicyDenied, _))) => {
            let reply = reply::local(403, "RBAC: access denied");
            reply::because(reply, "UAEX", "policy_denied")
        }
        Failure::NoLink(NoLink::Connect(ConnectError::Timeout(_))) => reset(
            503,
            "connection timeout",
            "UF",
            "upstream_reset_before_response_started{connection_timeout}",
        ),
        Failure::NoLink(NoLink::Connect(error)) => reset(
            503,
            "remote connection failure",
            "UF",
            match error.is_refused() {
                true => REFUSED,
                false => "upstream_reset_before_response_started{remote_connection_failure}",
            },
        ),
        Failure::NoLink(NoLink::Overflow) => {
            let details = "upstream_reset_before_response_started{overflow}";
            let mut reply = reset(503, "overflow", "UO", details);
            if !quiet {
                let yes = HeaderValue::from_static("true");
                reply.headers_mut().insert(X_ENVOY_OVERLOADED, yes);
            }
            reply
        }
        Failure::Unframed | Failure::NotAsked => unspoken(),
        Failure::Reset(error) if error.is_parse() => unspoken(),
        Failure::Reset(_) | Failure::NoChain => reset(
            503,
            "connection termination",
            "UC",
            "upstream_reset_before_response_started{connection_termination}",
        ),
    }
}

/// Time was up.
pub(super) fn late(expired: Expired) -> Response<ResponseBody> {
    let (status, text, flags, details) = match expired {
        Expired::Response => (504, "upstream request timeout", "UT", "response_timeout"),
        Expired::Request => (408, "request timeout", "", "request_overall_timeout"),
        Expired::Stream { request_ended } => {
            let status = if request_ended { 504 } else { 408 };
            (status, "stream timeout", "SI", "stream_idle_timeout")
        }
    };
    reply::because(reply::local(status, text), flags, details)
}

/// The reply, and whose response was waited for.
pub(super) fn upstreams(
    mut reply: Response<ResponseBody>,
    cluster: &str,
    upstream: Option<SocketAddr>,
) -> Response<ResponseBody> {
    if let Some(told) = reply.extensions_mut().get_mut::<Told>() {
        (told.cluster, told.upstream) = (Some(cluster.to_owned()), upstream);
    }
    reply
}
