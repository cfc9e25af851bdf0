//! Connections to upstreams that wait for the next request. They belong to the worker.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use shunt_core::cluster::{Cluster, Held, Resource};
use shunt_core::snapshot::Snapshot;
use shunt_core::sockets::{OriginalDstSource, SocketSupply};
use shunt_core::workload::WorkloadId;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::link::{Among, Link};
use crate::connect::ConnectError;
use crate::origin::{Dial, Dialled, Origin};

/// Ways of a cluster that are kept whether somebody waits there or not.
const FEW: usize = 64;

/// Of a cluster's connections that are made in one client's name each, so many wait in a worker. Of more, a quarter of this
/// is closed, those first that have waited longest: what a client that comes back pays is a connection within the node.
const MOST_DELIVERED: usize = 128;
/// And for so long, if the cluster says no less: nobody but that client can use them, and it may never come again.
const DELIVERED_IDLE: Duration = Duration::from_secs(60);

/// By cluster, endpoint and origin; the one used last is used next, so that those which are not needed grow old.
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
    pools: HashMap<Way, Rc<Pool>>,
    /// With so many ways, those are looked for that nobody has gone lately.
    many: usize,
    /// Connections that wait, each for one client.
    delivered: Rc<Cell<usize>>,
}

/// Connections to an endpoint of which one is as good as another.
type Way = (SocketAddr, Origin);

#[derive(Default)]
pub(super) struct Pool {
    idle: RefCell<Vec<Link>>,
    /// All that there are.
    open: Cell<usize>,
    /// Requests that wait for one of them.
    waiting: Cell<usize>,
    freed: Notify,
    /// Its cluster or endpoint is gone: nothing is kept.
    retired: Cell<bool>,
    /// Those of its cluster, if its own are for one client.
    delivered: Option<Rc<Cell<usize>>>,
}

/// One of a pool's connections, until it is dropped.
pub(super) struct Place {
    pub(super) pool: Weak<Pool>,
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
    pub(super) async fn take<S: SocketSupply, O: OriginalDstSource>(
        &self,
        dial: &Dial<'_, S, O>,
        cluster: &Arc<Cluster>,
        endpoint: SocketAddr,
    ) -> Result<Link, NoLink> {
        dial.judge(endpoint).map_err(NoLink::Connect)?;
        let pool = self.pool(cluster, (endpoint, dial.origin));
        let mut link = match pool.ready().await {
            Some(link) => link,
            // Apart, as few requests do: what is awaited here is moved with every request.
            None => Box::pin(pool.wait(dial, cluster, endpoint)).await?,
        };
        match cluster.hold(Resource::Request) {
            Some(held) => link.carry(held),
            None => {
                self.give_back(link);
                return Err(NoLink::Overflow);
            }
        }
        Ok(link)
    }

