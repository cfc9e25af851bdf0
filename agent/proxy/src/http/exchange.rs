//! One request and its response.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, Uri, Version};
use shunt_core::bootstrap::HttpChain;
use shunt_core::cluster::Cluster;
use shunt_core::route::{Action, ClusterChoice, Forward, Target};
use shunt_core::sockets::{OriginalDstSource, SocketSupply};
use tokio::time::{Instant, sleep_until};

use super::Client;
use super::body::{Progress, RequestBody, ResponseBody, Upstream};
use super::pool::Link;
use super::received::{Head, Received, Unfit, X_FORWARDED_PROTO};
use super::reply;
use super::sent::Matched;
use crate::connect::ConnectError;
use crate::worker::Local;

const X_ENVOY_SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");

pub(super) struct Exchange<'a, S: SocketSupply, O: OriginalDstSource> {
    local: &'a Local<S, O>,
    client: &'a Client<'a>,
    chain: &'a HttpChain,
    /// One answer for every question of chance, as often as it is asked.
    random: u64,
    is_last: bool,
}

/// What went wrong with an upstream before its response began, as Envoy words it.
enum Failure {
    Connect(ConnectError),
    /// Taken from the pool or new, it ended with the request under way.
    Reset(hyper::Error),
    Timeout(&'static str, u16),
    /// What a pattern made of the path is none.
    NoPath,
}

impl<'a, S: SocketSupply, O: OriginalDstSource> Exchange<'a, S, O> {
    /// `number`: the connection's first request is 1.
    pub(super) fn new(local: &'a Local<S, O>, client: &'a Client<'a>, number: u32) -> Self {
        let most = client.chain.manager.limits.requests_per_connection;
        // Who stays connected for long must not be served by an old configuration for as long.
        let now = local.context.snapshot.load();
        let is_replaced = !Arc::ptr_eq(&now.proxy, &client.snapshot.proxy);
        Self {
            local,
            client,
            chain: client.chain,
            random: fastrand::u64(..),
            is_last: most > 0 && number >= most || is_replaced || *client.closing.borrow(),
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
        let mut head = match Head::new(parts, manager) {
            Ok(head) => head,
            Err(why) => {
                let mut response = reply::unfit(why);
                reply::finish(&mut response, manager, None);
                if why != Unfit::NoPath || is_connect {
                    close(&mut response);
                }
                return Ok(response);
            }
        };
        let keeps_alive = head.keeps_alive();
        let progress = Progress::new(body.is_end_stream());
        let received = head.receive(manager, self.client.addr, self.client.listener);
        let mut response = self.route(&mut head, received, body, &progress).await;
        reply::finish(&mut response, manager, Some(&head));
        let is_upgrade = received == Received::Upgrade;
        if self.is_last || is_upgrade || !keeps_alive || !progress.has_request_ended() {
            close(&mut response);
        }
        Ok(response)
    }

    async fn route(
        &self,
        head: &mut Head,
        received: Received,
        body: Incoming,
        progress: &Rc<Progress>,
    ) -> Response<ResponseBody> {
        let Some(found) = self.chain.routes.virtual_host(&head.authority) else {
            return reply::local(404, "");
        };
        let is_https = head
            .headers
            .get(X_FORWARDED_PROTO)
            .is_some_and(|proto| proto == "https");
        let scheme = if is_https { "https" } else { "http" };
        if found.host.require_tls && !is_https {
            let location = format!("https://{}{}", head.authority, head.path);
            return reply::redirect(301, &location);
        }
        let Some(route) = found.route(head, self.random) else {
            return reply::local(404, "");
        };
        let mut matched = Matched {
            routes: self.chain.routes.configuration(),
            host: found.host,
            route,
            cluster: None,
            endpoint: None,
        };
        let mut response = match &route.action {
            _ if received == Received::Upgrade => reply::local(403, ""),
            Action::Respond(direct) => reply::local(direct.status, direct.body.clone()),
            Action::Redirect(redirect) => {
                let location = redirect.location(head, &route.matches, scheme);
                reply::redirect(redirect.status, &location)
            }
            Action::Forward(forward) => {
                match self
                    .forward(head, forward, &mut matched, body, progress)
                    .await
                {
                    Ok(response) => return response,
                    Err(response) => response,
                }
            }
        };
        // Envoy does this to its own replies before it notes their status.
        matched.change_response(response.headers_mut(), 0, head, self.client);
        response
    }

    /// An upstream's response, or why there is none.
    async fn forward<'m>(
        &self,
        head: &mut Head,
        forward: &'m Forward,
        matched: &mut Matched<'m>,
        body: Incoming,
        progress: &Rc<Progress>,
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
        let Some(cluster) = self.client.snapshot.proxy.cluster(name).map(Arc::clone) else {
            return Err(reply::local(forward.cluster_not_found, ""));
        };
        matched.cluster = choice.map(|choice| (choice.name.as_str(), &choice.mutations));
        let Some(endpoint) = self.local.balance.choose(&cluster) else {
            return Err(reply::local(503, "no healthy upstream"));
        };
        matched.endpoint = Some(endpoint);
        let host = choice.and_then(|choice| choice.host.as_deref());
        let asked = head.clone();
        matched.prepare(head, forward, host, self.client);
        let begun = Instant::now();
        match self
            .send(head, body, forward, (&cluster, endpoint), progress)
            .await
        {
            Ok((response, link)) => {
                let (mut parts, inner) = response.into_parts();
                if !self.chain.manager.suppress_envoy_headers {
                    let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                    parts
                        .headers
                        .insert(X_ENVOY_SERVICE_TIME, HeaderValue::from(millis));
                }
                let status = parts.status.as_u16();
                matched.change_response(&mut parts.headers, status, &asked, self.client);
                let deadline = (!forward.timeout.is_zero()).then(|| begun + forward.timeout);
                let body = Upstream {
                    inner,
                    link: Some(link),
                    pool: self.local.upstreams.clone(),
                    progress: Rc::clone(progress),
                    deadline,
                    stream_idle: self.chain.manager.timeouts.stream_idle,
                    timer: None,
                };
                parts.version = Version::HTTP_11;
                Ok(Response::from_parts(parts, ResponseBody::Upstream(body)))
            }
            Err(failure) => Err(failed(&failure)),
        }
    }

