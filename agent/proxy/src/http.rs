//! HTTP/1.1: the connection manager of one client's connection. Framing is hyper's business, what is in the frames ours.
//!
//! ```text
//!  Wire (counts bytes) -> hyper server -> exchange: received -> routed -> prepared -> sent -> answered
//!                                                              '-> redirect, direct response, local reply
//! ```

mod body;
mod exchange;
mod pool;
mod received;
mod reply;
mod sent;
mod wire;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use shunt_core::bootstrap::{Chain, HttpChain};
use shunt_core::flow::{CloseReason, DataPath};
use shunt_core::snapshot::Snapshot;
use shunt_core::sockets::{OriginalDstSource, SocketSupply};
use tokio::sync::watch;

use self::exchange::Exchange;
pub(crate) use self::pool::Upstreams;
use self::wire::{Answering, Wire};
use crate::account::Account;
use crate::admission::Refused;
use crate::gateway::Connection;
use crate::worker::Local;

/// What the requests of one connection have in common.
pub(crate) struct Client<'a> {
    pub(crate) chain: &'a HttpChain,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) addr: SocketAddr,
    pub(crate) listener: SocketAddr,
    /// The listener is going away, or serves others in another way: this request is the connection's last.
    pub(crate) is_last: bool,
}

/// The configuration in force. A request sees one from its beginning to its end.
#[derive(Clone)]
struct Current {
    snapshot: Arc<Snapshot>,
    chain: Arc<Chain>,
    /// New connections are served in another way. This one is served in the old one, which it leaves soon.
    is_replaced: bool,
}

impl Current {
    fn refresh(&mut self, now: &ArcSwap<Snapshot>, bound: SocketAddr) {
        let now = now.load();
        if self.is_replaced || Arc::ptr_eq(&now.proxy, &self.snapshot.proxy) {
            return;
        }
        let served = now.proxy.listener(bound);
        match served.and_then(|served| served.successor(&self.chain)) {
            Some(chain) => {
                self.chain = Arc::clone(chain);
                self.snapshot = Arc::clone(&now);
            }
            None => self.is_replaced = true,
        }
    }
}

/// Of hyper's buffers, bytes: they grow with what is in them, to so much, or to the largest head that is taken.
const LEAST_BUFFER: usize = 64 << 10;

/// How the connection ended.
pub(crate) async fn serve<S: SocketSupply, O: OriginalDstSource>(
    local: &Local<S, O>,
    begun_with: &Arc<Chain>,
    first: &HttpChain,
    connection: Connection,
    account: &mut Account,
) -> Refused {
    let Connection {
        client,
        read,
        from,
        listener,
        bound,
        snapshot,
        mut closing,
    } = connection;
    let manager = &first.manager;
    let current = RefCell::new(Current {
        snapshot,
        chain: Arc::clone(begun_with),
        is_replaced: false,
    });
    let told_to_close = closing.clone();
    let carried = std::cell::Cell::new(0_u32);
    let wire = Wire::new(client, read, reply::signature(manager));
    let counts = wire.counts();
    let service = service_fn(|request| {
        carried.set(carried.get() + 1);
        let mut current = current.borrow_mut();
        current.refresh(&local.context.snapshot, bound);
        let Current {
            snapshot,
            chain,
            is_replaced,
        } = current.clone();
        let (number, is_last) = (carried.get(), is_replaced || *told_to_close.borrow());
        let counts = Rc::clone(&counts);
        counts.begin();
        async move {
            let client = Client {
                chain: match &*chain {
                    Chain::Http(chain) => chain,
                    // A successor is of the same kind.
                    Chain::Tcp(_) => first,
                },
                snapshot,
                addr: from,
                listener,
                is_last,
            };
            let answered = Exchange::new(local, &client, number).run(request).await;
            answered.map(|response| response.map(|body| Answering::new(body, counts)))
        }
    });
    let longest = |first: Duration, second: Duration| match first.is_zero() {
        true => second,
        false => first,
    };
    let patience = longest(manager.timeouts.request_headers, manager.timeouts.idle);
    let mut serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Some(patience).filter(|patience| !patience.is_zero()))
        .max_headers(manager.limits.headers)
        .max_header_size(manager.limits.header_bytes)
        .max_buf_size(manager.limits.header_bytes.max(LEAST_BUFFER))
        .title_case_headers(manager.proper_case)
        .serve_connection(TokioIo::new(wire), service);
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = until_closing(&mut closing) => {
            Pin::new(&mut serving).graceful_shutdown();
            (&mut serving).await
        }
    };
    // Whoever is told what is wrong with a request is told it in order too.
    let is_timeout = ended.as_ref().is_err_and(hyper::Error::is_timeout);
    let is_orderly = match &ended {
        Ok(()) => true,
        Err(error) => is_timeout || error.is_parse(),
    };
    if is_orderly {
        let parts = serving.into_parts();
        let wire = parts.io.into_inner();
        match is_timeout && !parts.read_buf.is_empty() {
            true => {
                wire.answer("HTTP/1.1 408 Request Timeout", "request header timeout")
                    .await
            }
            false => wire.close().await,
        }
    }
    account.received(DataPath::Copy, counts.read());
    account.sent(DataPath::Copy, counts.written());
    match ended {
        Ok(()) => (CloseReason::Finished, None),
        Err(error) if error.is_timeout() => (CloseReason::IdleTimeout, None),
        Err(error) if error.is_user() => (CloseReason::UpstreamReset, Some(error.to_string())),
        Err(error) => (CloseReason::ClientReset, Some(error.to_string())),
    }
}

async fn until_closing(closing: &mut watch::Receiver<bool>) {
    // An error means that the listener is gone.
    let _ = closing.wait_for(|closing| *closing).await;
}
