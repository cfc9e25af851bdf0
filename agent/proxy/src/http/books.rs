//! What is counted and told of requests: once for each, however it ends.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::header::{self, HeaderName};
use shunt_core::bootstrap::{HttpChain, Requests};
use shunt_core::flow::CloseReason;
use shunt_core::http::record::RequestRecord;
use shunt_core::statistics::{BYTES, ListenerCounts, MILLIS, ManagerCounts, PerWorker};
use shunt_core::workload::WorkloadName;
use tokio::time::Instant;

use super::received::{Head, X_FORWARDED_FOR, X_REQUEST_ID, protocol};
use super::reply::Told;
use crate::account::{FlowSink, Moved};

/// Of a connection, for all of its requests.
pub(super) struct Books {
    manager: PerWorker<ManagerCounts>,
    listener: PerWorker<ListenerCounts>,
    requests: Arc<Requests>,
    sink: FlowSink,
    workload: WorkloadName,
    client: SocketAddr,
    addr: SocketAddr,
}

impl Books {
    pub(super) fn open(
        chain: &HttpChain,
        sink: FlowSink,
        workload: WorkloadName,
        client: SocketAddr,
        addr: SocketAddr,
    ) -> Rc<Self> {
        let manager = chain.counts.clone();
        manager.mine().cx_total.increase();
        manager.mine().cx_active.increase();
        Rc::new(Self {
            manager,
            listener: chain.listener_counts.clone(),
            requests: Arc::clone(&chain.requests),
            sink,
            workload,
            client,
            addr,
        })
    }

    /// Bytes of the connection.
    pub(super) fn moved(&self, (read, written): (u64, u64)) {
        let manager = self.manager.mine();
        manager.rx_bytes.add(read);
        manager.tx_bytes.add(written);
    }

    pub(super) fn begin(self: &Rc<Self>, now: Instant) -> Rc<Entry> {
        let manager = self.manager.mine();
        manager.rq_total.increase();
        manager.rq_active.increase();
        let record = self.sink.reads_requests().then(|| {
            RefCell::new(Box::new(RequestRecord {
                started: SystemTime::now(),
                workload: self.workload.clone(),
                client: self.client,
                listener: self.addr,
                method: String::new(),
                path: String::new(),
                authority: String::new(),
                protocol: "",
                status: None,
                flags: "",
                details: "",
                bytes_received: 0,
                bytes_sent: 0,
                duration: Duration::ZERO,
                upstream_time: None,
                upstream: None,
                cluster: None,
                route: String::new(),
                request_id: String::new(),
                user_agent: String::new(),
                forwarded_for: String::new(),
            }))
        });
        Rc::new(Entry {
            books: Rc::clone(self),
            begun: now,
            record,
            status: Cell::default(),
            received: Cell::default(),
            sent: Cell::default(),
            end: Cell::default(),
            head_only: Cell::default(),
            closes: Cell::default(),
            upgrades: Cell::default(),
            place: Cell::new(Requests::NOWHERE),
        })
    }
}

impl Drop for Books {
    fn drop(&mut self) {
        self.manager.mine().cx_active.decrease();
    }
}

/// Of one request. Its end is the entry's.
pub(super) struct Entry {
    books: Rc<Books>,
    begun: Instant,
    /// When somebody reads it.
    record: Option<RefCell<Box<RequestRecord>>>,
    /// 0: none yet.
    status: Cell<u16>,
    received: Cell<u64>,
    sent: Cell<u64>,
    end: Cell<End>,
    head_only: Cell<bool>,
    closes: Cell<bool>,
    upgrades: Cell<bool>,
    /// Among the listener's requests.
    place: Cell<usize>,
}

/// How far a response came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    /// The client left.
    #[default]
    Open,
    Whole,
    BrokenOff,
    Stuck,
    /// The agent has ended it, and had to.
    Drained,
}

impl Entry {
    /// As it is before anything changes it.
    pub(super) fn asked(&self, head: &Head) {
        self.write(|record| {
            let text = |name: &HeaderName| {
                let value = head.headers.get(name).map(|value| value.as_bytes());
                cut(&String::from_utf8_lossy(value.unwrap_or_default()))
            };
            record.method = cut(head.method.as_str());
            record.path = cut(&head.path);
            record.authority = cut(&head.authority);
            record.protocol = protocol(head.version);
            record.request_id = text(&X_REQUEST_ID);
            record.user_agent = text(&header::USER_AGENT);
            record.forwarded_for = text(&X_FORWARDED_FOR);
        });
    }

    pub(super) fn routed(&self, route: &str) {
        self.write(|record| route.clone_into(&mut record.route));
    }