    async fn send(
        &self,
        head: &Head,
        body: Incoming,
        forward: &Forward,
        (cluster, endpoint): (&Cluster, SocketAddr),
        progress: &Rc<Progress>,
    ) -> Result<(Response<Incoming>, Link), Failure> {
        let body = RequestBody::new(body, Rc::clone(progress));
        let mut request = request(head, body).ok_or(Failure::NoPath)?;
        loop {
            let supply = &self.local.context.supply;
            let taken = self.local.upstreams.take(supply, cluster, endpoint);
            let taken = self.in_time(taken, forward.timeout, progress).await?;
            let mut link = taken.map_err(Failure::Connect)?;
            let is_used = link.is_used();
            let sent = link.sender().try_send_request(request);
            match self.in_time(sent, forward.timeout, progress).await? {
                Ok(response) => return Ok((response, link)),
                Err(mut error) => match error.take_message() {
                    // It never left: the connection was closed while it waited in the pool.
                    Some(unsent) if is_used => request = unsent,
                    _ => return Err(Failure::Reset(error.into_error())),
                },
            }
        }
    }

    /// What `work` gives, unless one of the request's times is up.
    async fn in_time<T>(
        &self,
        work: impl Future<Output = T>,
        route: Duration,
        progress: &Progress,
    ) -> Result<T, Failure> {
        let timeouts = &self.chain.manager.timeouts;
        let begun = Instant::now();
        let after = |limit: Duration, from: Instant| (!limit.is_zero()).then(|| from + limit);
        let mut ended_at = progress.has_request_ended().then_some(begun);
        tokio::pin!(work);
        loop {
            let idle = after(timeouts.stream_idle, progress.moved().max(begun));
            let (own, word, status) = match ended_at {
                Some(at) => (after(route, at), "upstream request timeout", 504),
                None => (after(timeouts.request, begun), "request timeout", 408),
            };
            let due = own.into_iter().chain(idle).min();
            tokio::select! {
                done = &mut work => return Ok(done),
                () = progress.until_request_ended(), if ended_at.is_none() => {
                    ended_at = Some(Instant::now());
                }
                () = until(due) => {
                    let now = Instant::now();
                    if own.is_some_and(|at| at <= now) {
                        return Err(Failure::Timeout(word, status));
                    }
                    if after(timeouts.stream_idle, progress.moved().max(begun)).is_some_and(|at| at <= now) {
                        let status = if ended_at.is_some() { 504 } else { 408 };
                        return Err(Failure::Timeout("stream timeout", status));
                    }
                }
            }
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// After this response the connection is closed, and the client is told so.
fn close(response: &mut Response<ResponseBody>) {
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
}

/// `None`: its path is none.
fn request(head: &Head, body: RequestBody) -> Option<Request<RequestBody>> {
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    let path = Some(head.path.as_str()).filter(|path| path.starts_with('/'));
    *request.uri_mut() = Uri::try_from(path?).ok()?;
    let has_length = head.headers.contains_key(header::CONTENT_LENGTH);
    if !has_length && request.body().is_end_stream() && expects_body(&head.method) {
        let nothing = HeaderValue::from_static("0");
        request
            .headers_mut()
            .insert(header::CONTENT_LENGTH, nothing);
    }
    // Of some methods hyper would take it that there is none.
    if !has_length && !request.body().is_end_stream() {
        let chunked = HeaderValue::from_static("chunked");
        request
            .headers_mut()
            .insert(header::TRANSFER_ENCODING, chunked);
    }
    if let Ok(host) = HeaderValue::from_str(&head.authority) {
        request.headers_mut().insert(header::HOST, host);
    }
    for (name, value) in &head.headers {
        request.headers_mut().append(name, value.clone());
    }
    Some(request)
}

/// Without a body, a request of any other method says so.
fn expects_body(method: &Method) -> bool {
    ![Method::GET, Method::HEAD, Method::DELETE, Method::TRACE].contains(method)
}

fn failed(failure: &Failure) -> Response<ResponseBody> {
    const BEFORE: &str = "upstream connect error or disconnect/reset before headers. reset reason:";
    match failure {
        Failure::Timeout(word, status) => reply::local(*status, *word),
        Failure::NoPath => reply::local(500, "the rewritten path is no path"),
        Failure::Connect(ConnectError::Timeout(_)) => {
            reply::local(503, format!("{BEFORE} connection timeout"))
        }
        Failure::Connect(_) => reply::local(503, format!("{BEFORE} remote connection failure")),
        Failure::Reset(error) if error.is_parse() => {
            reply::local(502, format!("{BEFORE} protocol error"))
        }
        Failure::Reset(_) => reply::local(503, format!("{BEFORE} connection termination")),
    }
}
