//! HTTP/1.1: the connection manager of one client's connection. Framing is hyper's business, what is in the frames ours.
//!
//! ```text
//!  Wire (counts bytes) -> hyper server -> exchange: received -> filters -> routed -> prepared -> sent -> answered
//!                                                               |            '-> redirect, direct response, local reply
//!                                                               '-> a filter's own reply
//!  A response that makes a tunnel of the connection ends HTTP on it: see [`tunnel`].
//! ```

mod body;
mod books;
mod drive;
mod exchange;
mod failure;
mod filters;
mod gauge;
mod interim;
mod link;
mod local_reply;
mod pieces;
mod pool;
mod received;
mod reply;
mod sent;
mod talk;
mod tunnel;
mod wire;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use shunt_core::bootstrap::{Chain, HttpChain, Tables};
use shunt_core::flow::CloseReason;
use shunt_core::snapshot::Snapshot;
use shunt_core::sockets::{OriginalDstSource, SocketSupply};
use tokio::sync::watch;
use tokio::time::sleep;

use self::books::Books;
use self::exchange::Exchange;
use self::gauge::Gauge;
pub(crate) use self::pool::Upstreams;
use self::talk::{Clock, Rung, Talk};
use self::wire::{Answering, Wire};
use crate::account::Account;
use crate::admission::Refused;
use crate::gateway::{Connection, Place};
use crate::listener::Closing;
use crate::origin::Origin;
use crate::worker::Local;

/// What the requests of one connection have in common.
pub(crate) struct Client<'a> {
    pub(crate) chain: &'a HttpChain,
    pub(crate) snapshot: &'a Arc<Snapshot>,
    /// Of whoever's configuration it is.
    pub(crate) tables: &'a Tables,
    pub(crate) addr: SocketAddr,
    /// Whose connection it is, whatever a PROXY header says.
    pub(crate) direct_addr: SocketAddr,
    pub(crate) listener: SocketAddr,
    /// Where a captured connection was going.
    pub(crate) original: Option<SocketAddr>,
    pub(crate) origin: Origin,
    /// The listener serves others in another way: this request is the connection's last.
    pub(crate) is_last: bool,
    /// `None`: the connection is none of this listener's own.
    closing: Option<&'a watch::Receiver<Closing>>,
}

impl Client<'_> {
    /// Is the listener going away?
    fn is_closing(&self) -> bool {
        let closing = self.closing;
        closing.is_some_and(|closing| *closing.borrow() != Closing::No)
    }
}

/// The configuration in force. A request sees one from its beginning to its end.
#[derive(Clone)]
struct Current {
    snapshot: Arc<Snapshot>,
    tables: Arc<Tables>,
    chain: Arc<Chain>,
    /// New connections are served in another way. This one is served in the old one, which it leaves soon.
    is_replaced: bool,
}

impl Current {
    fn refresh(&mut self, now: &Arc<Snapshot>, place: Place) {
        if self.is_replaced {
            return;
        }
        let tables = place.tables(now);
        if tables.is_some_and(|tables| Arc::ptr_eq(tables, &self.tables)) {
            self.snapshot = Arc::clone(now);
            return;
        }
        let served = tables.and_then(|tables| Some((tables, place.listener(tables)?)));
        let successor =
            served.and_then(|(tables, served)| Some((tables, served.successor(&self.chain)?)));
        match successor {
            Some((tables, chain)) => {
                self.chain = Arc::clone(chain);
                self.tables = Arc::clone(tables);
                self.snapshot = Arc::clone(now);
            }
            None => self.is_replaced = true,
        }
    }
}

/// Of hyper's buffers, bytes: they grow with what is in them, to so much, or to the largest head that is taken.
const LEAST_BUFFER: usize = 64 << 10;

