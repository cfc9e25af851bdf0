//! The layouts of the maps. Ports are in host order, addresses as [`Address`]; every byte is named.

pub mod capacity;

use crate::decision::{Address, Restricts};
use crate::scope::WorkloadKey;

/// A network namespace (`SO_NETNS_COOKIE`), never reused while the host runs.
pub type NetnsCookie = u64;

/// Value of `WORKLOADS`: what the hooks must know of one enrolled workload.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    pub id: u32,
    /// Bits of this type.
    pub flags: u32,
    /// Ports of the outbound listeners on 127.0.0.1 and ::1; 0: that family is not captured.
    pub outbound_ports_v4: [u16; Self::OUTBOUND_PORTS],
    pub outbound_ports_v6: [u16; Self::OUTBOUND_PORTS],
    /// [`Restricts`], outbound and inbound.
    pub restricts: [u32; 2],
    /// What `getsockname` shall say after a captured connect, network order; 0: leave it.
    pub source_v4: u32,
    pub source_v6: [u32; 4],
    /// The [`RuleKey::set`] in force: a new policy is written beside the old one and swapped in here.
    pub rules: u32,
    /// Of the L4 policy, outbound and inbound: how many rules, and bits of this type.
    pub policy: [u32; 2],
}

impl Workload {
    /// Refuse instead of letting through when the agent cannot serve.
    pub const FAIL_CLOSED: u32 = 1;
    pub const CAPTURE_INBOUND: u32 = 2;
    /// Same-node connections to a port without a rule of its own are accelerated.
    pub const ACCELERATE: u32 = 4;
    /// Some ports have a rule of their own, in [`RuleKey::ACCELERATION`].
    pub const ACCELERATION_BY_PORT: u32 = 8;
    /// Connections to a port without a rule of its own may go directly.
    pub const DIRECT: u32 = 1 << 8;
    /// The workload has several addresses of a family: which one a connection will have is not known before.
    pub const SEVERAL_V4: u32 = 1 << 9;
    pub const SEVERAL_V6: u32 = 1 << 10;
    /// In [`Workload::policy`]: the number of rules.
    pub const POLICY_RULES: u32 = 0xffff;
    /// There are more than the hooks go through.
    pub const POLICY_ELSEWHERE: u32 = 1 << 16;
    /// Some ask for the peer's address.
    pub const POLICY_BY_ADDRESS: u32 = 1 << 17;
    /// Where it is not [`Workload::ACCELERATE`]: where their classes are proven, see [`crate::classes`].
    pub const ACCELERATE_PROVEN: u32 = 1 << 11;
    /// Connections to a port are the agent's, as a listener of the configuration is for them: those of the workload, those to
    /// it.
    pub const PROXIED_OUTBOUND: u32 = 1 << 12;
    pub const PROXIED_INBOUND: u32 = 1 << 13;
    /// So are those of the workload to some addresses, see [`RuleKey::listener`].
    pub const PROXIED_BY_ADDRESS: u32 = 1 << 14;
    /// Outbound listeners of one family. All captured connections of a workload go to loopback, where each listener's
    /// port makes room for one ephemeral range (28,000 connections) more. A power of two.
    pub const OUTBOUND_PORTS: usize = 4;

    #[inline(always)]
    pub fn restricts(&self, direction: crate::decision::Direction) -> Restricts {
        Restricts(self.restricts[direction as usize])
    }

    /// Which of the outbound listeners a destination has.
    #[inline(always)]
    pub fn spread(address: &Address, port: u16) -> usize {
        let [a, b, c, d] = address.0;
        let mixed = (a ^ b ^ c ^ d) ^ (u32::from(port) << 16 | u32::from(port));
        // Multiplicative hashing: the upper bits depend on all of the lower ones.
        let bits = Self::OUTBOUND_PORTS.trailing_zeros();
        (mixed.wrapping_mul(0x9E37_79B1) >> (u32::BITS - bits)) as usize
    }
}

/// Key of `RULES`, a longest-prefix trie: the first [`RuleKey::FIXED_BITS`] bits always count.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleKey {
    /// [`Workload::rules`] of whoever they belong to.
    pub set: u32,
    /// One of this type's tables.
    pub table: u32,
    /// An [`Address`], or a port in the upper half of the first word (big endian).
    pub data: [u32; 4],
}

