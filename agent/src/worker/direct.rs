//! Books of connections that go directly: the kernel tells what became of them, here it is counted and logged as of
//! those that the agent carries.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use shunt_core::address::{ClientAddr, OriginalDst, Provenance, UpstreamAddr, from_kernel};
use shunt_core::counters::{AgentCounters, FlowCounters};
use shunt_core::flow::{CloseReason, DataPath, Direction, FlowRecord};
use shunt_core::policy::{Action, Decision};
use shunt_core::service::Balanced;
use shunt_core::snapshot::{Enrolled, Snapshot};
use shunt_core::sockets::SocketCookie;
use shunt_core::status::BytesByPath;
use shunt_core::workload::{Mode, WorkloadId};
use shunt_ebpf_common::direct::DirectEvent;
use shunt_ebpf_common::maps::Destination;
use shunt_intercept::ebpf::DirectEvents;
use shunt_proxy::{FlowSink, Moment};

/// How long a workload may stay unknown: afterwards it is one that was withdrawn.
const PATIENCE: Duration = Duration::from_secs(5);
/// Some megabytes.
const MOST_WAITING: usize = 20_000;

/// From linux/tcp_states.h.
const ESTABLISHED: u32 = 1;
const SYN_SENT: u32 = 2;
const CLOSE_WAIT: u32 = 8;

/// See the head of this module.
pub(super) struct DirectFlows {
    events: DirectEvents,
    live: HashMap<SocketCookie, Live>,
    /// Of workloads that this data plane has not heard of yet, and since when. The hooks are in force a moment before it is
    /// told of a workload, and what a dead one did not read is there before the supervisor has told everything.
    waiting: Vec<(Instant, DirectEvent)>,
    sink: FlowSink,
    agent: Arc<AgentCounters>,
}

/// A connection that has begun and not ended, as far as is known.
struct Live {
    opened: DirectEvent,
    started: SystemTime,
    client: Arc<Enrolled>,
    server: Option<Arc<Enrolled>>,
}

impl DirectFlows {
    pub(super) fn new(events: DirectEvents, sink: FlowSink, agent: Arc<AgentCounters>) -> Self {
        Self {
            events,
            live: HashMap::new(),
            waiting: Vec::new(),
            sink,
            agent,
        }
    }

    /// Everything that the kernel has told since the last call. Says how much.
    pub(super) fn catch_up(&mut self, snapshot: &Snapshot) -> usize {
        for (since, event) in std::mem::take(&mut self.waiting) {
            self.take(since, event, snapshot);
        }
        let mut told = 0;
        while let Some(event) = self.events.read() {
            told += 1;
            self.take(Instant::now(), event, snapshot);
        }
        told
    }

    fn take(&mut self, since: Instant, event: DirectEvent, snapshot: &Snapshot) {
        let known = self.live.remove(&event.cookie);
        // Opened before this data plane was there, or the event was lost: what ends has begun.
        let Some(live) = known.or_else(|| Live::begin(event, snapshot)) else {
            if since.elapsed() < PATIENCE && self.waiting.len() < MOST_WAITING {
                self.waiting.push((since, event));
            }
            return;
        };
        if event.kind == DirectEvent::OPENED {
            if self.sink.is_attentive() {
                let opened = record(&live, &event, CloseReason::Drained, None);
                self.sink.goes_on(Moment::Opened, &opened);
            }
            self.live.insert(event.cookie, live);
        } else {
            let (reason, detail) = live.reason(&event, snapshot);
            self.tell(&live, &event, reason, detail);
        }
    }

    /// The kernel tells no more of these workloads' connections; they go on.
    pub(super) fn let_go(&mut self, of: impl Fn(WorkloadId) -> bool) {
        let gone = self.live.extract_if(|_, live| of(live.client.id));
        let gone: Vec<Live> = gone.map(|(_, live)| live).collect();
        for live in gone {
            let detail = "it goes on without the agent: its bytes are not counted";
            self.tell(
                &live,
                &live.opened,
                CloseReason::Drained,
                Some(detail.into()),
            );
        }
    }

    fn tell(
        &self,
        live: &Live,
        event: &DirectEvent,
        close_reason: CloseReason,
        detail: Option<String>,
    ) {
        let bytes_received = event.sent + event.redirected_sent;
        let bytes_sent = event.received + event.redirected_received;
        for flows in live.counters() {
            let direct = flows.on(DataPath::Direct);
            direct.received.fetch_add(bytes_received, Relaxed);
            direct.sent.fetch_add(bytes_sent, Relaxed);
            direct.count_messages(event.messages_sent, event.messages_received);
            direct.active.fetch_sub(1, Relaxed);
            flows.ended.fetch_add(1, Relaxed);
        }
        self.agent.closed(close_reason).fetch_add(1, Relaxed);
        self.sink.ended(&record(live, event, close_reason, detail));
    }
}

