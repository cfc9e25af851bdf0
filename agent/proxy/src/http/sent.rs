//! A request on its way to an upstream: what the configuration adds, removes and rewrites; and the same for responses.

use std::net::SocketAddr;
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use shunt_core::http::format::Known;
use shunt_core::route::{
    AppendAction, Forward, HeaderAddition, HeaderMutations, Mutations, Rewrite, Route,
    RouteConfiguration, VirtualHost,
};

use super::Client;
use super::received::{Head, append, protocol};

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_ENVOY_ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const X_ENVOY_ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
const X_ENVOY_EXPECTED_TIMEOUT: HeaderName =
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// What a request matched.
#[derive(Clone, Copy)]
pub(super) struct Matched<'a> {
    pub(super) routes: &'a RouteConfiguration,
    pub(super) host: &'a VirtualHost,
    pub(super) route: &'a Route,
    /// The weighted cluster's own.
    pub(super) cluster: Option<(&'a str, &'a Mutations)>,
    /// Known once it has been chosen.
    pub(super) endpoint: Option<SocketAddr>,
}

impl Matched<'_> {
    /// In the order in which they are applied.
    fn levels(&self) -> impl Iterator<Item = &Mutations> {
        let mut levels = [
            &self.route.mutations,
            &self.host.mutations,
            &self.routes.mutations,
        ];
        if self.routes.most_specific_wins {
            levels.reverse();
        }
        let own = self.cluster.map(|(_, mutations)| mutations);
        own.into_iter().chain(levels)
    }

    fn known<'k>(&'k self, head: &'k Head, client: &Client<'_>) -> Known<'k> {
        Known {
            route: &self.route.name,
            cluster: self.cluster.map(|(name, _)| name),
            ..known(head, client)
        }
    }

    /// The request as the upstream is to see it. The hosts: that which the weighted cluster says, and the endpoint's.
    pub(super) fn prepare(
        &self,
        head: &mut Head,
        forward: &Forward,
        (said, hostname): (Option<&str>, &str),
        client: &Client<'_>,
    ) {
        let quiet = client.chain.manager.suppress_envoy_headers;
        if !quiet && !forward.timeout.is_zero() {
            let millis =
                HeaderValue::from(u64::try_from(forward.timeout.as_millis()).unwrap_or(u64::MAX));
            head.headers.insert(X_ENVOY_EXPECTED_TIMEOUT, millis);
        }
        for level in self.levels() {
            self.change_request(head, &level.request, client);
        }
        let rewritten = said
            .map(str::to_owned)
            .or_else(|| forward.host.as_ref()?.apply(head));
        let of_endpoint =
            (forward.host_of_endpoint && !hostname.is_empty()).then(|| hostname.to_owned());
        for host in rewritten.into_iter().chain(of_endpoint) {
            // A client's header may hold what is no host.
            if HeaderValue::from_str(&host).is_err() {
                continue;
            }
            if forward.append_x_forwarded_host {
                let said = head.authority.clone();
                append(&mut head.headers, &X_FORWARDED_HOST, &said, ",");
            }
            let said = std::mem::replace(&mut head.authority, host);
            if !quiet && let Ok(said) = HeaderValue::from_str(&said) {
                head.headers.insert(X_ENVOY_ORIGINAL_HOST, said);
            }
        }
        if let Some(rewrite) = &forward.rewrite {
            self.rewrite(head, rewrite, quiet);
        }
    }

    fn rewrite(&self, head: &mut Head, rewrite: &Rewrite, quiet: bool) {
        let path = rewrite.apply(&head.path, &self.route.matches);
        if !quiet && let Ok(before) = HeaderValue::from_str(&head.path) {
            head.headers.insert(X_ENVOY_ORIGINAL_PATH, before);
        }
        head.path = path;
    }

    fn change_request(&self, head: &mut Head, mutations: &HeaderMutations, client: &Client<'_>) {
        remove(&mut head.headers, mutations);
        for addition in &mutations.add {
            let value = addition
                .value
                .render(&self.known(head, client))
                .into_owned();
            add(&mut head.headers, addition, &value);
        }
    }

    pub(super) fn adds_to_response(&self) -> bool {
        self.levels().any(|level| !level.response.add.is_empty())
    }

    /// What the route and those above it say of a response.
    pub(super) fn change_response(
        &self,
        headers: &mut HeaderMap,
        status: u16,
        head: &Head,
        client: &Client<'_>,
    ) {
        for level in self.levels() {
            remove(headers, &level.response);
            for addition in &level.response.add {
                let value = {
                    let response = lookup(headers);
                    let known = Known {
                        response: Some(&response),
                        response_code: Some(status),
                        upstream: self.endpoint,
                        ..self.known(head, client)
                    };
                    addition.value.render(&known).into_owned()
                };
                add(headers, addition, &value);
            }
        }
    }
}

/// Of a request of which nothing but itself is known.
pub(super) fn known<'k>(head: &'k Head, client: &Client<'_>) -> Known<'k> {
    Known {
        request: head,
        response: None,
        protocol: protocol(head.version),
        response_code: None,
        client: head.client.unwrap_or(client.addr),
        direct_client: client.direct_addr,
        listener: client.listener,
        upstream: None,
        route: "",
        cluster: None,
        local_reply: None,
        flags: "",
        details: "",
        so_far: Duration::ZERO,
    }
}

/// A response's headers, as formats look them up.
pub(super) fn lookup(headers: &HeaderMap) -> impl Fn(&str) -> Option<Vec<u8>> {
    |name| headers.get(name).map(|value| value.as_bytes().to_vec())
}

fn remove(headers: &mut HeaderMap, mutations: &HeaderMutations) {
    for name in &mutations.remove {
        headers.remove(name.as_str());
    }
}

/// `value`: what the addition's format has become.
pub(super) fn add(headers: &mut HeaderMap, addition: &HeaderAddition, value: &[u8]) {
    // Both were checked; what a client has sent may still be no value.
    let name = HeaderName::try_from(addition.name.as_str());
    let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) else {
        return;
    };
    if value.is_empty() && !addition.keep_empty {
        return;
    }
    let is_there = headers.contains_key(&name);
    match addition.action {
        AppendAction::AppendIfExistsOrAdd => {
            headers.append(name, value);
        }
        AppendAction::AddIfAbsent if is_there => {}
        AppendAction::OverwriteIfExists if !is_there => {}
        AppendAction::AddIfAbsent
        | AppendAction::OverwriteIfExists
        | AppendAction::OverwriteIfExistsOrAdd => {
            headers.insert(name, value);
        }
    }
}
