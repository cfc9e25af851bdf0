//! Connections to upstreams that wait for the next request. They belong to the worker.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use shunt_core::cluster::{Cluster, Held, Resource};
use shunt_core::snapshot::Snapshot;
use shunt_core::sockets::SocketSupply;
use shunt_core::statistics::{ClusterCounts, PerWorker};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::body::RequestBody;
use crate::connect::{self, ConnectError};

/// Bytes of a response's headers; Envoy's.
const MAX_RESPONSE_HEADERS: usize = 60 << 10;
const MAX_RESPONSE_HEADER_LINES: usize = 100;
/// What nobody will wait for.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// By cluster and endpoint; the one used last is used next, so that those which are not needed grow old.
#[derive(Clone, Default)]
pub(crate) struct Upstreams(Rc<All>);

#[derive(Default)]
struct All {
    /// By where they are in memory, which is theirs while they are kept here.
    clusters: RefCell<HashMap<*const Cluster, Known>>,
    /// Whose clusters these are.
    snapshot: RefCell<Option<Arc<Snapshot>>>,
    /// Nothing is kept any more.
    closed: Cell<bool>,
}

struct Known {
    cluster: Arc<Cluster>,
    pools: HashMap<SocketAddr, Rc<Pool>>,
}

/// Of one endpoint.
#[derive(Default)]
struct Pool {
    idle: RefCell<Vec<Link>>,
    /// All that there are.
    open: Cell<usize>,
    /// Requests that wait for one of them.
    waiting: Cell<usize>,
    freed: Notify,
    /// Its cluster or endpoint is gone: nothing is kept.
    retired: Cell<bool>,
}

/// A connection to an upstream, with no request under way.
pub(super) struct Link {
    sender: SendRequest<RequestBody>,
    idle_since: Rc<Cell<Option<Instant>>>,
    carried: u32,
    local: Option<SocketAddr>,
    cluster: Arc<Cluster>,
    born: Instant,
    place: Place,
    request: Option<Held>,
    /// A request is under way.
    is_busy: bool,
}

/// One of a pool's connections, until it is dropped.
struct Place {
    pool: Weak<Pool>,
    _held: Held,
}

/// Why a request gets no connection.
#[derive(Debug)]
pub(super) enum NoLink {
    Connect(ConnectError),
    /// One of the cluster's limits.
    Overflow,
}

impl Upstreams {
    /// One that waits, or a new one, or the next that others leave.
    ///
    /// # Errors
    /// The endpoint cannot be connected to, or one of the cluster's limits is reached.
    pub(super) async fn take(
        &self,
        supply: &impl SocketSupply,
        cluster: &Arc<Cluster>,
        endpoint: SocketAddr,
    ) -> Result<Link, NoLink> {
        let pool = self.pool(cluster, endpoint);
        let mut link = match pool.ready().await {
            Some(link) => link,
            None => pool.wait(supply, cluster, endpoint).await?,
        };
        match cluster.hold(Resource::Request) {
            Some(held) => link.request = Some(held),
            None => {
                self.give_back(link);
                return Err(NoLink::Overflow);
            }
        }
        Ok(link)
    }

    fn pool(&self, cluster: &Arc<Cluster>, endpoint: SocketAddr) -> Rc<Pool> {
        let mut all = self.0.clusters.borrow_mut();
        let key = Arc::as_ptr(cluster);
        if !all.contains_key(&key) {
            let snapshot = self.0.snapshot.borrow();
            let is_old = snapshot.as_ref().is_some_and(|now| !is_in(now, cluster));
            if is_old || self.0.closed.get() {
                // The last request of a connection that began before: nobody comes after it.
                let pool = Pool::default();
                pool.retired.set(true);
                return Rc::new(pool);
            }
        }
        let known = all.entry(key).or_insert_with(|| Known {
            cluster: Arc::clone(cluster),
            pools: HashMap::new(),
        });
        Rc::clone(known.pools.entry(endpoint).or_default())
    }

    /// Lets go of the connections to clusters and endpoints that are not in force any more. Was anything changed?
    pub(crate) fn follow(&self, snapshot: &Arc<Snapshot>) -> bool {
        let is_same = |seen: &Arc<Snapshot>| Arc::ptr_eq(&seen.proxy, &snapshot.proxy);
        if self.0.snapshot.borrow().as_ref().is_some_and(is_same) {
            return false;
        }
        self.0.snapshot.replace(Some(Arc::clone(snapshot)));
        let mut all = self.0.clusters.borrow_mut();
        for (_, mut known) in std::mem::take(&mut *all) {
            let now = snapshot.proxy.cluster(&known.cluster.name);
            let now = now.filter(|now| now.connects_as(&known.cluster));
            known.pools.retain(|addr, pool| {
                let stays = now.is_some_and(|now| now.endpoints.iter().any(|of| of.addr == *addr));
                if !stays {
                    pool.retire();
                }
                stays
            });
            if let Some(now) = now {
                known.cluster = Arc::clone(now);
                all.insert(Arc::as_ptr(now), known);
            }
        }
        true
    }

    /// Ends those that wait, in order, and keeps none from now on.
    pub(crate) fn close(&self) {
        self.0.closed.set(true);
        for (_, known) in self.0.clusters.take() {
            known.pools.values().for_each(|pool| pool.retire());
        }
    }

    /// Its exchange has ended in order.
    pub(super) fn give_back(&self, mut link: Link) {
        link.rest();
        let Some(pool) = link.place.pool.upgrade() else {
            return;
        };
        if !pool.retired.get() && !link.sender.is_closed() && !link.is_worn() {
            link.idle_since.set(Some(Instant::now()));
            pool.idle.borrow_mut().push(link);
            pool.freed.notify_one();
        }
    }
}