/// When a listener closes, a connection without a request is kept for so long: one that is on its way is still answered,
/// and its answer says `close`.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

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
        counted,
        from,
        direct_from,
        listener,
        original,
        origin,
        place,
        tables,
        snapshot,
        closing,
    } = connection;
    let manager = &first.manager;
    // Requests count it on this thread: of what all workers share, each count would go from core to core.
    let current = RefCell::new(Rc::new(Current {
        snapshot,
        tables,
        chain: Arc::clone(begun_with),
        is_replaced: false,
    }));
    let told_to_close = &closing.clone();
    let carried = Cell::new(0_u32);
    let books = Books::open(
        first,
        Arc::clone(&local.context.flows),
        account.workload().clone(),
        from,
        listener,
    );
    let buffer = manager.limits.header_bytes.max(LEAST_BUFFER);
    let talk = Talk::new(manager.timeouts, Gauge::new(buffer), counted);
    let _over = Over(Rc::clone(&talk));
    let wire = Wire::new(client, read, Rc::clone(&talk), reply::signature(manager));
    let service = service_fn(|request| {
        carried.set(carried.get() + 1);
        let now = local.context.snapshot.load();
        local.follow(&now);
        let mut current = current.borrow_mut();
        if !Arc::ptr_eq(&now, &current.snapshot) {
            Rc::make_mut(&mut current).refresh(&now, place);
        }
        let current = Rc::clone(&current);
        let number = carried.get();
        let entry = books.begin(talk.now());
        let progress = talk.begin(Rc::clone(&entry));
        let talk = Rc::clone(&talk);
        async move {
            let client = Client {
                chain: match &*current.chain {
                    Chain::Http(chain) => chain,
                    // A successor is of the same kind.
                    Chain::Tcp(_) => first,
                },
                snapshot: &current.snapshot,
                tables: &current.tables,
                addr: from,
                direct_addr: direct_from,
                listener,
                original,
                origin,
                is_last: current.is_replaced,
                closing: Some(told_to_close),
            };
            let exchange = Exchange::new(local, &client, number, progress);
            let answered = exchange.run(request).await;
            talk.answering();
            answered.map(|response| response.map(|body| Answering::new(body, talk, entry)))
        }
    });
    let mut serving = http1::Builder::new()
        .header_read_timeout(None)
        .max_headers(manager.limits.headers)
        .max_header_size(manager.limits.header_bytes)
        .max_buf_size(buffer)
        .title_case_headers(manager.proper_case)
        .serve_connection(TokioIo::new(wire), service);
    let mut clock = Clock::default();
    let (mut is_closing, mut is_written) = (false, false);
    let mut told = closing.clone();
    let mut closes = pin!(until_closing(&mut told));
    let ended = loop {
        let served = poll_fn(|cx| {
            let served = talk.turn(|| Pin::new(&mut serving).poll(cx));
            books.moved(talk.tell(account));
            served
        });
        tokio::select! {
            biased;
            served = served => match served {
                // What might have become a tunnel hyper leaves with bytes in hand; asked once more, it writes them.
                Ok(()) if !is_written => is_written = true,
                served => break Ended::Served(served),
            },
            () = &mut closes, if !is_closing => {
                is_closing = true;
                // Hyper would say `close` in a `101`, or not flush it.
                if !talk.may_be_tunnel() {
                    Pin::new(&mut serving).graceful_shutdown();
                }
            }
            rung = poll_fn(|cx| clock.poll(cx, &talk)) => match rung {
                Rung::Told => {}
                Rung::Drained if talk.may_be_tunnel() => {}
                Rung::Drained => Pin::new(&mut serving).graceful_shutdown(),
                rung => {
                    if rung == Rung::Stuck {
                        talk.stuck();
                    }
                    break Ended::Late(rung);
                }
            },
        }
    };
    // Whoever is told what is wrong with a request is told it in order too.
    let parts = serving.into_parts();
    let wire = parts.io.into_inner();
    if let Ended::Served(Ok(())) = &ended
        && let Some(tunnel) = talk.tunnel()
    {
        let (client, unread) = wire.into_stream();
        talk.read(unread.len());
        books.moved(talk.tell(account));
        let Current {
            snapshot, tables, ..
        } = Current::clone(&current.borrow());
        let read = [&parts.read_buf[..], &unread].concat();
        let connection = Connection {
            client,
            counted: read.len(),
            read,
            tables,
            snapshot,
            closing,
            ..connection
        };
        return tunnel.carry(local, connection, account).await;
    }
    account.ended_first(wire.has_ended());
    match &ended {
        Ended::Served(Ok(())) | Ended::Late(Rung::Idle) => wire.close().await,
        Ended::Served(Err(error)) if error.is_parse() => wire.close().await,
        Ended::Late(Rung::Head(text)) => {
            wire.answer("HTTP/1.1 408 Request Timeout", text).await;
        }
        Ended::Served(Err(_)) | Ended::Late(_) => drop(wire),
    }
    books.moved(talk.tell(account));
    match ended {
        Ended::Served(Ok(())) => (CloseReason::Finished, None),
        Ended::Served(Err(error)) if error.is_user() => {
            (CloseReason::UpstreamReset, Some(error.to_string()))
        }
        Ended::Served(Err(error)) => (CloseReason::ClientReset, Some(error.to_string())),
        Ended::Late(Rung::Head(text)) => (CloseReason::IdleTimeout, Some(text.to_owned())),
        Ended::Late(Rung::Stuck) => {
            let text = "the response did not go on".to_owned();
            (CloseReason::IdleTimeout, Some(text))
        }
        Ended::Late(_) => (CloseReason::IdleTimeout, None),
    }
}

/// Ends the talk, also where its connection is dropped in the middle.
struct Over(Rc<Talk>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.over();
    }
}

enum Ended {
    Served(hyper::Result<()>),
    Late(Rung),
}

/// The listener is going away, and a request that is on its way has had its time.
async fn until_closing(closing: &mut watch::Receiver<Closing>) {
    told_to_close(closing).await;
    sleep(ON_ITS_WAY).await;
}

async fn told_to_close(closing: &mut watch::Receiver<Closing>) {
    let told = closing.wait_for(|closing| *closing == Closing::WhenQuiet);
    // An error means that the listener is gone. Handed over, the next request is still answered: it may be on its way.
    if told.await.is_err() && *closing.borrow() == Closing::HandedOver {
        std::future::pending::<()>().await;
    }
}
