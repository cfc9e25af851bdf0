//! Responses: those the proxy gives itself, worded as Envoy words them, and what every response gets on its way out.

use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use shunt_core::http::{HttpConnectionManager, ServerHeader};

use super::body::ResponseBody;
use super::received::{Head, Unfit, X_REQUEST_ID, append};

/// A local reply. Without a text it has no body and no type.
pub(super) fn local(status: u16, text: impl Into<Bytes>) -> Response<ResponseBody> {
    let text = text.into();
    let mut response = Response::new(ResponseBody::Local(None));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    if !text.is_empty() {
        let plain = HeaderValue::from_static("text/plain");
        response.headers_mut().insert(header::CONTENT_TYPE, plain);
        *response.body_mut() = ResponseBody::Local(Some(text));
    }
    response
}

pub(super) fn unfit(why: Unfit) -> Response<ResponseBody> {
    match why {
        Unfit::TooOld => local(426, ""),
        Unfit::NoHost | Unfit::Fragment => local(400, ""),
        Unfit::NoPath => local(404, ""),
        Unfit::Upgrade => local(403, ""),
    }
}

/// Location of a redirect.
pub(super) fn redirect(status: u16, location: &str) -> Response<ResponseBody> {
    let mut response = local(status, "");
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// What every response gets, wherever it comes from.
pub(super) fn finish(
    headers: &mut HeaderMap,
    manager: &HttpConnectionManager,
    request: Option<&Head>,
) {
    for name in [header::CONNECTION, header::UPGRADE, header::TRANSFER_ENCODING] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection"] {
        headers.remove(HeaderName::from_static(name));
    }
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
