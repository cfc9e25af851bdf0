//! The proxy's own replies, as `local_reply_config` wants them.

use std::borrow::Cow;

use bytes::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use shunt_core::http::RequestView;
use shunt_core::http::format::Known;

use super::Client;
use super::body::ResponseBody;
use super::books::Entry;
use super::exchange::PassedOn;
use super::received::{Head, protocol};
use super::reply::Told;
use super::sent::{add, lookup};

const TEXT: &str = "text/plain";

/// A request that was none.
struct Nobody;

impl RequestView for Nobody {
    fn method(&self) -> &'static str {
        ""
    }

    fn path(&self) -> &'static str {
        ""
    }

    fn authority(&self) -> &'static str {
        ""
    }

    fn header(&self, _: &str) -> Option<Cow<'_, [u8]>> {
        None
    }

    fn any_line(&self, _: &str, _: &mut dyn FnMut(&[u8]) -> bool) -> Option<bool> {
        None
    }

    fn any_header(&self, _: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
}

/// Notes why, and rewrites what is not an upstream's. In Envoy's order: mapper's body, headers, status, then the format.
pub(super) fn rewrite(
    response: &mut Response<ResponseBody>,
    head: Option<&Head>,
    route: &str,
    client: &Client<'_>,
    entry: &Entry,
) {
    let told = response.extensions_mut().remove::<Told>();
    if response.extensions().get::<PassedOn>().is_some() {
        return;
    }
    let ResponseBody::Local(body) = response.body_mut() else {
        return;
    };
    let body = body.take().unwrap_or_default();
    let (body, content_type) = match told {
        Some(told) => {
            entry.told(&told);
            reworded(response, body, &told, head, route, client, entry)
        }
        None => (body, None),
    };
    let headers = response.headers_mut();
    if body.is_empty() {
        headers.remove(header::CONTENT_TYPE);
    } else if let Some(content_type) = content_type {
        headers.insert(header::CONTENT_TYPE, content_type);
    } else if !headers.contains_key(header::CONTENT_TYPE) {
        let plain = HeaderValue::from_static("text/plain");
        headers.insert(header::CONTENT_TYPE, plain);
    }
    *response.body_mut() = ResponseBody::Local(Some(body).filter(|body| !body.is_empty()));
}

/// The body as the configuration has it, and its type where that is said.
fn reworded(
    response: &mut Response<ResponseBody>,
    mut body: Bytes,
    told: &Told,
    head: Option<&Head>,
    route: &str,
    client: &Client<'_>,
    entry: &Entry,
) -> (Bytes, Option<HeaderValue>) {
    let replies = &client.chain.manager.local_replies;
    if replies.is_empty() {
        return (body, None);
    }
    let known = Known {
        request: head.map_or(&Nobody as &dyn RequestView, |head| head),
        response: None,
        protocol: head.map_or("HTTP/1.1", |head| protocol(head.version)),
        response_code: Some(response.status().as_u16()),
        client: head.and_then(|head| head.client).unwrap_or(client.addr),
        direct_client: client.direct_addr,
        listener: client.listener,
        upstream: told.upstream,
        route,
        cluster: told.cluster.as_deref(),
        local_reply: None,
        flags: told.flags,
        details: told.details,
        so_far: entry.so_far(),
    };
    let type_before = response.headers().get(header::CONTENT_TYPE).cloned();
    let mapper = replies.mapper(&known);
    if let Some(mapper) = mapper {
        if let Some(own) = &mapper.body {
            body = own.clone().into();
        }
        for addition in &mapper.add {
            let value = {
                let response = lookup(response.headers());
                let known = Known {
                    response: Some(&response),
                    ..known
                };
                addition.value.render(&known).into_owned()
            };
            add(response.headers_mut(), addition, &value);
        }
        if let Some(status) = mapper.status {
            *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
        }
    }
    let format = mapper.and_then(|mapper| mapper.format.as_ref());
    let Some(format) = format.or(replies.format.as_ref()) else {
        return (body, None);
    };
    let headers = lookup(response.headers());
    let filled = format.body(&Known {
        response: Some(&headers),
        response_code: Some(response.status().as_u16()),
        local_reply: Some(&body),
        ..known
    });
    // A type that the mapper has put there stays.
    let is_own = response.headers().get(header::CONTENT_TYPE) != type_before.as_ref();
    let content_type = Some(format.content_type.as_str());
    let content_type = content_type.filter(|own| !is_own && *own != TEXT);
    let content_type = content_type.and_then(|own| HeaderValue::from_str(own).ok());
    (filled.into(), content_type)
}
