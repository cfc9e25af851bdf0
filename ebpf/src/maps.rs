//! Every map, who writes it and who reads it. Sizes are in `shunt_ebpf_common::maps::capacity`; what happens when a
//! map is full is said where it is written.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{
    Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockHash, SockMap,
};
use shunt_ebpf_common::bulk::BulkShare;
use shunt_ebpf_common::classes::{Class, ClassKey, Verdict};
use shunt_ebpf_common::decision::Address;
use shunt_ebpf_common::dns::{DnsListeners, ResolverKey};
use shunt_ebpf_common::maps::{
    Destination, End, Event, FlowOwner, Handoff, Handshake, ListeningPort, Meeting, NetnsCookie,
    OwnFlow, RuleKey, RuleMarks, SocketCookie, Workload, capacity,
};
use shunt_ebpf_common::policy::{PolicyKey, PolicyRule, Selected};
use shunt_ebpf_common::scope::{Scope, WorkloadKey};
use shunt_ebpf_common::services::{EndpointKey, Service};
use shunt_ebpf_common::tap::Tap;

/// The enrolled workloads. Written by the agent, read by every hook.
#[map(name = "SHUNT_WORKLOADS")]
pub static WORKLOADS: HashMap<WorkloadKey, Workload> =
    HashMap::with_max_entries(capacity::WORKLOADS, BPF_F_NO_PREALLOC);

/// Whose a cgroup's sockets are, where workloads share a namespace. Made by the kernel for every attachment, written by the
/// agent, read by `scope`.
#[expect(
    deprecated,
    reason = "its successor is of the socket's cgroup, this one of the cgroup where the program is attached"
)]
#[map(name = "SHUNT_SCOPES")]
pub static SCOPES: aya_ebpf::maps::CgroupStorage<Scope> = aya_ebpf::maps::CgroupStorage::new();

/// Ports and prefixes of capture policies. Written by the agent, read by connect and sk_lookup.
#[map(name = "SHUNT_RULES")]
pub static RULES: LpmTrie<RuleKey, RuleMarks> =
    LpmTrie::with_max_entries(capacity::RULES, BPF_F_NO_PREALLOC);

/// Where connections that are being made to the agent are going: from the SYN to the last ACK, when `agent_sockets`
/// moves it to the accepted socket. Written by `handshake`.
#[map(name = "SHUNT_HANDSHAKE")]
pub static HANDSHAKES: HashMap<Handshake, Destination> =
    HashMap::with_max_entries(capacity::HANDSHAKES, BPF_F_NO_PREALLOC);

/// Connections that were decided where they are made: the agent's own, and those that go directly to an enrolled workload.
/// Written by `agent_sockets` and `ledger`, read by sk_lookup.
#[map(name = "SHUNT_OWN_FLOWS")]
pub static OWN_FLOWS: HashMap<OwnFlow, FlowOwner> =
    HashMap::with_max_entries(capacity::OWN_FLOWS, BPF_F_NO_PREALLOC);

/// Ports on which workloads listen. Written by `handshake` and the agent, read by sk_lookup.
#[map(name = "SHUNT_LISTENING")]
pub static LISTENING: HashMap<ListeningPort, u32> =
    HashMap::with_max_entries(capacity::LISTENING, BPF_F_NO_PREALLOC);

/// The agent's inbound listeners of one workload, IPv4 and IPv6: every sk_lookup instance has its own.
#[map(name = "SHUNT_LISTENERS")]
pub static LISTENERS: SockMap = SockMap::with_max_entries(2, 0);

/// CLOCK_MONOTONIC of the last proof that the data plane lives. Written by the agent, read by connect and sk_lookup.
#[map(name = "SHUNT_GATE")]
pub static GATE: Array<u64> = Array::with_max_entries(1, 0);

/// Counters. Written by every hook, read by the agent.
#[map(name = "SHUNT_EVENTS")]
pub static EVENTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Event::COUNT, 0);

/// Where an accepted connection was going. Written by `agent_sockets`, read by the data plane. Lives and dies with the
/// socket, so it can be taken for nobody else's.
#[btf_map(name = "SHUNT_ACCEPTED")]
pub static ACCEPTED: SkStorage<Destination> = SkStorage::new();

/// What a socket of a workload is to us. Written by connect and `handshake`, read by `handshake`, getpeername and
/// getsockname. Lives and dies with the socket.
#[btf_map(name = "SHUNT_SOCKETS")]
pub static SOCKETS: SkStorage<SocketNote> = SkStorage::new();

/// The addresses of enrolled workloads. Written by the agent, read by `pairing`. A hint: another network may use the
/// same ones.
#[map(name = "SHUNT_ADDRESSES")]
pub static ADDRESSES: HashMap<Address, NetnsCookie> =
    HashMap::with_max_entries(capacity::ADDRESSES, BPF_F_NO_PREALLOC);

