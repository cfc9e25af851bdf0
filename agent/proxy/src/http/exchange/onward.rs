//! A prepared request on its way: to an upstream, or to the far end's listener on this node.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use shunt_core::bootstrap::{Chain, HttpChain};
use shunt_core::cluster::subsets::Metadata;
use shunt_core::cluster::{Cluster, Resource};
use shunt_core::sockets::{OriginalDstSource, SocketSupply};
use tokio::sync::oneshot;

use super::{Exchange, PassedOn};
use crate::balance::{ANY, Chosen};
use crate::gateway::OnePass;
use crate::http::Client;
use crate::http::body::{RequestBody, ResponseBody, Upstream};
use crate::http::failure::Failure;
use crate::http::link::{Alive, Link};
use crate::http::pool::{NoLink, connect};
use crate::http::received::Head;
use crate::http::reply;
use crate::http::talk::Passes;
use crate::http::tunnel::{Kept, To, Tunnel, Upgraded};
use crate::origin::{Dial, Dialled, Origin};

impl<'a, S: SocketSupply, O: OriginalDstSource> Exchange<'a, S, O> {
    pub(super) fn endpoint<'c>(
        &self,
        cluster: &'c Arc<Cluster>,
        wanted: &Metadata,
        head: &Head,
    ) -> Option<Chosen<'c>> {
        let Some(to) = &cluster.to_original else {
            return self.local.balance.choose(cluster, wanted, None);
        };
        let named = to.header.as_ref().and_then(|name| {
            let value = head.headers.get(name.as_str())?;
            value.to_str().ok()?.parse().ok()
        });
        let addr = to.endpoint(self.client.original, named)?;
        Some(Chosen { addr, hostname: "" })
    }

    fn dial(&self, origin: Origin) -> Dial<'_, S, O> {
        Dial {
            local: self.local,
            snapshot: self.client.snapshot,
            origin,
            by_tcp: true,
        }
    }

    /// To an upstream; or to the inbound listener of a workload of this node, here and now.
    pub(super) async fn go(
        &self,
        head: &mut Head,
        body: RequestBody,
        (cluster, endpoint): (&Arc<Cluster>, SocketAddr),
    ) -> Result<Response<ResponseBody>, Failure> {
        let dial = self.dial(self.client.origin);
        self.note_peer(endpoint);
        let Some(pass) = self.one_pass(endpoint) else {
            return self.send(head, body, &dial, (cluster, endpoint)).await;
        };
        let judged = dial.judge(endpoint);
        judged.map_err(|error| Failure::NoLink(NoLink::Connect(error)))?;
        let chain = pass.chain().map(Arc::clone).ok_or(Failure::NoChain)?;
        match &*chain {
            Chain::Http(http) => {
                let held = cluster.hold(Resource::Request);
                let held = held.ok_or(Failure::NoLink(NoLink::Overflow))?;
                cluster.counts.mine().rq_total.increase();
                self.progress.keep(held);
                let passed: Pin<Box<dyn Future<Output = _> + '_>> =
                    Box::pin(self.pass_on(head, body, pass, http));
                let mut response = passed.await;
                response.extensions_mut().insert(PassedOn);
                self.progress.entry().sent_to(&cluster.name, Some(endpoint));
                Ok(response)
            }
            Chain::Tcp(tcp) => {
                let name = tcp.clusters.choose(self.random);
                let cluster = pass.tables.cluster(name).ok_or(Failure::NoChain)?;
                let chosen = self.local.balance.choose(cluster, ANY, Some(pass.to));
                let endpoint = chosen.ok_or(Failure::NoChain)?.addr;
                let dial = self.dial(pass.origin);
                self.send(head, body, &dial, (cluster, endpoint)).await
            }
        }
    }

    /// The request as the far end's connection manager receives it: no second socket, nothing written and parsed again.
    async fn pass_on(
        &self,
        head: &mut Head,
        body: RequestBody,
        pass: OnePass,
        chain: &HttpChain,
    ) -> Response<ResponseBody> {
        let client = Client {
            chain,
            snapshot: self.client.snapshot,
            tables: &pass.tables,
            addr: pass.client,
            direct_addr: pass.client,
            listener: pass.to,
            original: Some(pass.to),
            origin: pass.origin,
            is_last: false,
            closing: None,
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
        let passes = self.progress.passes();
        self.progress.pass(Passes {
            informational: passes.informational && manager.passes_informational,
            trailers: passes.trailers && manager.trailers,
        });
        let mut head = head.hand_over();
        head.pass_on(manager);
        let received = head.receive(manager, client.addr, client.listener);
        let mut response = inbound.serve(&mut head, received, body).await;
        reply::finish(&mut response, manager, Some(&head));
        response
    }

    async fn send(
        &self,
        head: &mut Head,
        body: RequestBody,
        dial: &Dial<'_, S, O>,
        (cluster, endpoint): (&Arc<Cluster>, SocketAddr),
    ) -> Result<Response<ResponseBody>, Failure> {
        let (is_tunnel, expects) = (head.is_tunnel(), head.expects().is_some());
        let mut request = request(head, body).ok_or(Failure::NoPath)?;
        let passes = self.progress.passes();
        let trailers = passes.trailers && cluster.trailers;
        if trailers {
            request.body_mut().pass_trailers();
        }
        if passes.informational {
            let proper_case = self.chain.manager.proper_case;
            let talk = self.progress.talk();
            let interim = talk.interim_of(proper_case, expects);
            interim.listen(&mut request);
        }
        loop {
            let taken = pin!(self.local.upstreams.take(dial, cluster, endpoint));
            let mut link = self.in_time(taken).await?.map_err(Failure::NoLink)?;
            self.progress.talk().upstream(endpoint, link.local());
            let is_used = link.is_used();
            let upgraded = is_tunnel.then(|| link.upgraded());
            let sent = self.in_time(pin!(link.send(request))).await?;
            match sent {
                Ok(response) if is_switch(head, response.status()) => {
                    return Box::pin(self.tunnel(response, link, upgraded)).await;
                }
                Ok(response) if !reply::is_framed(response.headers()) => {
                    return Err(Failure::Unframed);
                }
                Ok(response) => {
                    link.goes_on();
                    return Ok(response.map(|inner| {
                        ResponseBody::Upstream(Upstream {
                            inner,
                            link: Some(link),
                            pool: self.local.upstreams.clone(),
                            progress: Rc::clone(&self.progress),
                            trailers,
                        })
                    }));
                }
                Err(mut error) => match error.take_message() {
                    // It never left: the connection was closed while it waited in the pool.
                    Some(unsent) if is_used => request = unsent,
                    _ => return Err(Failure::of(error.into_error())),
                },
            }
        }
    }

    /// Another protocol begins with this response.
    async fn tunnel(
        &self,
        response: Response<Incoming>,
        link: Link,
        upgraded: Option<oneshot::Receiver<Upgraded>>,
    ) -> Result<Response<ResponseBody>, Failure> {
        let is_asked = self.progress.is_whole();
        let upgraded = upgraded.filter(|_| is_asked).ok_or(Failure::NotAsked)?;
        if !reply::is_handshake(response.status(), response.headers()) {
            return Err(Failure::Unframed);
        }
        // It fails only where the connection has gone wrong meanwhile.
        let upgraded = self.in_time(pin!(upgraded)).await?;
        let upgraded = upgraded.map_err(|_| Failure::NotAsked)?;
        let to = To::Upstream(upgraded, Kept::Link(Box::new(link)));
        Ok(self.becomes(to, response.map(|_| ())))
    }

    /// CONNECT ends here: the upstream hears nothing of it.
    pub(super) async fn dig(
        &self,
        (cluster, endpoint): (&Arc<Cluster>, SocketAddr),
    ) -> Result<Response<ResponseBody>, Failure> {
        let dial = self.dial(self.client.origin);
        let judged = dial.judge(endpoint);
        judged.map_err(|error| Failure::NoLink(NoLink::Connect(error)))?;
        self.note_peer(endpoint);
        let hold = |what| {
            let held = cluster.hold(what);
            held.ok_or(Failure::NoLink(NoLink::Overflow))
        };
        let held = Kept::Connection(hold(Resource::Connection)?, hold(Resource::Request)?);
        let to = match self.one_pass(endpoint) {
            Some(pass) => To::FarEnd(Box::new(pass), held),
            None => {
                let dialled = pin!(connect(&dial, cluster, endpoint));
                let dialled = self.in_time(dialled).await?;
                let Dialled {
                    stream,
                    held: counted,
                } = dialled.map_err(Failure::NoLink)?;
                let local = stream.local_addr().ok();
                self.progress.talk().upstream(endpoint, local);
                let upgraded = Upgraded {
                    stream,
                    read: Bytes::new(),
                    alive: (Alive::new(&cluster.counts), counted),
                };
                To::Upstream(upgraded, held)
            }
        };
        Ok(self.becomes(to, Response::new(())))
    }

    fn becomes(&self, to: To, response: Response<()>) -> Response<ResponseBody> {
        let tunnel = Tunnel::new(to, &self.progress);
        self.progress.talk().becomes(tunnel);
        let mut response = response.map(|()| ResponseBody::Local(None));
        // Of a tunnel's they say nothing.
        response.headers_mut().remove(header::CONTENT_LENGTH);
        response
    }

    fn one_pass(&self, endpoint: SocketAddr) -> Option<OnePass> {
        let Client {
            snapshot,
            origin,
            direct_addr,
            ..
        } = self.client;
        OnePass::to(snapshot, *origin, *direct_addr, endpoint)
    }

    fn note_peer(&self, endpoint: SocketAddr) {
        let Client {
            snapshot, origin, ..
        } = self.client;
        if matches!(origin, Origin::Outbound { .. })
            && let Some(peer) = snapshot.owner(endpoint.ip())
        {
            self.progress.talk().peer(peer);
        }
    }

    async fn in_time<T>(&self, work: Pin<&mut impl Future<Output = T>>) -> Result<T, Failure> {
        let done = self.progress.in_time(work).await;
        done.map_err(Failure::Expired)
    }
}