    pub(super) fn sent_to(&self, cluster: &str, upstream: Option<SocketAddr>) {
        self.place.set(self.books.requests.place(cluster));
        self.write(|record| {
            record.cluster = Some(cut(cluster));
            record.upstream = upstream;
        });
    }

    /// An upstream has answered.
    pub(super) fn upstream_time(&self, time: Option<Duration>) {
        self.write(|record| {
            record.upstream_time = time;
            record.details = "via_upstream";
        });
    }

    pub(super) fn told(&self, told: &Told) {
        self.write(|record| (record.flags, record.details) = (told.flags, told.details));
    }

    pub(super) fn timed_out(&self) {
        self.books.manager.mine().rq_timeout.increase();
    }

    pub(super) fn so_far(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The response is about to begin.
    pub(super) fn answered(&self, status: u16) {
        self.status.set(status);
        self.books.manager.mine().rq.answered(status);
        let requests = self.books.requests.at(self.place.get());
        requests.mine().answered(status);
    }

    /// Of the request's body.
    pub(super) fn received(&self, bytes: usize) {
        self.received.set(self.received.get() + bytes as u64);
    }

    /// Of the response's.
    pub(super) fn sent(&self, bytes: usize) {
        self.sent.set(self.sent.get() + bytes as u64);
    }

    /// The response is one without a body, whatever it has.
    pub(super) fn head_only(&self) {
        self.head_only.set(true);
    }

    /// What the client goes on sending is not read.
    pub(super) fn close(&self) {
        self.closes.set(true);
    }

    pub(super) fn closes(&self) -> bool {
        self.closes.get()
    }

    pub(super) fn is_head_only(&self) -> bool {
        self.head_only.get()
    }

    pub(super) fn whole(&self) {
        if self.end.get() == End::Open {
            self.end.set(End::Whole);
        }
    }

    pub(super) fn broken_off(&self) {
        self.end.set(End::BrokenOff);
    }

    pub(super) fn stuck(&self) {
        self.end.set(End::Stuck);
    }

    /// It is let go on as another protocol, or to be a tunnel.
    pub(super) fn upgrades(&self) {
        if !self.upgrades.replace(true) {
            let manager = self.books.manager.mine();
            manager.upgrades_total.increase();
            manager.upgrades_active.increase();
        }
    }

    pub(super) fn upgrade_refused(&self) {
        self.books.manager.mine().upgrades_refused.increase();
    }

    /// The connection is a tunnel from now on; if nobody else ends it, the agent does.
    pub(super) fn tunnels(&self) {
        self.end.set(End::Drained);
    }

    pub(super) fn tunnelled(&self, reason: CloseReason, client_first: bool) {
        self.end.set(match reason {
            CloseReason::Finished if !client_first => End::BrokenOff,
            CloseReason::UpstreamReset => End::BrokenOff,
            CloseReason::IdleTimeout | CloseReason::HalfCloseTimeout => End::Stuck,
            CloseReason::Drained => End::Drained,
            _ => End::Open,
        });
    }

    fn write(&self, change: impl FnOnce(&mut RequestRecord)) {
        if let Some(record) = &self.record {
            change(&mut record.borrow_mut());
        }
    }
}

/// Bytes of a tunnel.
impl Moved for Entry {
    fn received(&self, bytes: u64) {
        self.received.set(self.received.get() + bytes);
        self.books.moved((bytes, 0));
    }

    fn sent(&self, bytes: u64) {
        self.sent.set(self.sent.get() + bytes);
        self.books.moved((0, bytes));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let manager = self.books.manager.mine();
        if self.upgrades.get() {
            manager.upgrades_active.decrease();
        }
        let duration = self.begun.elapsed();
        manager.rq_active.decrease();
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        manager.rq_time.note(millis, &MILLIS);
        let end = self.end.get();
        if end == End::Open {
            manager.rq_rx_reset.increase();
        }
        let listener = self.books.listener.mine();
        listener.response_bytes.note(self.sent.get(), &BYTES);
        let Some(record) = self.record.take() else {
            return;
        };
        let mut record = record.into_inner();
        record.status = Some(self.status.get()).filter(|status| *status > 0);
        record.bytes_received = self.received.get();
        record.bytes_sent = self.sent.get();
        record.duration = duration;
        (record.flags, record.details) = match end {
            End::Whole => (record.flags, record.details),
            End::Open => ("DC", "downstream_remote_disconnect"),
            End::Stuck => ("SI", "stream_idle_timeout"),
            End::Drained => ("LR", "drained"),
            End::BrokenOff => (
                "UC",
                "upstream_reset_after_response_started{connection_termination}",
            ),
        };
        self.books.sink.answered(&record);
    }
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(RequestRecord::LONGEST)].to_owned()
}
