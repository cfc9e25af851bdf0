//! What is counted while a flow lives, and told when it ends: once, however it ends.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, SystemTime};

use shunt_core::address::{ClientAddr, OriginalDst, UpstreamAddr};
use shunt_core::counters::{AgentCounters, FlowCounters, WorkloadCounters};
use shunt_core::dns::QueryRecord;
use shunt_core::flow::{CloseReason, DataPath, Direction, FlowRecord};
use shunt_core::http::record::RequestRecord;
use shunt_core::snapshot::Enrolled;
use shunt_core::status::BytesByPath;
use shunt_core::workload::WorkloadName;

/// Who is told of flows. Called on worker threads: it must not block.
pub trait FlowWitness: Send + Sync {
    fn ended(&self, record: &FlowRecord);

    /// Does anybody want to know of flows before they end?
    fn is_attentive(&self) -> bool {
        false
    }

    /// Does anybody want to know of requests?
    fn reads_requests(&self) -> bool {
        false
    }

    /// A request's response has ended; called only for those who want to know.
    fn answered(&self, _record: &RequestRecord) {}

    /// A DNS query has its answer, or will have none; called as [`FlowWitness::answered`].
    fn resolved(&self, _record: &QueryRecord) {}

    /// What is known of a living flow; called only for the attentive.
    fn goes_on(&self, _moment: Moment, _record: &FlowRecord) {}
}

/// What there is to tell of a living flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It is connected.
    Opened,
    /// It has taken a faster path.
    Accelerated,
}

impl<F: Fn(&FlowRecord) + Send + Sync> FlowWitness for F {
    fn ended(&self, record: &FlowRecord) {
        self(record);
    }
}

/// See [`FlowWitness`].
pub type FlowSink = Arc<dyn FlowWitness>;

/// Counts a flow and its bytes; dropping it ends the flow's books. A flow whose task is dropped has been
/// [`Drained`](CloseReason::Drained).
pub(crate) struct Account {
    record: FlowRecord,
    started: Instant,
    sink: FlowSink,
    agent: Arc<AgentCounters>,
    own: Arc<WorkloadCounters>,
    /// The workload at the other end, if it is one of this node's and the flow passes the agent only here.
    peer: Option<Arc<WorkloadCounters>>,
    also: Vec<Rc<dyn Moved>>,
    is_client_first: bool,
}

/// Who else counts a flow's bytes.
pub(crate) trait Moved {
    /// From the client.
    fn received(&self, bytes: u64);
    /// To the client.
    fn sent(&self, bytes: u64);
}

impl Account {
    pub(crate) fn open(
        workload: &Enrolled,
        direction: Direction,
        client: ClientAddr,
        agent: Arc<AgentCounters>,
        sink: FlowSink,
    ) -> Self {
        agent.connections_active.fetch_add(1, Relaxed);
        begin(workload.counters.of(direction));
        let record = FlowRecord {
            started: SystemTime::now(),
            workload: workload.name.clone(),
            peer_workload: None,
            direction,
            mode: workload.mode,
            client,
            original_dst: None,
            upstream: None,
            upstream_local: None,
            path: DataPath::Copy,
            bytes_received: 0,
            bytes_sent: 0,
            messages_received: 0,
            messages_sent: 0,
            bytes_by_path: BytesByPath::default(),
            duration: std::time::Duration::ZERO,
            close_reason: CloseReason::Drained,
            detail: None,
        };
        let own = Arc::clone(&workload.counters);
        Self {
            record,
            started: Instant::now(),
            sink,
            agent,
            own,
            peer: None,
            also: Vec::new(),
            is_client_first: false,
        }
    }

    pub(crate) fn workload(&self) -> &WorkloadName {
        &self.record.workload
    }

    pub(crate) fn client(&self) -> ClientAddr {
        self.record.client
    }

    /// What the application connected to, once it is known.
    pub(crate) fn dialled(&self) -> Option<SocketAddr> {
        self.record.original_dst.map(|original| original.addr)
    }

    pub(crate) fn original_dst(&mut self, original: OriginalDst) {
        self.record.original_dst = Some(original);
    }

    pub(crate) fn peer(&mut self, name: WorkloadName) {
        self.record.peer_workload = Some(name);
    }