fn is_in(snapshot: &Snapshot, cluster: &Arc<Cluster>) -> bool {
    let now = snapshot.proxy.cluster(&cluster.name);
    now.is_some_and(|now| Arc::ptr_eq(now, cluster))
}

impl Pool {
    /// One that waits; nothing while others wait for it.
    async fn ready(&self) -> Option<Link> {
        match self.waiting.get() {
            0 => self.next().await,
            _ => None,
        }
    }

    async fn next(&self) -> Option<Link> {
        loop {
            let mut link = self.idle.borrow_mut().pop()?;
            link.idle_since.set(None);
            if !link.is_worn() && !link.sender.is_closed() && link.sender.ready().await.is_ok() {
                return Some(link);
            }
        }
    }

    async fn wait(
        self: &Rc<Self>,
        supply: &impl SocketSupply,
        cluster: &Arc<Cluster>,
        endpoint: SocketAddr,
    ) -> Result<Link, NoLink> {
        let _pending = cluster.hold(Resource::Pending).ok_or(NoLink::Overflow)?;
        loop {
            if let Some(place) = self.place(cluster) {
                let longest = cluster.connect_timeout;
                let stream = connect::from_node(supply, endpoint, longest).await;
                let stream = stream.inspect_err(|error| {
                    let counts = cluster.counts.mine();
                    counts.cx_total.increase();
                    counts.cx_connect_fail.increase();
                    if matches!(error, ConnectError::Timeout(_)) {
                        counts.cx_connect_timeout.increase();
                    }
                });
                let link = Link::begin(stream.map_err(NoLink::Connect)?, cluster, place).await;
                return link.map_err(NoLink::Connect);
            }
            let _waits = Waits::new(self);
            self.freed.notified().await;
            if let Some(link) = self.next().await {
                return Ok(link);
            }
        }
    }

    /// Room for one more connection: within the limit, or the first.
    fn place(self: &Rc<Self>, cluster: &Arc<Cluster>) -> Option<Place> {
        let held = match self.open.get() {
            0 => cluster.hold_anyway(Resource::Connection),
            _ => cluster.hold(Resource::Connection)?,
        };
        self.open.set(self.open.get() + 1);
        Some(Place {
            pool: Rc::downgrade(self),
            _held: held,
        })
    }

    /// Takes out those that have ended.
    fn sweep(&self) {
        let ended: Vec<Link> = {
            let mut idle = self.idle.borrow_mut();
            idle.extract_if(.., |link| link.sender.is_closed())
                .collect()
        };
        drop(ended);
    }

    fn retire(&self) {
        self.retired.set(true);
        drop(self.idle.take());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.open.set(pool.open.get() - 1);
            pool.freed.notify_one();
        }
    }
}

/// Counts a request that waits.
struct Waits<'a>(&'a Pool);

impl<'a> Waits<'a> {
    fn new(pool: &'a Pool) -> Self {
        pool.waiting.set(pool.waiting.get() + 1);
        Self(pool)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

impl Link {
    async fn begin(
        stream: TcpStream,
        cluster: &Arc<Cluster>,
        place: Place,
    ) -> Result<Self, ConnectError> {
        let local = stream.local_addr().ok();
        let (sender, mut connection) = http1::Builder::new()
            .max_headers(MAX_RESPONSE_HEADER_LINES)
            .max_header_size(MAX_RESPONSE_HEADERS)
            .handshake::<_, RequestBody>(TokioIo::new(stream))
            .await
            .map_err(|error| ConnectError::Connect(std::io::Error::other(error)))?;
        let idle_since = Rc::new(Cell::new(None::<Instant>));
        let idle = Rc::clone(&idle_since);
        let longest = cluster.idle_timeout.unwrap_or(FOREVER);
        let oldest = cluster.max_connection_duration.unwrap_or(FOREVER);
        let born = Instant::now();
        let pool = place.pool.clone();
        let alive = Alive::new(&cluster.counts);
        // One task per connection, not per request: it lives as long as the connection.
        tokio::task::spawn_local(async move {
            let _alive = alive;
            let mut look = born + longest.min(oldest);
            let in_order = loop {
                tokio::select! {
                    ended = &mut connection => break ended.is_ok(),
                    () = sleep_until(look) => {
                        let since: Option<Instant> = idle.get();
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
            let stream = connection.into_parts().io.into_inner();
            if in_order {
                // It fails only for a socket that is gone.
                let _ = SockRef::from(&stream).set_linger(None);
            }
            drop(stream);
            if let Some(pool) = pool.upgrade() {
                pool.sweep();
            }
        });
        Ok(Self {
            sender,
            idle_since,
            carried: 0,
            local,
            cluster: Arc::clone(cluster),
            born,
            place,
            request: None,
            is_busy: false,
        })
    }

    /// Has it carried all that it may?
    fn is_worn(&self) -> bool {
        let most = self.cluster.max_requests_per_connection;
        let oldest = self.cluster.max_connection_duration;
        most > 0 && self.carried >= most
            || oldest.is_some_and(|oldest| self.born + oldest <= Instant::now())
    }

    /// No request is under way any more.
    fn rest(&mut self) {
        self.request = None;
        if std::mem::take(&mut self.is_busy) {
            self.cluster.counts.mine().rq_active.decrease();
        }
    }

    /// Was it used before? Then the upstream may have closed it while the request was on its way.
    pub(super) fn is_used(&self) -> bool {
        self.carried > 0
    }

    /// This end's address.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        self.local
    }

    pub(super) fn sender(&mut self) -> &mut SendRequest<RequestBody> {
        self.carried += 1;
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
    }
}

/// Counts a connection as long as it lives.
struct Alive(PerWorker<ClusterCounts>);

impl Alive {
    fn new(counts: &PerWorker<ClusterCounts>) -> Self {
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