/// Sockets that can be redirected to, and whose messages `sk_msg` sees. Written by `pairing`; the kernel removes a
/// socket when it is closed. An entry is never deleted otherwise: what waits in such a socket would be lost.
#[map(name = "SHUNT_SOCKHASH")]
pub static SOCKHASH: SockHash<SocketCookie> = SockHash::with_max_entries(capacity::SOCKETS, 0);

/// Connecting ends that wait for the accepting ones. Written by `pairing`.
#[map(name = "SHUNT_MEETINGS")]
pub static MEETINGS: HashMap<Meeting, SocketCookie> =
    HashMap::with_max_entries(capacity::SOCKETS, BPF_F_NO_PREALLOC);

/// From a connecting end to its accepting one. Written by `pairing`, read by `sk_msg` and the data plane.
#[map(name = "SHUNT_PEERS")]
pub static PEERS: HashMap<SocketCookie, SocketCookie> =
    HashMap::with_max_entries(capacity::SOCKETS, BPF_F_NO_PREALLOC);

/// The kernel's address of each socket in `SOCKHASH`, to read how full its queue is. Written by `pairing`, read by
/// `sk_msg`. Nobody outside the kernel is given this map.
#[map(name = "SHUNT_QUEUES")]
pub static QUEUES: HashMap<SocketCookie, u64> =
    HashMap::with_max_entries(capacity::SOCKETS, BPF_F_NO_PREALLOC);

/// Sockets that were closed with bytes in their queue. Written by `pairing`, read by the data plane, which resets the
/// flow: by TCP their close would have been a reset.
#[map(name = "SHUNT_CUT")]
pub static CUT: HashMap<SocketCookie, u32> =
    HashMap::with_max_entries(capacity::SOCKETS, BPF_F_NO_PREALLOC);

/// Written by the data plane and `sk_msg`.
#[map(name = "SHUNT_HANDOFFS")]
pub static HANDOFFS: HashMap<SocketCookie, Handoff> =
    HashMap::with_max_entries(capacity::SOCKETS, BPF_F_NO_PREALLOC);

/// The ends of accelerated connections. Written by `pairing` and `sk_msg`, read by the data plane (its own sockets).
#[btf_map(name = "SHUNT_ENDS")]
pub static ENDS: SkStorage<End> = SkStorage::new();

/// What only the kernel knows of an end. Written by `pairing` and `sk_msg`.
#[btf_map(name = "SHUNT_SENDERS")]
pub static SENDERS: SkStorage<Sender> = SkStorage::new();

/// Addresses of L4 services. Written by the agent, read by `services`.
#[map(name = "SHUNT_SERVICES")]
pub static SERVICES: HashMap<Destination, Service> =
    HashMap::with_max_entries(capacity::SERVICES, BPF_F_NO_PREALLOC);

/// Where services' connections go. Written by the agent, read by `services`.
#[map(name = "SHUNT_ENDPOINTS")]
pub static ENDPOINTS: HashMap<EndpointKey, Destination> =
    HashMap::with_max_entries(capacity::ENDPOINTS, BPF_F_NO_PREALLOC);

/// How many connections each service has had. Made by the agent, counted by `services`.
#[map(name = "SHUNT_TURNS")]
pub static TURNS: HashMap<u32, u32> =
    HashMap::with_max_entries(capacity::SERVICES, BPF_F_NO_PREALLOC);

/// L4 policy. Written by the agent, read by `policy`.
#[map(name = "SHUNT_POLICY")]
pub static POLICY: HashMap<PolicyKey, PolicyRule> =
    HashMap::with_max_entries(capacity::POLICY, BPF_F_NO_PREALLOC);

/// Which workloads the selectors of rules choose. Written by the agent, read by `policy`.
#[map(name = "SHUNT_SELECTED")]
pub static SELECTED: HashMap<Selected, u32> =
    HashMap::with_max_entries(capacity::SELECTED, BPF_F_NO_PREALLOC);

/// What became of direct connections: [`DirectEvent`](shunt_ebpf_common::direct::DirectEvent)s. Written by `ledger`, read
/// by the data plane. When it is full an event is lost and counted.
#[map(name = "SHUNT_DIRECT")]
pub static DIRECT_EVENTS: RingBuf = RingBuf::with_byte_size(capacity::DIRECT_EVENTS, 0);

/// Services whose connections were bulk. Written by `bulk`, read by the agent. Nothing is lost with an entry that is
/// forgotten.
#[map(name = "SHUNT_BULK")]
pub static BULK: LruHashMap<ListeningPort, BulkShare> =
    LruHashMap::with_max_entries(capacity::BULK, 0);

/// What is to be copied. Written by the data plane and the agent, read by `tap`.
#[map(name = "SHUNT_TAP")]
pub static TAP: Array<Tap> = Array::with_max_entries(1, 0);