    /// The flow counts at the other end too: nobody else will.
    pub(crate) fn count_at_peer(&mut self, peer: &Enrolled) {
        if self.peer.is_some() {
            return;
        }
        begin(peer.counters.of(Direction::Inbound));
        self.peer = Some(Arc::clone(&peer.counters));
    }

    /// Of several, one after the other, the last is told of.
    pub(crate) fn upstream(&mut self, upstream: SocketAddr, local: Option<SocketAddr>) {
        let before = self.record.upstream.replace(UpstreamAddr(upstream));
        // A connect hook made the client's own address loopback; what the destination sees is what people look for.
        if let Some(local) = local.filter(|_| self.record.client.0.ip().is_loopback()) {
            self.record.client.0.set_ip(local.ip().to_canonical());
        }
        self.record.upstream_local = local;
        if before.is_none() {
            self.goes_on(Moment::Opened);
        }
    }

    /// From now on.
    pub(crate) fn count_also(&mut self, also: Rc<dyn Moved>) {
        self.also.push(also);
    }

    pub(crate) fn received(&mut self, path: DataPath, bytes: u64) {
        self.record.bytes_received += bytes;
        self.also.iter().for_each(|also| also.received(bytes));
        self.moved(path, bytes);
        self.counters().for_each(|flows| {
            flows.on(path).received.fetch_add(bytes, Relaxed);
        });
    }

    pub(crate) fn sent(&mut self, path: DataPath, bytes: u64) {
        self.record.bytes_sent += bytes;
        self.also.iter().for_each(|also| also.sent(bytes));
        self.moved(path, bytes);
        self.counters().for_each(|flows| {
            flows.on(path).sent.fetch_add(bytes, Relaxed);
        });
    }

    /// What bytes past the agent were sent in.
    pub(crate) fn messages(&mut self, path: DataPath, received: u64, sent: u64) {
        self.record.messages_received += received;
        self.record.messages_sent += sent;
        self.counters()
            .for_each(|flows| flows.on(path).count_messages(received, sent));
    }

    pub(crate) fn agent(&self) -> &Arc<AgentCounters> {
        &self.agent
    }

    /// A connection is on the fastest path that it has taken: its small answers are copied while it splices.
    fn moved(&mut self, path: DataPath, bytes: u64) {
        self.record.bytes_by_path.add(path, bytes);
        if path as usize > self.record.path as usize {
            self.counters().for_each(|flows| {
                flows.on(path).active.fetch_add(1, Relaxed);
                flows.on(self.record.path).active.fetch_sub(1, Relaxed);
            });
            self.record.path = path;
            self.goes_on(Moment::Accelerated);
        }
    }

    fn goes_on(&mut self, moment: Moment) {
        if self.sink.is_attentive() {
            self.record.duration = self.started.elapsed();
            self.sink.goes_on(moment, &self.record);
        }
    }

    /// Who was the first to end in order: the client, or the other side.
    pub(crate) fn ended_first(&mut self, is_client: bool) {
        self.is_client_first = is_client;
    }

    pub(crate) fn is_client_first(&self) -> bool {
        self.is_client_first
    }

    pub(crate) fn ended(&mut self, reason: CloseReason, detail: Option<String>) {
        self.record.close_reason = reason;
        self.record.detail = detail;
    }

    fn counters(&self) -> impl Iterator<Item = &FlowCounters> {
        let own = self.own.of(self.record.direction);
        std::iter::once(own).chain(self.peer.as_deref().map(|peer| peer.of(Direction::Inbound)))
    }
}

/// Every connection begins by copying.
fn begin(flows: &FlowCounters) {
    flows.total.fetch_add(1, Relaxed);
    flows.on(DataPath::Copy).active.fetch_add(1, Relaxed);
}

impl Drop for Account {
    fn drop(&mut self) {
        self.counters().for_each(|flows| {
            flows.on(self.record.path).active.fetch_sub(1, Relaxed);
            flows.ended.fetch_add(1, Relaxed);
        });
        self.agent
            .closed(self.record.close_reason)
            .fetch_add(1, Relaxed);
        self.agent.connections_active.fetch_sub(1, Relaxed);
        self.record.duration = self.started.elapsed();
        self.sink.ended(&self.record);
    }
}
