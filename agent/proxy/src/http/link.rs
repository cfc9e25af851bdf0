//! One connection to an upstream: it lives in a task of its own, and carries one request after the other.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use shunt_core::cluster::{Cluster, Held};
use shunt_core::statistics::{ClusterCounts, PerWorker};
use socket2::SockRef;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use super::LEAST_BUFFER;
use super::body::RequestBody;
use super::drive::Drive;
use super::gauge::{Gauge, Gauged};
use super::pool::{Place, Pool};
use super::tunnel::Upgraded;
use crate::connect::ConnectError;
use crate::origin::Dialled;

/// Bytes of a response's headers; Envoy's.
const MAX_RESPONSE_HEADERS: usize = 60 << 10;
const MAX_RESPONSE_HEADER_LINES: usize = 100;
/// What nobody will wait for.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// An upstream that takes no more is waited for so long, once nobody wants anything of the connection any more.
const ENDING: Duration = Duration::from_secs(2);
/// One that was given back is ready as soon as its own task has run.
const NEARLY: Duration = Duration::from_millis(100);

/// A connection to an upstream, with no request under way.
pub(super) struct Link {
    sender: SendRequest<RequestBody>,
    drive: Rc<Drive>,
    idle: Rc<Idle>,
    carried: u32,
    local: Option<SocketAddr>,
    cluster: Arc<Cluster>,
    born: Instant,
    place: Place,
    /// The workload from whose namespace it is was withdrawn.
    is_withdrawn: Option<Arc<AtomicBool>>,
    request: Option<Held>,
    /// A request is under way.
    is_busy: bool,
    gauge: Gauge,
    /// Dropped: nobody wants anything of the connection any more.
    _wanted: oneshot::Sender<Infallible>,
    /// Who gets the socket if the upstream changes its protocol.
    upgrade: Rc<Cell<Option<oneshot::Sender<Upgraded>>>>,
}

impl Link {
    /// `longest_idle`: it waits for a request for so long; `None`: for ever.
    pub(super) async fn begin(
        Dialled { stream, held }: Dialled,
        cluster: &Arc<Cluster>,
        place: Place,
        longest_idle: Option<Duration>,
        is_withdrawn: Option<Arc<AtomicBool>>,
    ) -> Result<Self, ConnectError> {
        let local = stream.local_addr().ok();
        let gauge = Gauge::new(LEAST_BUFFER);
        let (sender, connection) = http1::Builder::new()
            .max_headers(MAX_RESPONSE_HEADER_LINES)
            .max_header_size(MAX_RESPONSE_HEADERS)
            .max_buf_size(LEAST_BUFFER)
            .handshake::<_, RequestBody>(TokioIo::new(Gauged {
                stream,
                gauge: gauge.clone(),
            }))
            .await
            .map_err(|error| ConnectError::Connect(std::io::Error::other(error)))?;
        let idle = Rc::<Idle>::default();
        let known = Rc::clone(&idle);
        let longest = longest_idle.unwrap_or(FOREVER);
        let oldest = cluster.max_connection_duration.unwrap_or(FOREVER);
        let born = Instant::now();
        let drive = Drive::new(connection);
        let driven = Rc::clone(&drive);
        let pool = place.pool.clone();
        let upgrade = Rc::<Cell<Option<oneshot::Sender<Upgraded>>>>::default();
        let wanted = Rc::clone(&upgrade);
        let alive = Alive::new(&cluster.counts);
        let (_wanted, mut given_up) = oneshot::channel();
        // One task per connection, not per request: it lives as long as the connection.
        tokio::task::spawn_local(async move {
            let alive = (alive, held);
            let mut look = born + longest.min(oldest);
            let mut is_given_up = false;
            let in_order = loop {
                tokio::select! {
                    in_order = poll_fn(|cx| driven.poll(cx)) => break in_order,
                    _ = &mut given_up, if !is_given_up => {
                        is_given_up = true;
                        look = Instant::now() + ENDING;
                    }
                    () = sleep_until(look) => {
                        if is_given_up {
                            break false;
                        }
                        let since: Option<Instant> = known.since.get();
                        look = match since {
                            Some(since) => (since + longest).min(born + oldest),
                            None => Instant::now() + longest.min(oldest),
                        };
                        if since.is_some() && look <= Instant::now() {
                            break true;
                        }
                    }
                }
            };
            let upgraded = driven.parts().map(|parts| Upgraded {
                stream: parts.io.into_inner().stream,
                read: parts.read_buf,
                alive,
            });
            let left = match (wanted.take().filter(|_| in_order), upgraded) {
                (Some(wanted), Some(upgraded)) => wanted.send(upgraded).err(),
                (_, upgraded) => upgraded,
            };
            if let Some(left) = left
                && in_order
            {
                // It fails only for a socket that is gone.
                let _ = SockRef::from(&left.stream).set_linger(None);
            }
            if let Some(pool) = pool.upgrade() {
                pool.sweep();
            }
        });
        Ok(Self {
            sender,
            drive,
            idle,
            carried: 0,
            local,
            cluster: Arc::clone(cluster),
            born,
            place,
            is_withdrawn,
            request: None,
            is_busy: false,
            gauge,
            _wanted,
            upgrade,
        })
    }