fn record(
    live: &Live,
    event: &DirectEvent,
    close_reason: CloseReason,
    detail: Option<String>,
) -> FlowRecord {
    let bytes_received = event.sent + event.redirected_sent;
    let bytes_sent = event.received + event.redirected_received;
    let original = OriginalDst {
        addr: address(event.original),
        source: Provenance::SkStorage,
    };
    FlowRecord {
        started: live.started,
        workload: live.client.name.clone(),
        peer_workload: live.server.as_ref().map(|server| server.name.clone()),
        direction: Direction::Outbound,
        mode: Mode::Ebpf,
        client: ClientAddr(address(event.client)),
        original_dst: Some(original),
        upstream: was_opened(event).then(|| UpstreamAddr(address(event.upstream))),
        upstream_local: None,
        path: DataPath::Direct,
        bytes_received,
        bytes_sent,
        messages_received: event.messages_sent,
        messages_sent: event.messages_received,
        bytes_by_path: BytesByPath {
            direct: bytes_received + bytes_sent,
            ..BytesByPath::default()
        },
        duration: Duration::from_nanos(event.duration),
        close_reason,
        detail,
    }
}

impl Live {
    /// `None`: the workload is not known any more.
    fn begin(opened: DirectEvent, snapshot: &Snapshot) -> Option<Self> {
        let of = |id: u32| snapshot.workloads.get(&WorkloadId(id)).cloned();
        let ago = DirectEvents::age(&opened) + Duration::from_nanos(opened.duration);
        let now = SystemTime::now();
        let live = Self {
            opened,
            started: now.checked_sub(ago).unwrap_or(now),
            client: of(opened.workload)?,
            server: of(opened.peer),
        };
        for flows in live.counters() {
            flows.total.fetch_add(1, Relaxed);
            flows.on(DataPath::Direct).active.fetch_add(1, Relaxed);
        }
        Some(live)
    }

    fn reason(&self, event: &DirectEvent, snapshot: &Snapshot) -> (CloseReason, Option<String>) {
        match event.kind {
            DirectEvent::DENIED => (CloseReason::PolicyDenied, Some(self.denied(event))),
            DirectEvent::UNSERVED => {
                let service = snapshot.services.at(address(event.original));
                let detail = service.map(Balanced::nobody);
                (CloseReason::ConnectFailed, detail)
            }
            _ => ending(event),
        }
    }

    fn denied(&self, event: &DirectEvent) -> String {
        let server = self
            .server
            .as_ref()
            .filter(|_| event.state == Direction::Inbound as u32);
        let (direction, about) = match server {
            Some(server) => (Direction::Inbound, &server.name),
            None => (Direction::Outbound, &self.client.name),
        };
        let decision = Decision {
            action: Action::Deny,
            rule: Some(event.rule as usize),
        };
        decision.denial(direction, about)
    }

    /// It counts at each end that it reached.
    fn counters(&self) -> impl Iterator<Item = &FlowCounters> {
        let reached = self.server.iter().filter(|_| was_opened(&self.opened));
        let server = reached.map(|server| &server.counters.inbound);
        std::iter::once(&self.client.counters.outbound).chain(server)
    }
}

fn was_opened(event: &DirectEvent) -> bool {
    matches!(event.kind, DirectEvent::OPENED | DirectEvent::CLOSED)
}

/// As the client's socket saw it.
fn ending(event: &DirectEvent) -> (CloseReason, Option<String>) {
    let errno = i32::try_from(event.error).unwrap_or(0);
    let error = io::Error::from_raw_os_error(errno);
    let detail = match (event.state, errno) {
        (_, 0) => None,
        (SYN_SENT, _) => Some(format!(
            "{}: cannot connect: {error}",
            address(event.upstream)
        )),
        _ => Some(error.to_string()),
    };
    let reason = match (event.state, errno) {
        (SYN_SENT, 0) => {
            let detail = "closed before it was connected".to_owned();
            return (CloseReason::ClientReset, Some(detail));
        }
        (SYN_SENT, _) if error.kind() == io::ErrorKind::TimedOut => CloseReason::ConnectTimeout,
        (SYN_SENT, _) => CloseReason::ConnectFailed,
        (ESTABLISHED | CLOSE_WAIT, 0) => CloseReason::ClientReset,
        (_, 0) => CloseReason::Finished,
        _ => CloseReason::UpstreamReset,
    };
    (reason, detail)
}

fn address(place: Destination) -> SocketAddr {
    SocketAddr::new(from_kernel(place.address), place.port)
}

impl std::fmt::Debug for DirectFlows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirectFlows")
            .field("live", &self.live.len())
            .finish_non_exhaustive()
    }
}