impl RuleKey {
    pub const FIXED_BITS: u32 = 64;
    pub const OUTBOUND_PORTS: u32 = 0;
    pub const INBOUND_PORTS: u32 = 1;
    pub const OUTBOUND_ADDRESSES: u32 = 2;
    pub const INBOUND_ADDRESSES: u32 = 3;
    /// Ports that are not as [`Workload::flags`] says. Value: [`Workload::ACCELERATE`] and the like.
    pub const ACCELERATION: u32 = 4;
    /// With the port in its upper half: destinations that a listener is for.
    pub const LISTENERS: u32 = 5;
    /// Prefix lengths of a whole port and a whole address.
    pub const PORT_BITS: u32 = Self::FIXED_BITS + 16;
    pub const ADDRESS_BITS: u32 = Self::FIXED_BITS + 128;

    #[inline(always)]
    pub fn port(set: u32, direction: u32, port: u16) -> Self {
        let data = [(u32::from(port) << 16).to_be(), 0, 0, 0];
        Self {
            set,
            table: Self::OUTBOUND_PORTS + direction,
            data,
        }
    }

    #[inline(always)]
    pub fn acceleration(set: u32, port: u16) -> Self {
        Self {
            table: Self::ACCELERATION,
            ..Self::port(set, 0, port)
        }
    }

    #[inline(always)]
    pub fn listener(set: u32, port: u16, address: &Address) -> Self {
        Self {
            set,
            table: Self::LISTENERS | u32::from(port) << 16,
            data: address.0,
        }
    }

    #[inline(always)]
    pub fn address(set: u32, direction: u32, address: &Address) -> Self {
        Self {
            set,
            table: Self::OUTBOUND_ADDRESSES + direction,
            data: address.0,
        }
    }
}

/// Value of `RULES`: [`Marks`](crate::decision::Marks) bits, already united with those of every shorter prefix.
pub type RuleMarks = u32;

/// Key of `HANDSHAKES`: a captured connection as its accepting end sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handshake {
    pub netns: NetnsCookie,
    pub client: Address,
    pub client_port: u16,
    pub listener_port: u16,
    pub reserved: u32,
}

/// Where a captured connection was going. Value of `HANDSHAKES`, and part of a client's sk_storage.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    pub address: Address,
    pub port: u16,
    pub reserved: [u16; 3],
}

/// Key of `OWN_FLOWS`: a connection that was decided where it was made, which `sk_lookup` must let through.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnFlow {
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
}

/// Value of `OWN_FLOWS`: who has made the connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowOwner {
    /// Of the workload whose application goes directly; 0: the agent made it. It counts only as long as that workload is
    /// enrolled: afterwards nobody tells of the connection's end.
    pub key: WorkloadKey,
    pub workload: u32,
    pub reserved: u32,
}

impl FlowOwner {
    pub const AGENT: Self = Self {
        key: 0,
        workload: 0,
        reserved: 0,
    };
}

/// Key of `LISTENING`: a port on which somebody in the workload listens beyond loopback. Value: how many sockets.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListeningPort {
    pub workload: u32,
    pub port: u32,
}

/// `SO_COOKIE` of a socket, never reused while the host runs. 0 is nobody's.
pub type SocketCookie = u64;

/// Key of `MEETINGS`: one TCP connection, as both of its ends know it the moment it is established, wherever they are.
/// Two sequence numbers that nobody else has seen prove that two sockets are the ends of one connection, whatever
/// addresses they have.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Meeting {
    /// The next byte that the connecting end will send.
    pub from_connector: u32,
    /// The next byte that the accepting end will send.
    pub from_acceptor: u32,
    pub connector_port: u16,
    pub acceptor_port: u16,
    pub reserved: u32,
}

/// Value of `ENDS`: one end of an accelerated connection, in the socket's own storage. Only its own messages change it,
/// under its lock.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    pub cookie: SocketCookie,
    /// The other end of the same TCP connection; 0 at the connecting end before its first message.
    pub peer: SocketCookie,
    /// Bytes sent while [`End::REDIRECTED`].
    pub sent: u64,
    /// One of this type's.
    pub state: u32,
    /// Bits of this type.
    pub flags: u32,
}