    fn pool(&self, cluster: &Arc<Cluster>, way: Way) -> Rc<Pool> {
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
            many: FEW,
            delivered: Rc::default(),
        });
        if known.pools.len() >= known.many {
            // Clients that delivered connections are made for may never come again.
            known
                .pools
                .retain(|_, pool| pool.open.get() > 0 || Rc::strong_count(pool) > 1);
            known.many = FEW.max(2 * known.pools.len());
        }
        let delivered = matches!(way.1, Origin::Inbound { .. }).then(|| &known.delivered);
        let new = || Pool {
            delivered: delivered.cloned(),
            ..Pool::default()
        };
        Rc::clone(known.pools.entry(way).or_insert_with(|| Rc::new(new())))
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
            if now.is_some_and(|now| Arc::ptr_eq(now, &known.cluster)) {
                all.insert(Arc::as_ptr(&known.cluster), known);
                continue;
            }
            let now = now.filter(|now| now.connects_as(&known.cluster));
            known.pools.retain(|(addr, _), pool| {
                let stays = now.is_some_and(|now| now.to_original.is_some() || now.has(*addr));
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

    /// Ends those of a workload that is leaving.
    pub(crate) fn forget(&self, workload: WorkloadId) {
        for known in self.0.clusters.borrow_mut().values_mut() {
            known.pools.retain(|(_, origin), pool| {
                let stays = origin.workload() != workload;
                if !stays {
                    pool.retire();
                }
                stays
            });
        }
    }

    /// Its exchange has ended in order.
    pub(super) fn give_back(&self, mut link: Link) {
        link.rest();
        let Some(pool) = link.pool() else {
            return;
        };
        if !pool.retired.get() && !link.is_spent() {
            link.begins_to_wait(pool.delivered.as_ref().map(Among::new));
            pool.idle.borrow_mut().push(link);
            pool.freed.notify_one();
            if let Some(delivered) = &pool.delivered
                && delivered.get() > MOST_DELIVERED
            {
                self.thin(delivered);
            }
        }
    }

    /// Closes those that have waited longest.
    fn thin(&self, delivered: &Rc<Cell<usize>>) {
        let all = self.0.clusters.borrow();
        let of_cluster = |known: &&Known| Rc::ptr_eq(&known.delivered, delivered);
        let Some(known) = all.values().find(of_cluster) else {
            return;
        };
        let pools = || {
            let pools = known.pools.values();
            pools.filter(|pool| pool.delivered.is_some())
        };
        let mut since: Vec<Instant> = pools().flat_map(|pool| pool.idle_since()).collect();
        let quarter = MOST_DELIVERED / 4;
        if since.len() >= quarter {
            let (_, last, _) = since.select_nth_unstable(quarter - 1);
            let is_old = |link: &Link| link.idle_since().is_some_and(|since| since <= *last);
            pools().for_each(|pool| pool.close_if(is_old));
        }
    }
}

/// A connection outside of any pool, counted when there is none.
pub(super) async fn connect<S: SocketSupply, O: OriginalDstSource>(
    dial: &Dial<'_, S, O>,
    cluster: &Cluster,
    endpoint: SocketAddr,
) -> Result<Dialled, NoLink> {
    let dialled = dial.connect(endpoint, cluster.connect_timeout).await;
    let dialled = dialled.inspect_err(|error| {
        let counts = cluster.counts.mine();
        counts.cx_total.increase();
        counts.cx_connect_fail.increase();
        if matches!(error, ConnectError::Timeout(_)) {
            counts.cx_connect_timeout.increase();
        }
    });
    dialled.map_err(NoLink::Connect)
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
            let mut link = {
                let mut idle = self.idle.borrow_mut();
                // Not one whose upstream has not even taken its last request, as long as there are others.
                let ready = idle.iter().rposition(Link::is_ready);
                match ready {
                    Some(at) => idle.remove(at),
                    None => idle.pop()?,
                }
            };
            if !link.is_spent() && link.wakes().await {
                return Some(link);
            }
        }
    }

    async fn wait<S: SocketSupply, O: OriginalDstSource>(
        self: &Rc<Self>,
        dial: &Dial<'_, S, O>,
        cluster: &Arc<Cluster>,
        endpoint: SocketAddr,
    ) -> Result<Link, NoLink> {
        let _pending = cluster.hold(Resource::Pending).ok_or(NoLink::Overflow)?;
        loop {
            if let Some(place) = self.place(cluster) {
                let dialled = connect(dial, cluster, endpoint).await?;
                let longest = self.longest_idle(cluster);
                let link = Link::begin(dialled, cluster, place, longest, dial.is_withdrawn());
                return link.await.map_err(NoLink::Connect);
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

    /// A connection waits for its next request for so long; `None`: for ever.
    fn longest_idle(&self, cluster: &Cluster) -> Option<Duration> {
        let of_cluster = cluster.idle_timeout;
        match self.delivered {
            Some(_) => Some(of_cluster.map_or(DELIVERED_IDLE, |idle| idle.min(DELIVERED_IDLE))),
            None => of_cluster,
        }
    }

    /// Takes out those that have ended.
    pub(super) fn sweep(&self) {
        self.close_if(Link::is_spent);
    }

    fn close_if(&self, is_to_go: impl Fn(&Link) -> bool) {
        let gone: Vec<Link> = {
            let mut idle = self.idle.borrow_mut();
            idle.extract_if(.., |link| is_to_go(link)).collect()
        };
        drop(gone);
    }

    fn idle_since(&self) -> Vec<Instant> {
        let idle = self.idle.borrow();
        idle.iter().filter_map(Link::idle_since).collect()
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

#[cfg(test)]
mod tests;
