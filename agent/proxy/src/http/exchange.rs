//! One request and its response.

mod onward;

use std::rc::Rc;

use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, Version};
use shunt_core::bootstrap::HttpChain;
use shunt_core::http::may_upgrade;
use shunt_core::route::{Action, ClusterChoice, Forward, Target};
use shunt_core::sockets::{OriginalDstSource, SocketSupply};

use super::body::{RequestBody, ResponseBody};
use super::failure::{Failure, failed, upstreams};
use super::filters::{Asked, Filters, Found};
use super::pool::NoLink;
use super::received::{Head, Received, Unfit, X_FORWARDED_PROTO};
use super::reply;
use super::sent::Matched;
use super::talk::{Expired, Passes, Progress};
use super::{Client, local_reply};
use crate::balance::Chosen;
use crate::worker::Local;

const X_ENVOY_SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

pub(super) struct Exchange<'a, S: SocketSupply, O: OriginalDstSource> {
    local: &'a Local<S, O>,
    client: &'a Client<'a>,
    chain: &'a HttpChain,
    /// One answer for every question of chance, as often as it is asked.
    random: u64,
    is_last: bool,
    progress: Rc<Progress>,
}

/// Of a response that the far end's connection manager has given: none of this one's own.
#[derive(Clone, Copy)]
pub(super) struct PassedOn;

impl<'a, S: SocketSupply, O: OriginalDstSource> Exchange<'a, S, O> {
    /// `number`: the connection's first request is 1.
    pub(super) fn new(
        local: &'a Local<S, O>,
        client: &'a Client<'a>,
        number: u32,
        progress: Rc<Progress>,
    ) -> Self {
        let most = client.chain.manager.limits.requests_per_connection;
        Self {
            local,
            client,
            chain: client.chain,
            random: fastrand::u64(..),
            is_last: most > 0 && number >= most || progress.talk().is_old() || client.is_last,
            progress,
        }
    }