/// The copies: [`Record`](shunt_ebpf_common::tap::Record)s. Written by `tap`, read by the data plane. When it is full a
/// copy is lost and counted.
#[map(name = "SHUNT_TAPPED")]
pub static TAPPED: RingBuf = RingBuf::with_byte_size(capacity::TAPPED, 0);

/// What was learned of classes of sockets. Written by `classes` and `observer`, read by the agent, which removes those of
/// workloads that are gone. When it is full, nothing more is learned.
#[map(name = "SHUNT_CLASSES")]
pub static CLASSES: HashMap<ClassKey, Class> =
    HashMap::with_max_entries(capacity::CLASSES, BPF_F_NO_PREALLOC);

/// Sockets that are watched. Written by `classes` and `observer`.
#[btf_map(name = "SHUNT_WATCHED")]
pub static WATCHED: SkStorage<Watched> = SkStorage::new();

/// Connections by verdict. Written by `classes`, read by the agent.
#[map(name = "SHUNT_VERDICTS")]
pub static VERDICTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Verdict::SLOTS, 0);

/// Where the agent takes queries. Written by the agent, read by `dns`.
#[map(name = "SHUNT_DNS")]
pub static DNS: HashMap<NetnsCookie, DnsListeners> =
    HashMap::with_max_entries(capacity::WORKLOADS, BPF_F_NO_PREALLOC);

/// Which resolver each of those places stands for. Written by `dns`, read by the data plane, emptied by the agent.
#[map(name = "SHUNT_RESOLVERS")]
pub static RESOLVERS: HashMap<ResolverKey, Destination> =
    HashMap::with_max_entries(capacity::RESOLVERS, BPF_F_NO_PREALLOC);

/// A socket that is watched.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Watched {
    pub class: ClassKey,
    /// The number of its first byte in TCP, and how many bytes were read.
    pub start: u32,
    pub taken: u32,
    /// Reads that could not wait and got bytes.
    pub reads: u32,
    /// Bits of this type.
    pub state: u32,
}

impl Watched {
    /// Its class has been told of it.
    pub const TOLD: u32 = 1;
    /// Its fault has been noted.
    pub const FAULTY: u32 = 2;
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Sender {
    /// Where messages are redirected to.
    pub target: SocketCookie,
    /// From `QUEUES`; 0: not looked up yet.
    pub queue: u64,
    /// Where a connecting end waits.
    pub meeting: Meeting,
    /// Large messages in a row.
    pub large: u32,
    /// The tap that has counted `passed`, and how many bytes that are.
    pub tap: u32,
    pub passed: u32,
    /// Messages that were sent of late, since the queue was empty, and their bytes.
    pub messages: u32,
    pub bytes: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct SocketNote {
    /// Where the application wants to go.
    pub destination: Destination,
    /// Where a direct connection goes.
    pub upstream: Destination,
    /// When its SYN was sent, nanoseconds of CLOCK_MONOTONIC.
    pub opened: u64,
    /// Bits of this type.
    pub state: u32,
    /// The workload that a counted listener or a direct connection belongs to.
    pub workload: u32,
    /// The workload at the other end of a direct connection; 0: none of this node's.
    pub peer: u32,
    pub reserved: u32,
}

impl SocketNote {
    pub const CAPTURED: u32 = 1;
    pub const COUNTED_LISTENER: u32 = 2;
    /// Captured or direct, and the SYN is on its way.
    pub const HANDED_OVER: u32 = 4;
    /// Not captured: it goes directly.
    pub const DIRECT: u32 = 8;
    /// Written where a cgroup, not the namespace, says which workload it is.
    pub const SCOPED: u32 = 16;

    pub const EMPTY: Self = {
        let nowhere = Destination {
            address: Address::UNSPECIFIED,
            port: 0,
            reserved: [0; 3],
        };
        Self {
            destination: nowhere,
            upstream: nowhere,
            opened: 0,
            state: 0,
            workload: 0,
            peer: 0,
            reserved: 0,
        }
    };
}

#[inline(always)]
pub fn count(event: Event) {
    if let Some(counter) = EVENTS.get_ptr_mut(event as u32) {
        // SAFETY: a per-CPU slot, and programs of these kinds are not preempted by each other on one CPU in a way
        // that could do worse than lose a count.
        unsafe { *counter += 1 };
    }
}

/// Is the data plane alive? The clock is the one the agent writes.
#[inline(always)]
pub fn gate_is_fresh() -> bool {
    let Some(beat) = GATE.get(0) else {
        return false;
    };
    // SAFETY: the helper takes no argument.
    let now = unsafe { aya_ebpf::helpers::generated::bpf_ktime_get_ns() };
    now.wrapping_sub(*beat) <= shunt_ebpf_common::maps::GATE_STALE_NS
}