    /// Does it carry no more requests: it has ended, or has carried all that it may?
    pub(super) fn is_spent(&self) -> bool {
        let most = self.cluster.max_requests_per_connection;
        let oldest = self.cluster.max_connection_duration;
        let withdrawn = self.is_withdrawn.as_ref();
        self.sender.is_closed()
            || most > 0 && self.carried >= most
            || oldest.is_some_and(|oldest| self.born + oldest <= Instant::now())
            || withdrawn.is_some_and(|withdrawn| withdrawn.load(Relaxed))
    }

    /// Would it take a request at once?
    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Takes it out of its idleness. Did it outlive that, and does its upstream take what it was sent before?
    pub(super) async fn wakes(&mut self) -> bool {
        self.idle.ends();
        if self.is_ready() {
            return true;
        }
        let ready = Box::pin(timeout(NEARLY, self.sender.ready())).await;
        matches!(ready, Ok(Ok(())))
    }

    /// `among`: of others that wait too.
    pub(super) fn begins_to_wait(&self, among: Option<Among>) {
        self.idle.since.set(Some(Instant::now()));
        self.idle.among.set(among);
    }

    /// Since when it waits.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        self.idle.since.get()
    }

    /// `None`: the pool is gone.
    pub(super) fn pool(&self) -> Option<Rc<Pool>> {
        self.place.pool.upgrade()
    }

    /// A request is to be sent on it.
    pub(super) fn carry(&mut self, request: Held) {
        self.request = Some(request);
    }

    /// No request is under way any more.
    pub(super) fn rest(&mut self) {
        self.request = None;
        if std::mem::take(&mut self.is_busy) {
            self.cluster.counts.mine().rq_active.decrease();
        }
    }

    /// Was it used before? Then the upstream may have closed it while the request was on its way.
    pub(super) fn is_used(&self) -> bool {
        self.carried > 0
    }

    /// The socket, once the upstream has agreed to another protocol. To be asked for before the request is sent.
    pub(super) fn upgraded(&self) -> oneshot::Receiver<Upgraded> {
        let (sender, upgraded) = oneshot::channel();
        self.upgrade.set(Some(sender));
        upgraded
    }

    /// This end's address.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        self.local
    }

    /// Something has come of what the upstream has sent.
    pub(super) fn goes_on(&self) {
        self.gauge.reset();
    }

    /// # Errors
    /// There is no response; the request, if it never left.
    pub(super) fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> {
        let taken = self.drive.take();
        let response = self.sender().try_send_request(request);
        taken.drive(response)
    }

    fn sender(&mut self) -> &mut SendRequest<RequestBody> {
        self.carried += 1;
        self.goes_on();
        let counts = self.cluster.counts.mine();
        counts.rq_total.increase();
        if !std::mem::replace(&mut self.is_busy, true) {
            counts.rq_active.increase();
        }
        &mut self.sender
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.rest();
        self.idle.ends();
    }
}

/// A connection while it waits for its next request.
#[derive(Default)]
struct Idle {
    since: Cell<Option<Instant>>,
    among: Cell<Option<Among>>,
}

impl Idle {
    fn ends(&self) {
        self.since.set(None);
        drop(self.among.take());
    }
}

/// One of so many, until it is dropped.
pub(super) struct Among(Rc<Cell<usize>>);

impl Among {
    pub(super) fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Among {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Counts a connection as long as it lives.
pub(super) struct Alive(PerWorker<ClusterCounts>);

impl Alive {
    pub(super) fn new(counts: &PerWorker<ClusterCounts>) -> Self {
        counts.mine().cx_total.increase();
        counts.mine().cx_active.increase();
        Self(counts.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.mine().cx_active.decrease();
    }
}