    /// # Errors
    /// Never: the response says what went wrong.
    pub(super) async fn run(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, std::convert::Infallible> {
        let (parts, body) = request.into_parts();
        let manager = &self.chain.manager;
        let is_connect = parts.method == Method::CONNECT;
        let entry = self.progress.entry();
        if parts.method == Method::HEAD {
            entry.head_only();
        }
        let mut head = match Head::new(parts, manager) {
            Ok(head) => head,
            Err(why) => {
                let mut response = reply::unfit(why);
                local_reply::rewrite(&mut response, None, "", self.client, entry);
                entry.answered(response.status().as_u16());
                reply::finish(&mut response, manager, None);
                if why != Unfit::NoPath || is_connect {
                    close(&mut response);
                }
                return Ok(response);
            }
        };
        let keeps_alive = head.keeps_alive();
        let received = head.receive(manager, self.client.addr, self.client.listener);
        if received != Received::Plain {
            self.progress.is_endless(!body.is_end_stream());
        } else if body.is_end_stream() {
            self.progress.end_request();
        }
        self.progress.pass(Passes {
            // No 1xx is sent to an HTTP/1.0 client; RFC 9110, section 15.2.
            informational: manager.passes_informational && head.version > Version::HTTP_10,
            trailers: manager.trailers,
        });
        entry.asked(&head);
        let body = RequestBody::new(body, Rc::clone(&self.progress));
        let mut response = self.serve(&mut head, received, body).await;
        entry.answered(response.status().as_u16());
        reply::finish(&mut response, manager, Some(&head));
        if self.progress.talk().is_tunnel() {
            return Ok(response);
        }
        let is_plain = received == Received::Plain;
        let reads_on = self.progress.has_request_ended() && !entry.closes();
        let is_last = self.is_last || self.client.is_closing();
        if is_last || !is_plain || !keeps_alive || !reads_on {
            // Behind a request to be a tunnel there may be what only looks like the next one.
            close(&mut response);
        }
        Ok(response)
    }

    /// What becomes of a request that was received: by the filters, and then by its route.
    async fn serve(
        &self,
        head: &mut Head,
        received: Received,
        mut body: RequestBody,
    ) -> Response<ResponseBody> {
        let entry = self.progress.entry();
        let found = Found::new(&self.chain.routes, head, self.random);
        let mut filters = Filters::new(&self.chain.manager.filters, &found, self.random);
        let asked = Asked {
            head,
            body: &mut body,
            client: self.client,
            progress: &self.progress,
        };
        let is_refused = received != Received::Plain && !self.lets_upgrade(asked.head, &found);
        let own = match is_refused {
            true => Some(reply::because(reply::local(403, ""), "", "upgrade_failed")),
            false => filters.ask(asked).await,
        };
        let mut response = match own {
            Some(mut own) => {
                // In Envoy such an answer is the connection manager's.
                if let Some(matched) = found.matched(&self.chain.routes)
                    && (entry.closes() || is_refused && found.forward().is_some())
                {
                    matched.change_response(own.headers_mut(), 0, head, self.client);
                }
                own
            }
            None => self.route(head, &found, received, body).await,
        };
        let route = found.route.map_or("", |route| &route.name);
        entry.routed(route);
        local_reply::rewrite(&mut response, Some(head), route, self.client, entry);
        filters.answer(&mut response, head, self.client);
        response
    }

    /// Where there is no route, it is not the upgrade that is wrong.
    fn lets_upgrade(&self, head: &Head, found: &Found<'_>) -> bool {
        let route = found.forward().map_or(&[][..], |route| &route.upgrades);
        let name = match &head.method {
            &Method::CONNECT => Some(&b"CONNECT"[..]),
            _ => head.headers.get(header::UPGRADE).map(HeaderValue::as_bytes),
        };
        let may = may_upgrade(
            &self.chain.manager.upgrades,
            route,
            name.unwrap_or_default(),
        );
        match (may, found.route) {
            (true, _) => self.progress.entry().upgrades(),
            (false, Some(_)) => self.progress.entry().upgrade_refused(),
            (false, None) => {}
        }
        may || found.route.is_none()
    }

    async fn route(
        &self,
        head: &mut Head,
        found: &Found<'_>,
        received: Received,
        body: RequestBody,
    ) -> Response<ResponseBody> {
        let nowhere = || reply::because(reply::local(404, ""), "NR", "route_not_found");
        let Some(host) = found.host else {
            return nowhere();
        };
        let is_https = head
            .headers
            .get(X_FORWARDED_PROTO)
            .is_some_and(|proto| proto == "https");
        let scheme = if is_https { "https" } else { "http" };
        if host.require_tls && !is_https {
            let location = format!("https://{}{}", head.authority, head.path);
            return reply::redirect(301, &location);
        }
        let Some(mut matched) = found.matched(&self.chain.routes) else {
            return nowhere();
        };
        let route = matched.route;
        let mut response = match &route.action {
            Action::Respond(direct) => {
                let text = direct.body.clone();
                // As in Envoy; RFC 9110, section 10.2.2.
                let reply = match direct.status {
                    201 | 300..400 => {
                        let location = format!("{scheme}://{}{}", head.authority, head.path);
                        reply::located(direct.status, text, &location)
                    }
                    status => reply::local(status, text),
                };
                reply::because(reply, "", "direct_response")
            }
            // It has no place that another could take.
            Action::Redirect(redirect) if received == Received::Connect => {
                reply::because(reply::local(redirect.status, ""), "", "direct_response")
            }
            Action::Redirect(redirect) => {
                let location = redirect.location(head, &route.matches, scheme);
                reply::redirect(redirect.status, &location)
            }
            Action::Forward(forward) => {
                match self.forward(head, forward, &mut matched, body).await {
                    Ok(response) => return response,
                    Err(response) => response,
                }
            }
        };
        // Envoy does this to its own replies before it notes their status.
        matched.change_response(response.headers_mut(), 0, head, self.client);
        response
    }

    /// Does anything but the route's changes ask what a request said, when its response is there?
    fn asks_later(&self) -> bool {
        let manager = &self.chain.manager;
        !manager.filters.is_empty()
            || !manager.local_replies.is_empty()
            || manager.request_id.always_in_response
    }

    /// An upstream's response, or why there is none.
    async fn forward<'m>(
        &self,
        head: &mut Head,
        forward: &'m Forward,
        matched: &mut Matched<'m>,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, Response<ResponseBody>> {
        let named;
        let (name, choice): (&str, Option<&'m ClusterChoice>) = match &forward.target {
            Target::Clusters(clusters) => {
                let choice = clusters.choose(self.random);
                (&choice.name, Some(choice))
            }
            Target::Header(header) => {
                let value = shunt_core::http::RequestView::any_header(head, header);
                named = String::from_utf8_lossy(&value.unwrap_or_default()).into_owned();
                (&named, None)
            }
        };
        let entry = self.progress.entry();
        let Some(cluster) = self.client.tables.cluster(name) else {
            let reply = reply::local(forward.cluster_not_found, "");
            return Err(reply::because(reply, "NC", "cluster_not_found"));
        };
        matched.cluster = choice.map(|choice| (choice.name.as_str(), &choice.mutations));
        let wanted = choice.map_or(&forward.metadata, |choice| &choice.metadata);
        let Some(Chosen {
            addr: endpoint,
            hostname,
        }) = self.endpoint(cluster, wanted, head)
        else {
            let counts = cluster.counts.mine();
            counts.cx_none_healthy.increase();
            counts.rq.answered(503);
            entry.sent_to(&cluster.name, None);
            let reply = reply::local(503, "no healthy upstream");
            return Err(upstreams(
                reply::because(reply, "UH", "no_healthy_upstream"),
                &cluster.name,
                None,
            ));
        };
        matched.endpoint = Some(endpoint);
        entry.sent_to(&cluster.name, Some(endpoint));
        let host = choice.and_then(|choice| choice.host.as_deref());
        // As it was asked, for a response's changes that name something of it.
        let asked = matched.adds_to_response().then(|| head.clone());
        matched.prepare(head, forward, (host, hostname), self.client);
        head.stays = self.asks_later() || asked.is_some();
        self.progress.limit_response(forward.timeout);
        self.progress.limit_idle(forward.idle_timeout);
        let to = (cluster, endpoint);
        let terminates = forward.terminates_connect && head.method == Method::CONNECT;
        let gone = match terminates {
            true => Box::pin(self.dig(to)).await,
            false => self.go(head, body, to).await,
        };
        match gone {
            Ok(response) => {
                let (mut parts, body) = response.into_parts();
                // Of a request that has not ended yet nobody can say how long it took.
                let now = self.progress.talk().now();
                let ended = self.progress.request_ended();
                let time = ended.map(|ended| now.saturating_duration_since(ended));
                let counts = cluster.counts.mine();
                counts.answered(parts.status.as_u16(), time.unwrap_or_default());
                entry.upstream_time(time);
                if !self.chain.manager.suppress_envoy_headers
                    && let Some(time) = time
                {
                    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                    parts
                        .headers
                        .insert(X_ENVOY_SERVICE_TIME, HeaderValue::from(millis));
                }
                let status = parts.status.as_u16();
                let asked = asked.as_ref().unwrap_or(head);
                matched.change_response(&mut parts.headers, status, asked, self.client);
                parts.version = Version::HTTP_11;
                Ok(Response::from_parts(parts, body))
            }
            Err(failure) => {
                let reply = failed(&failure, self.chain.manager.suppress_envoy_headers);
                let counts = cluster.counts.mine();
                counts.rq.answered(reply.status().as_u16());
                match failure {
                    Failure::Expired(expired) => {
                        if expired == Expired::Response {
                            counts.rq_timeout.increase();
                        } else {
                            entry.timed_out();
                        }
                    }
                    Failure::NoLink(NoLink::Overflow) => counts.rq_pending_overflow.increase(),
                    Failure::Reset(_) => counts.rq_rx_reset.increase(),
                    _ => {}
                }
                Err(upstreams(reply, &cluster.name, Some(endpoint)))
            }
        }
    }
}

/// After this response the connection is closed, and the client is told so.
fn close(response: &mut Response<ResponseBody>) {
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
}