/// Nobody asks for `101` of a request that asks for no upgrade: it is a switch all the same, and will be refused.
fn is_switch(head: &Head, status: StatusCode) -> bool {
    head.becomes_tunnel(status) || status == StatusCode::SWITCHING_PROTOCOLS
}

/// `None`: its path is none.
fn request(head: &mut Head, body: RequestBody) -> Option<Request<RequestBody>> {
    let target = match head.method == Method::CONNECT {
        true => head.authority.as_str(),
        false => Some(head.path.as_str()).filter(|path| path.starts_with('/'))?,
    };
    let target = Uri::try_from(target).ok()?;
    let has_length = head.headers.contains_key(header::CONTENT_LENGTH);
    let (is_empty, is_tunnel) = (body.is_end_stream(), head.is_tunnel());
    let mut headers = head.hand_on();
    if !has_length && is_empty && !is_tunnel && expects_body(&head.method) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    // Of some methods hyper would take it that there is none.
    if !has_length && !is_empty {
        let chunked = HeaderValue::from_static("chunked");
        headers.insert(header::TRANSFER_ENCODING, chunked);
    }
    let said = headers.get(header::HOST);
    if said.is_none_or(|said| said != head.authority.as_str()) {
        match HeaderValue::from_str(&head.authority) {
            Ok(host) => headers.insert(header::HOST, host),
            Err(_) => headers.remove(header::HOST),
        };
    }
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = target;
    *request.headers_mut() = headers;
    Some(request)
}

/// Without a body, a request of any other method says so.
fn expects_body(method: &Method) -> bool {
    ![Method::GET, Method::HEAD, Method::DELETE, Method::TRACE].contains(method)
}
