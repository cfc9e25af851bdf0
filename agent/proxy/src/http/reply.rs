//! Responses: those the proxy gives itself, worded as Envoy words them, and what every response gets on its way out.

use std::net::SocketAddr;

use bytes::Bytes;
use hyper::ext::ReasonPhrase;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};
use shunt_core::http::{HttpConnectionManager, ServerHeader};

use super::body::ResponseBody;
use super::received::{
    Head, Unfit, X_REQUEST_ID, append, connection_says, drop_hop_by_hop, is_chunked_at_most,
};
use super::wire::Signature;

/// Why a reply is the proxy's own; Envoy's words. Without one a response is an upstream's, or a filter's that nobody
/// rewrites.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) flags: &'static str,
    pub(super) details: &'static str,
    /// Who was to answer.
    pub(super) cluster: Option<String>,
    pub(super) upstream: Option<SocketAddr>,
}

/// The same reply, and why.
pub(super) fn because(
    mut response: Response<ResponseBody>,
    flags: &'static str,
    details: &'static str,
) -> Response<ResponseBody> {
    response.extensions_mut().insert(Told {
        flags,
        details,
        ..Told::default()
    });
    response
}

/// A local reply. Without a text it has no body. Its type is said when nobody can change it any more.
pub(super) fn local(status: u16, text: impl Into<Bytes>) -> Response<ResponseBody> {
    let text = text.into();
    let mut response = Response::new(ResponseBody::Local(None));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    if !text.is_empty() {
        *response.body_mut() = ResponseBody::Local(Some(text));
    }
    response
}

pub(super) fn unfit(why: Unfit) -> Response<ResponseBody> {
    match why {
        Unfit::TooOld => because(local(426, "Upgrade Required"), "DPE", "low_version"),
        Unfit::NoHost => because(local(400, ""), "DPE", "missing_host_header"),
        Unfit::NoPath => because(local(404, ""), "", "missing_path_rejected"),
        Unfit::ManyHosts => because(local(400, ""), "DPE", "http1.duplicate_host"),
        Unfit::NoTarget => because(local(400, "Bad Request"), "DPE", "http1.codec_error"),
        Unfit::UnknownEncoding => because(
            local(501, "Not Implemented"),
            "DPE",
            "http1.invalid_transfer_encoding",
        ),
    }
}

/// Location of a redirect.
pub(super) fn redirect(status: u16, location: &str) -> Response<ResponseBody> {
    because(located(status, "", location), "", "direct_response")
}

/// A local reply that says where something is.
pub(super) fn located(
    status: u16,
    text: impl Into<Bytes>,
    location: &str,
) -> Response<ResponseBody> {
    let mut response = local(status, text);
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// What [`finish`] adds to any response.
pub(super) fn signature(manager: &HttpConnectionManager) -> Signature {
    let mut lines = String::new();
    if !manager.via.is_empty() {
        lines += &format!("via: {}\r\n", manager.via);
    }
    if manager.server_header != ServerHeader::PassThrough {
        lines += &format!("server: {}\r\n", manager.server_name);
    }
    Signature {
        lines,
        proper_case: manager.proper_case,
    }
}

/// Is it the same to everybody where the response's body ends?
pub(super) fn is_framed(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let is_number = |length: &HeaderValue| length.as_bytes().iter().all(u8::is_ascii_digit);
    let has_chunks = headers.contains_key(header::TRANSFER_ENCODING);
    let is_clear = match (lengths.next(), lengths.next()) {
        (None, _) => true,
        (Some(only), None) => is_number(only) && !has_chunks,
        _ => false,
    };
    is_clear && is_chunked_at_most(headers)
}

/// Does the head of a response, by which a connection becomes a tunnel, leave no doubt where the tunnel begins, and which
/// protocol it is?
pub(super) fn is_handshake(status: StatusCode, headers: &HeaderMap) -> bool {
    if status != StatusCode::SWITCHING_PROTOCOLS {
        return true; // Of CONNECT, where lengths say nothing; RFC 9110, section 9.3.6.
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    headers.contains_key(header::UPGRADE)
        && connection_says(headers, "upgrade")
        && !headers.contains_key(header::TRANSFER_ENCODING)
        && lengths.all(|length| length.as_bytes() == b"0")
}

/// What every response gets, wherever it comes from.
pub(super) fn finish(
    response: &mut Response<ResponseBody>,
    manager: &HttpConnectionManager,
    request: Option<&Head>,
) {
    // Reasons are the proxy's own, whatever the upstream says.
    let is_known = response.status().canonical_reason().is_some()
        && response.status() != StatusCode::IM_A_TEAPOT;
    match is_known {
        true => response.extensions_mut().remove::<ReasonPhrase>(),
        false => response
            .extensions_mut()
            .insert(ReasonPhrase::from_static(b"Unknown")),
    };
    let is_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    let becomes = is_upgrade.then(|| {
        let named = [header::CONNECTION, header::UPGRADE];
        named.map(|name| headers.get(&name).cloned().map(|value| (name, value)))
    });
    drop_hop_by_hop(headers);
    headers.extend(becomes.into_iter().flatten().flatten());
    let own = HeaderValue::from_str(&manager.server_name);
    match (manager.server_header, own) {
        (ServerHeader::Overwrite, Ok(own)) => {
            headers.insert(header::SERVER, own);
        }
        (ServerHeader::AppendIfAbsent, Ok(own)) => {
            headers.entry(header::SERVER).or_insert(own);
        }
        _ => {}
    }
    if manager.request_id.always_in_response
        && let Some(id) = request.and_then(|request| request.headers.get(X_REQUEST_ID))
    {
        headers.insert(X_REQUEST_ID, id.clone());
    }
    if !manager.via.is_empty() {
        append(headers, &header::VIA, &manager.via, ", ");
    }
}
