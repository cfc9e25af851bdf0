//! Which other origins may call, and what browsers are told about it.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Response};
use shunt_core::http::filters::{CorsPolicy, RouteFilter};

use super::Asked;
use crate::http::Client;
use crate::http::body::ResponseBody;
use crate::http::received::Head;
use crate::http::reply;

const PRIVATE_ASKED: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
const PRIVATE_ALLOWED: HeaderName =
    HeaderName::from_static("access-control-allow-private-network");
const TRUE: HeaderValue = HeaderValue::from_static("true");

pub(super) struct At<'a> {
    /// The most specific first; not empty.
    policies: Vec<&'a CorsPolicy>,
    /// That of the client, once it is known to be allowed.
    origin: Option<HeaderValue>,
}

impl<'a> At<'a> {
    /// `None`: nothing is said, or it is not in force.
    pub(super) fn new(own: impl Iterator<Item = &'a RouteFilter>, random: u64) -> Option<Self> {
        let policies: Vec<_> = own
            .filter_map(|own| match own {
                RouteFilter::Cors(policy) => Some(policy),
                _ => None,
            })
            .collect();
        let share = policies.first()?.enabled;
        let is_enabled = share.is_none_or(|share| random % 1_000_000 < u64::from(share));
        is_enabled.then_some(Self {
            policies,
            origin: None,
        })
    }

    /// What the most specific policy says that says anything.
    fn said<T>(&self, what: impl Fn(&'a CorsPolicy) -> Option<T>) -> Option<T> {
        self.policies.iter().find_map(|policy| what(policy))
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        let mut said = self
            .policies
            .iter()
            .filter(|policy| !policy.origins.is_empty());
        said.next()
            .is_some_and(|policy| policy.allows(origin.as_bytes()))
    }

    pub(super) async fn ask(&mut self, asked: &mut Asked<'_>) -> Option<Response<ResponseBody>> {
        let headers = &asked.head.headers;
        let origin = headers.get(header::ORIGIN)?;
        if origin.is_empty() {
            return None;
        }
        let is_preflight = asked.head.method == Method::OPTIONS
            && headers
                .get(header::ACCESS_CONTROL_REQUEST_METHOD)
                .is_some_and(|method| !method.is_empty());
        if self.allows(origin) {
            self.origin = Some(origin.clone());
        }
        let stops = self.origin.is_some()
            || self.said(|policy| policy.forward_not_matching) == Some(false);
        if !is_preflight || !stops {
            return None;
        }
        let mut response = reply::local(200, "");
        let reply = response.headers_mut();
        let is_private = headers
            .get(PRIVATE_ASKED)
            .is_some_and(|asked| asked == "true");
        if self.origin.is_some() && is_private && self.said(|policy| policy.private_network) == Some(true) {
            reply.insert(PRIVATE_ALLOWED, TRUE);
        }
        let texts: [(HeaderName, Option<&String>); 3] = [
            (
                header::ACCESS_CONTROL_ALLOW_METHODS,
                self.said(|policy| policy.methods.as_ref()),
            ),
            (
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                self.said(|policy| policy.headers.as_ref()),
            ),
            (
                header::ACCESS_CONTROL_MAX_AGE,
                self.said(|policy| policy.max_age.as_ref()),
            ),
        ];
        for (name, text) in texts {
            set(reply, name, text);
        }
        asked.progress.entry().told(&reply::Told {
            details: "cors_response",
            ..reply::Told::default()
        });
        Some(response)
    }

    pub(super) fn answer(
        &mut self,
        response: &mut Response<ResponseBody>,
        _: &Head,
        _: &Client<'_>,
    ) {
        let Some(origin) = &self.origin else { return };
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.said(|policy| policy.credentials) == Some(true) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        let exposed = self.said(|policy| policy.exposed.as_ref());
        set(headers, header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, text: Option<&String>) {
    if let Some(Ok(value)) = text.map(|text| HeaderValue::from_str(text)) {
        headers.insert(name, value);
    }
}
