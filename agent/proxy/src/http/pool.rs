//! Connections to upstreams that wait for the next request. They belong to the worker.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use shunt_core::cluster::Cluster;
use shunt_core::sockets::{OriginalDstSource, SocketSupply};
use shunt_core::statistics::{ClusterCounts, PerWorker};
use shunt_core::workload::WorkloadId;
use socket2::SockRef;
use tokio::time::{Instant, sleep_until};

use super::body::RequestBody;
use crate::connect::ConnectError;
use crate::origin::{Dial, Dialled, Origin};

/// Bytes of a response's headers; Envoy's.
const MAX_RESPONSE_HEADERS: usize = 60 << 10;
const MAX_RESPONSE_HEADER_LINES: usize = 100;
/// Places that are kept whether somebody waits there or not.
const FEW: usize = 64;
/// What nobody will wait for.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// By cluster, endpoint and origin; the one used last is used next, so that those which are not needed grow old.
#[derive(Clone, Default)]
pub(crate) struct Upstreams {
    idle: Rc<RefCell<Idle>>,
    /// Nothing is kept any more.
    closed: Rc<Cell<bool>>,
    /// With so many places of a cluster, those are looked for at which nobody waits any more.
    many: Rc<Cell<usize>>,
}

type Idle = HashMap<String, HashMap<Place, Vec<Link>>>;

/// Connections to an endpoint which are one as good as another.
type Place = (SocketAddr, Origin);

/// A connection to an upstream, with no request under way.
pub(super) struct Link {
    sender: SendRequest<RequestBody>,
    idle_since: Rc<Cell<Option<Instant>>>,
    carried: u32,
    local: Option<SocketAddr>,
    cluster: String,
    place: Place,
    /// The workload whose namespace it leaves from was withdrawn.
    is_stale: Option<Arc<AtomicBool>>,
    most: u32,
    counts: PerWorker<ClusterCounts>,
    /// A request is under way.
    is_busy: bool,
}

impl Upstreams {
    /// One that waits, or a new one.
    ///
    /// # Errors
    /// The endpoint cannot be connected to, or is not to be.
    pub(super) async fn take<S: SocketSupply, O: OriginalDstSource>(
        &self,
        dial: &Dial<'_, S, O>,
        cluster: &Cluster,
        endpoint: SocketAddr,
    ) -> Result<Link, ConnectError> {
        dial.judge(endpoint)?;
        let place = (endpoint, dial.origin);
        while let Some(mut link) = self.waiting(&cluster.name, place) {
            link.idle_since.set(None);
            if !link.sender.is_closed() && link.sender.ready().await.is_ok() {
                return Ok(link);
            }
        }
        let dialled = dial.connect(endpoint, cluster.connect_timeout).await;
        let dialled = dialled.inspect_err(|error| {
            let counts = cluster.counts.mine();
            counts.cx_total.increase();
            counts.cx_connect_fail.increase();
            if matches!(error, ConnectError::Timeout(_)) {
                counts.cx_connect_timeout.increase();
            }
        })?;
        let workload = dial.snapshot.workloads.get(&dial.origin.workload());
        let withdrawn = workload.map(|workload| Arc::clone(&workload.withdrawn));
        let mut link = Link::begin(dialled, cluster, place).await?;
        link.is_stale = withdrawn;
        Ok(link)
    }

    /// Ends those that wait, in order, and keeps none from now on.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.idle.borrow_mut().clear();
    }

    /// Ends those of a workload that is leaving.
    pub(crate) fn forget(&self, workload: WorkloadId) {
        for places in self.idle.borrow_mut().values_mut() {
            places.retain(|(_, origin), _| origin.workload() != workload);
        }
    }

    fn waiting(&self, cluster: &str, place: Place) -> Option<Link> {
        self.idle
            .borrow_mut()
            .get_mut(cluster)?
            .get_mut(&place)?
            .pop()
    }

    /// Its exchange has ended in order.
    pub(super) fn give_back(&self, mut link: Link) {
        link.rest();
        let is_worn = link.most > 0 && link.carried >= link.most;
        let is_stale = link
            .is_stale
            .as_ref()
            .is_some_and(|stale| stale.load(Relaxed));
        if self.closed.get() || link.sender.is_closed() || is_worn || is_stale {
            return;
        }
        link.idle_since.set(Some(Instant::now()));
        let mut all = self.idle.borrow_mut();
        if !all.contains_key(&link.cluster) {
            all.insert(link.cluster.clone(), HashMap::new());
        }
        if let Some(places) = all.get_mut(&link.cluster) {
            let links = places.entry(link.place).or_default();
            // Those that were closed meanwhile.
            links.retain(|link| !link.sender.is_closed());
            links.push(link);
            // Clients that delivered connections are made for may never come again.
            if places.len() > self.many.get().max(FEW) {
                places.retain(|_, links| {
                    links.retain(|link| !link.sender.is_closed());
                    !links.is_empty()
                });
                self.many.set(2 * places.len());
            }
        }
    }
}

impl Link {
    async fn begin(
        dialled: Dialled,
        cluster: &Cluster,
        place: Place,
    ) -> Result<Self, ConnectError> {
        let Dialled { stream, held } = dialled;
        let local = stream.local_addr().ok();
        let (sender, mut connection) = http1::Builder::new()
            .max_headers(MAX_RESPONSE_HEADER_LINES)
            .max_header_size(MAX_RESPONSE_HEADERS)
            .handshake::<_, RequestBody>(TokioIo::new(stream))
            .await
            .map_err(|error| ConnectError::Connect(std::io::Error::other(error)))?;
        let idle_since = Rc::new(Cell::new(None));
        let idle = Rc::clone(&idle_since);
        let longest = cluster.idle_timeout.unwrap_or(FOREVER);
        let alive = Alive::new(&cluster.counts);
        // One task per connection, not per request: it lives as long as the connection.
        tokio::task::spawn_local(async move {
            let _kept = (held, alive);
            let mut look = Instant::now() + longest;
            loop {
                tokio::select! {
                    ended = &mut connection => {
                        if ended.is_ok() {
                            let stream = connection.into_parts().io.into_inner();
                            // It fails only for a socket that is gone.
                            let _ = SockRef::from(&stream).set_linger(None);
                        }
                        return;
                    }
                    () = sleep_until(look) => match idle.get() {
                        Some(since) if since + longest <= Instant::now() => {
                            let stream = connection.into_parts().io.into_inner();
                            let _ = SockRef::from(&stream).set_linger(None);
                            return;
                        }
                        Some(since) => look = since + longest,
                        None => look = Instant::now() + longest,
                    },
                }
            }
        });
        Ok(Self {
            sender,
            idle_since,
            carried: 0,
            local,
            cluster: cluster.name.clone(),
            place,
            is_stale: None,
            most: cluster.max_requests_per_connection,
            counts: cluster.counts.clone(),
            is_busy: false,
        })
    }

    /// No request is under way any more.
    fn rest(&mut self) {
        if std::mem::take(&mut self.is_busy) {
            self.counts.mine().rq_active.decrease();
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
        let counts = self.counts.mine();
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