impl End {
    /// In `flags`: the other end is an application's own socket too.
    pub const DIRECT: u32 = 1;
    /// Nothing was sent yet.
    pub const UNDECIDED: u32 = 0;
    /// Messages go into the peer's receive queue.
    pub const REDIRECTED: u32 = 1;
    /// Messages go by TCP, for ever: what went the other way before is read first, the reverse would not be.
    pub const TCP: u32 = 2;
    /// Messages go into the receive queue of the application at the far end of the flow.
    pub const HANDED_OVER: u32 = 3;
}

/// Value of `HANDOFFS`, by an application's socket: it may send to `to` once it has sent exactly `at` bytes to the
/// agent, for those have been delivered. The data plane writes the first two, the kernel the others.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handoff {
    pub to: SocketCookie,
    pub at: u64,
    /// Moved since then.
    pub bytes: u64,
    pub messages: u64,
    /// Bits of this type.
    pub flags: u32,
    pub reserved: u32,
}

impl Handoff {
    /// Both ends are applications' own sockets, and the kernel alone keeps this.
    pub const DIRECT: u32 = 1;
}

/// The option by which the data plane asks one of its sockets for the room in the queue that it writes into: bytes, an
/// `u32`. No kernel knows the level.
pub const ROOM_LEVEL: i32 = 0x5368;
pub const ROOM_OPTION: i32 = 1;

/// `SO_PRIORITY` of those of the agent's upstream sockets that are never accelerated, as who reads and writes them knows TCP only: an
/// HTTP codec, a listener's TCP proxy. TC_PRIO_INTERACTIVE_BULK: queues treat it as they do 0.
pub const BY_TCP_PRIORITY: u32 = 4;

/// How stale, in nanoseconds of CLOCK_MONOTONIC, the gate's time may be before the hooks act as if the agent were dead.
pub const GATE_STALE_NS: u64 = 1_000_000_000;

/// Index into `EVENTS`, a per-CPU array of counters.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    OutboundCaptured = 0,
    OutboundBypassed,
    InboundCaptured,
    InboundBypassed,
    /// Let through (or refused, fail-closed) because the agent's gate was stale or its listener gone.
    GateStale,
    ListenerGone,
    /// A map was full: the connection was let through.
    HandshakesFull,
    OwnFlowsFull,
    StorageFailed,
    /// A socket was made ready to be accelerated, or could not be.
    SocketAccelerated,
    SocketsFull,
    /// Why a direction goes by TCP for ever: its other end was not found, its receiver's queue was full, its receiver
    /// was gone.
    Unpaired,
    QueueFull,
    ReceiverGone,
    /// A direction goes past the agent.
    HandedOver,
    /// A connection goes directly; the agent was not told of something about one.
    OutboundDirect,
    DirectEventLost,
    /// A hook refused a connection: policy denies it, or its service has no endpoint.
    OutboundDenied,
    ServiceEmpty,
    /// An accelerated socket was refused an option that it cannot have.
    OptionRefused,
    /// A direct direction goes by TCP, which is faster for what it sends.
    Bulk,
    /// A direct connection was not paired, as those of its service are bulk.
    BulkService,
    /// A socket was not made ready to be accelerated: its receive buffer is the program's own.
    OwnBuffer,
    /// Something was copied for a tap, or was to be.
    TapCopied,
    TapLost,
    /// A query to a resolver, or a socket's connect(2) to one, was led to the agent; or was not, as the workload asks
    /// more resolvers than there are slots.
    DnsCaptured,
    ResolversFull,
}

impl Event {
    pub const COUNT: u32 = 32;
    pub const NAMES: [&'static str; 27] = [
        "outbound_captured",
        "outbound_bypassed",
        "inbound_captured",
        "inbound_bypassed",
        "gate_stale",
        "listener_gone",
        "handshakes_full",
        "own_flows_full",
        "storage_failed",
        "socket_accelerated",
        "sockets_full",
        "unpaired",
        "queue_full",
        "receiver_gone",
        "handed_over",
        "outbound_direct",
        "direct_event_lost",
        "outbound_denied",
        "service_empty",
        "option_refused",
        "bulk",
        "bulk_service",
        "own_buffer",
        "tap_copied",
        "tap_lost",
        "dns_captured",
        "resolvers_full",
    ];
}

#[cfg(feature = "user")]
#[expect(
    unsafe_code,
    reason = "promising the kernel that these types have no padding"
)]
mod pod;

#[cfg(test)]
mod tests;
