//! One request and its response.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, Uri, Version};
use shunt_core::bootstrap::{Chain, HttpChain};
use shunt_core::cluster::Cluster;
use shunt_core::flow::CloseReason;
use shunt_core::route::{Action, ClusterChoice, Forward, Target};
use shunt_core::sockets::{OriginalDstSource, SocketSupply};

use super::Client;
use super::body::{RequestBody, ResponseBody, Upstream};
use super::received::{Head, Received, Unfit, X_FORWARDED_PROTO};
use super::reply;
use super::sent::Matched;
use super::talk::{Expired, Progress};
use crate::connect::ConnectError;
use crate::gateway::OnePass;
use crate::origin::{Dial, Origin};
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

/// What went wrong with an upstream before its response began, as Envoy words it.
enum Failure {
    Connect(ConnectError),
    /// Taken from the pool or new, it ended with the request under way.
    Reset(hyper::Error),
    Expired(Expired),
    /// What a pattern made of the path is none.
    NoPath,
    /// The far end's listener has nobody for it.
    NoChain,
}

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
            is_last: most > 0 && number >= most || client.is_last || progress.talk().is_old(),
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
        if body.is_end_stream() {
            self.progress.end_request();
        }
        let received = head.receive(manager, self.client.addr, self.client.listener);
        let mut response = self.route(&mut head, received, body).await;
        reply::finish(&mut response, manager, Some(&head));
        let is_upgrade = received == Received::Upgrade;
        if self.is_last || is_upgrade || !keeps_alive || !self.progress.has_request_ended() {
            close(&mut response);
        }
        Ok(response)
    }

    async fn route(
        &self,
        head: &mut Head,
        received: Received,
        body: Incoming,
    ) -> Response<ResponseBody> {
        let Some(host) = self.chain.routes.virtual_host(&head.authority) else {
            return reply::local(404, "");
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
        let Some(route) = host.route(head, self.random) else {
            return reply::local(404, "");
        };
        let mut matched = Matched {
            routes: self.chain.routes.configuration(),
            host,
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

    /// An upstream's response, or why there is none.
    async fn forward<'m>(
        &self,
        head: &mut Head,
        forward: &'m Forward,
        matched: &mut Matched<'m>,
        body: Incoming,
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
        let Some(cluster) = self.client.tables.cluster(name).map(Arc::clone) else {
            return Err(reply::local(forward.cluster_not_found, ""));
        };
        matched.cluster = choice.map(|choice| (choice.name.as_str(), &choice.mutations));
        let Some(endpoint) = self.endpoint(&cluster, head) else {
            return Err(reply::local(503, "no healthy upstream"));
        };
        matched.endpoint = Some(endpoint);
        let host = choice.and_then(|choice| choice.host.as_deref());
        let asked = head.clone();
        matched.prepare(head, forward, host, self.client);
        self.progress.limit_response(forward.timeout);
        match self.go(head, body, (&cluster, endpoint)).await {
            Ok(response) => {
                let (mut parts, body) = response.into_parts();
                // Of a request that has not ended yet nobody can say how long it took.
                if !self.chain.manager.suppress_envoy_headers
                    && let Some(ended) = self.progress.request_ended()
                {
                    let millis = u64::try_from(ended.elapsed().as_millis()).unwrap_or(u64::MAX);
                    parts
                        .headers
                        .insert(X_ENVOY_SERVICE_TIME, HeaderValue::from(millis));
                }
                let status = parts.status.as_u16();
                matched.change_response(&mut parts.headers, status, &asked, self.client);
                parts.version = Version::HTTP_11;
                Ok(Response::from_parts(parts, body))
            }
            Err(failure) => Err(failed(&failure)),
        }
    }

    fn endpoint(&self, cluster: &Cluster, head: &Head) -> Option<SocketAddr> {
        let Some(to) = &cluster.to_original else {
            return self.local.balance.choose(cluster, None);
        };
        let named = to.header.as_ref().and_then(|name| {
            let value = head.headers.get(name.as_str())?;
            value.to_str().ok()?.parse().ok()
        });
        to.endpoint(self.client.original, named)
    }

    fn dial(&self, origin: Origin) -> Dial<'_, S, O> {
        Dial {
            local: self.local,
            snapshot: &self.client.snapshot,
            origin,
        }
    }

    /// To an upstream; or to the inbound listener of a workload of this node, here and now.
    async fn go(
        &self,
        head: &Head,
        body: Incoming,
        (cluster, endpoint): (&Cluster, SocketAddr),
    ) -> Result<Response<ResponseBody>, Failure> {
        let Client {
            snapshot,
            origin,
            direct_addr,
            ..
        } = self.client;
        let dial = self.dial(*origin);
        if matches!(origin, Origin::Outbound { .. })
            && let Some(peer) = snapshot.owner(endpoint.ip())
        {
            self.progress.talk().peer(peer);
        }
        let Some(pass) = OnePass::to(snapshot, *origin, *direct_addr, endpoint) else {
            return self.send(head, body, &dial, (cluster, endpoint)).await;
        };
        dial.judge(endpoint).map_err(Failure::Connect)?;
        let chain = pass.chain().map(Arc::clone).ok_or(Failure::NoChain)?;
        match &*chain {
            Chain::Http(http) => Ok(self.pass_on(head, body, pass, http).await),
            Chain::Tcp(tcp) => {
                let name = tcp.clusters.choose(self.random);
                let cluster = pass.tables.cluster(name).ok_or(Failure::NoChain)?;
                let endpoint = self.local.balance.choose(cluster, Some(pass.to));
                let endpoint = endpoint.ok_or(Failure::NoChain)?;
                let dial = self.dial(pass.origin);
                self.send(head, body, &dial, (cluster, endpoint)).await
            }
        }
    }

    /// The request as the far end's connection manager receives it: no second socket, nothing written and parsed again.
    async fn pass_on(
        &self,
        head: &Head,
        body: Incoming,
        pass: OnePass,
        chain: &HttpChain,
    ) -> Response<ResponseBody> {
        let client = Client {
            chain,
            snapshot: Arc::clone(&self.client.snapshot),
            tables: pass.tables,
            addr: pass.client,
            direct_addr: pass.client,
            listener: pass.to,
            original: Some(pass.to),
            origin: pass.origin,
            is_last: false,
        };
        let inbound = Exchange {
            local: self.local,
            client: &client,
            chain,
            random: fastrand::u64(..),
            is_last: false,
            progress: Rc::clone(&self.progress),
        };
        let manager = &chain.manager;
        let mut head = head.clone();
        head.pass_on(manager);
        let received = head.receive(manager, client.addr, client.listener);
        let routed: Pin<Box<dyn Future<Output = _> + '_>> =
            Box::pin(inbound.route(&mut head, received, body));
        let mut response = routed.await;
        reply::finish(&mut response, manager, Some(&head));
        response
    }

    async fn send(
        &self,
        head: &Head,
        body: Incoming,
        dial: &Dial<'_, S, O>,
        (cluster, endpoint): (&Cluster, SocketAddr),
    ) -> Result<Response<ResponseBody>, Failure> {
        let body = RequestBody::new(body, Rc::clone(&self.progress));
        let mut request = request(head, body).ok_or(Failure::NoPath)?;
        loop {
            let taken = self.local.upstreams.take(dial, cluster, endpoint);
            let mut link = self.in_time(taken).await?.map_err(Failure::Connect)?;
            self.progress.talk().upstream(endpoint, link.local());
            let is_used = link.is_used();
            let sent = link.sender().try_send_request(request);
            match self.in_time(sent).await? {
                Ok(response) => {
                    return Ok(response.map(|inner| {
                        ResponseBody::Upstream(Upstream {
                            inner,
                            link: Some(link),
                            pool: self.local.upstreams.clone(),
                            progress: Rc::clone(&self.progress),
                        })
                    }));
                }
                Err(mut error) => match error.take_message() {
                    // It never left: the connection was closed while it waited in the pool.
                    Some(unsent) if is_used => request = unsent,
                    _ => return Err(Failure::Reset(error.into_error())),
                },
            }
        }
    }

    /// What `work` gives, unless one of the request's times is up.
    async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::pin!(work);
        // Whoever says that time is up polls the whole connection.
        poll_fn(|cx| match self.progress.expired() {
            Some(expired) => Poll::Ready(Err(Failure::Expired(expired))),
            None => work.as_mut().poll(cx).map(Ok),
        })
        .await
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
        Failure::Expired(expired) => match expired {
            Expired::Response => reply::local(504, "upstream request timeout"),
            Expired::Request => reply::local(408, "request timeout"),
            Expired::Stream { request_ended } => {
                reply::local(if *request_ended { 504 } else { 408 }, "stream timeout")
            }
        },
        Failure::NoPath => reply::local(500, "the rewritten path is no path"),
        Failure::Connect(ConnectError::Timeout(_)) => {
            reply::local(503, format!("{BEFORE} connection timeout"))
        }
        Failure::Connect(ConnectError::Refused(CloseReason::PolicyDenied, _)) => {
            reply::local(403, "RBAC: access denied")
        }
        Failure::Connect(_) => reply::local(503, format!("{BEFORE} remote connection failure")),
        Failure::Reset(error) if error.is_parse() => {
            reply::local(502, format!("{BEFORE} protocol error"))
        }
        Failure::Reset(_) | Failure::NoChain => {
            reply::local(503, format!("{BEFORE} connection termination"))
        }
    }
}
