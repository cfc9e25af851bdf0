//! What connect4 and connect6 have in common. Whatever cannot be decided lets the connection through untouched.
//!
//! ```text
//! not TCP, not enrolled, part of MPTCP, agent's own mark, rules say no -> ALLOW
//! rewritten a moment ago by a hook of a nearer cgroup -> ALLOW
//! nothing needs the proxy                             -> note it on the socket, ALLOW
//! gate stale, listener gone                           -> ALLOW, or REFUSE when the workload fails closed
//! else: note the destination on the socket            -> REWRITE
//! ```

use core::ptr::{null_mut, read_volatile};

use aya_ebpf::bindings::{
    BPF_F_CURRENT_NETNS, BPF_SK_STORAGE_GET_F_CREATE, BPF_TCP_LISTEN, bpf_sock, bpf_sock_addr,
    bpf_sock_tuple,
};
use aya_ebpf::helpers::bpf_skc_to_mptcp_sock;
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_set_retval, bpf_sk_release, bpf_sk_storage_delete,
    bpf_sk_storage_get, bpf_skc_lookup_tcp,
};
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;
use shunt_ebpf_common::decision::{Address, Direction, Question, Verdict, decide};
use shunt_ebpf_common::maps::{Destination, Event, Workload};

use crate::direct::{self, Route};
use crate::maps::{SOCKETS, SocketNote, WORKLOADS, count, gate_is_fresh};
use crate::rules::WorkloadRules;

pub const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

const IPPROTO_TCP: u32 = 6;
const ECONNREFUSED: i32 = 111;

/// Marks of the agent's own sockets; set when the programs are loaded.
#[unsafe(no_mangle)]
pub static MARK_UPSTREAM: u32 = 0;
#[unsafe(no_mangle)]
pub static MARK_DELIVERY: u32 = 0;

pub enum Outcome {
    Return(i32),
    /// Go to the agent's listener on loopback, this port.
    Rewrite {
        port: u16,
    },
    /// Go there without the agent.
    Direct(Route),
}

#[inline(always)]
pub fn is_own_mark(mark: u32) -> bool {
    // SAFETY: reading our own static; volatile since the loader changes it.
    is_upstream_mark(mark) || mark == unsafe { read_volatile(&raw const MARK_DELIVERY) }
}

#[inline(always)]
pub fn is_upstream_mark(mark: u32) -> bool {
    // SAFETY: as above.
    mark == unsafe { read_volatile(&raw const MARK_UPSTREAM) }
}

/// `address` is canonical: IPv4 in its mapped form, also when the socket is an IPv6 one.
#[inline(always)]
pub fn connect(ctx: *mut bpf_sock_addr, address: Address, port: u16) -> Outcome {
    // SAFETY: `ctx` is the program's context.
    if unsafe { (*ctx).protocol } != IPPROTO_TCP {
        return Outcome::Return(ALLOW);
    }
    // SAFETY: as above; the verifier knows the pointer as a socket.
    let sk = unsafe { (*ctx).__bindgen_anon_1.sk };
    if sk.is_null() {
        return Outcome::Return(ALLOW);
    }
    // SAFETY: as above.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.cast()) };
    // SAFETY: the agent replaces an entry as a whole, and the kernel frees the old one when no program uses it.
    let Some(workload) = (unsafe { WORKLOADS.get(&cookie) }) else {
        forget(sk);
        return Outcome::Return(ALLOW);
    };
    if is_subflow(sk) {
        return Outcome::Return(ALLOW);
    }
    if address.is_loopback() && is_rewritten(sk, workload, port) {
        return Outcome::Return(ALLOW);
    }
    match choose(ctx, sk, workload, address, port) {
        Outcome::Rewrite { port: listener } => {
            let note = SocketNote {
                destination: place(address, port),
                state: SocketNote::CAPTURED,
                ..SocketNote::EMPTY
            };
            if remember(sk, note) {
                count(Event::OutboundCaptured);
                Outcome::Rewrite { port: listener }
            } else {
                count(Event::StorageFailed);
                Outcome::Return(ALLOW)
            }
        }
        Outcome::Direct(route) => {
            let note = SocketNote {
                destination: place(address, port),
                upstream: route.upstream,
                state: SocketNote::DIRECT,
                workload: workload.id,
                peer: route.peer,
                ..SocketNote::EMPTY
            };
            if remember(sk, note) {
                count(Event::OutboundDirect);
            } else {
                count(Event::StorageFailed);
            }
            Outcome::Direct(route)
        }
        other => {
            forget(sk);
            other
        }
    }
}

/// A part of an MPTCP connection. It says it is TCP, but the addresses which its application sees are those of
/// another socket.
#[inline(always)]
fn is_subflow(sk: *mut bpf_sock) -> bool {
    // SAFETY: the verifier knows `sk` as a socket.
    unsafe { !bpf_skc_to_mptcp_sock(sk.cast()).is_null() }
}

/// Cgroups nest: when an ancestor has these programs too, they run again in the same connect(2), on what they wrote.
/// A socket whose capture went as far as a handshake is past that: there the application itself asks for loopback.
#[inline(always)]
fn is_rewritten(sk: *mut bpf_sock, workload: &Workload, port: u16) -> bool {
    let note = note_of(sk.cast());
    if note.is_null() {
        return false;
    }
    // SAFETY: checked for null.
    let (state, destination) = unsafe { ((*note).state, (*note).destination.address) };
    let listeners = listener_ports(workload, &destination);
    state & (SocketNote::CAPTURED | SocketNote::HANDED_OVER) == SocketNote::CAPTURED
        && (0..Workload::OUTBOUND_PORTS).any(|index| port == listeners.at(index))
}

/// The ports of the listeners of one family.
#[derive(Clone, Copy)]
struct Ports([u16; Workload::OUTBOUND_PORTS]);

impl Ports {
    /// By shifting: the verifier knows no pointer into the stack that varies.
    #[inline(always)]
    fn at(self, index: usize) -> u16 {
        let [a, b, c, d] = self.0.map(u64::from);
        let all = a | b << 16 | c << 32 | d << 48;
        (all >> (index % Workload::OUTBOUND_PORTS * 16)) as u16
    }
}

#[inline(always)]
fn listener_ports(workload: &Workload, address: &Address) -> Ports {
    Ports(if address.is_v4() {
        workload.outbound_ports_v4
    } else {
        workload.outbound_ports_v6
    })
}

/// The destination's own listener. A socket that has a local port already may have the next one: two destinations
/// from one port are two connections only as long as they differ on loopback too.
#[inline(always)]
fn listener_port(
    ctx: *mut bpf_sock_addr,
    sk: *mut bpf_sock,
    ports: Ports,
    to: &Destination,
) -> u16 {
    let own = Workload::spread(&to.address, to.port);
    // SAFETY: the verifier knows `sk` as a socket.
    let source_port = unsafe { (*sk).src_port } as u16;
    if source_port != 0 {
        for next in 0..Workload::OUTBOUND_PORTS {
            let candidate = ports.at(own + next);
            if !is_taken(ctx, sk, to.address.is_v4(), source_port, candidate) {
                return candidate;
            }
        }
    }
    ports.at(own)
}

/// Has this socket's address and port a connection to that listener already?
#[inline(always)]
fn is_taken(
    ctx: *mut bpf_sock_addr,
    sk: *mut bpf_sock,
    v4: bool,
    source_port: u16,
    listener: u16,
) -> bool {
    let mut tuple = loopback(v4, 0);
    // SAFETY: writing the arm of the family; the verifier knows `sk` as a socket. As the client's end would receive.
    unsafe {
        if v4 {
            let ends = &mut tuple.__bindgen_anon_1.ipv4;
            (ends.saddr, ends.sport) = (ends.daddr, listener.to_be());
            ends.dport = source_port.to_be();
            if (*sk).src_ip4 != 0 {
                ends.daddr = (*sk).src_ip4;
            }
        } else {
            let ends = &mut tuple.__bindgen_anon_1.ipv6;
            (ends.saddr, ends.sport) = (ends.daddr, listener.to_be());
            ends.dport = source_port.to_be();
            let words = (&raw const (*sk).src_ip6).cast::<u32>();
            let bound = [
                read_volatile(words),
                read_volatile(words.add(1)),
                read_volatile(words.add(2)),
                read_volatile(words.add(3)),
            ];
            if bound[0] | bound[1] | bound[2] | bound[3] != 0 {
                ends.daddr = bound;
            }
        }
    }
    !matches!(look_up(ctx, &mut tuple, v4), None | Some(BPF_TCP_LISTEN))
}

#[inline(always)]
fn choose(
    ctx: *mut bpf_sock_addr,
    sk: *mut bpf_sock,
    workload: &Workload,
    address: Address,
    port: u16,
) -> Outcome {
    let ports = listener_ports(workload, &address);
    // The mark always counts: an ancestor of the agent's cgroup may have these programs.
    // SAFETY: the verifier knows `sk` as a socket.
    let (mark, bound_to_device) = unsafe { ((*sk).mark, (*sk).bound_dev_if != 0) };
    if ports.at(0) == 0 || is_own_mark(mark) {
        return Outcome::Return(ALLOW);
    }
    let question = Question {
        direction: Direction::Outbound,
        address,
        port,
        bound_to_device,
    };
    let rules = WorkloadRules {
        workload,
        direction: Direction::Outbound,
    };
    if decide(&question, &rules) != Verdict::Capture {
        count(Event::OutboundBypassed);
        return Outcome::Return(ALLOW);
    }
    let is_fresh = gate_is_fresh();
    // What the maps decide needs no living agent, unless nothing may happen without one.
    if is_fresh || workload.flags & Workload::FAIL_CLOSED == 0 {
        if let Some(route) = direct::route(workload, place(address, port)) {
            return Outcome::Direct(route);
        }
    }
    if !is_fresh {
        count(Event::GateStale);
        // Read when the agent is back.
        debug!(
            SockAddrContext::new(ctx),
            "the agent gave no sign of life: a connection does not go through it"
        );
        return failed(workload);
    }
    let listener = listener_port(ctx, sk, ports, &place(address, port));
    if !listener_is_there(ctx, address.is_v4(), listener) {
        count(Event::ListenerGone);
        return failed(workload);
    }
    Outcome::Rewrite { port: listener }
}

#[inline(always)]
fn failed(workload: &Workload) -> Outcome {
    if workload.flags & Workload::FAIL_CLOSED == 0 {
        return Outcome::Return(ALLOW);
    }
    // SAFETY: a plain number; the application gets it from connect(2) instead of EPERM.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    Outcome::Return(REFUSE)
}

/// Asks for the agent's listener in the socket's own namespace: an agent that is gone must not refuse connections.
#[inline(always)]
fn listener_is_there(ctx: *mut bpf_sock_addr, v4: bool, port: u16) -> bool {
    look_up(ctx, &mut loopback(v4, port), v4).is_some()
}

/// From anywhere to this port of loopback.
#[inline(always)]
fn loopback(v4: bool, port: u16) -> bpf_sock_tuple {
    // SAFETY: a union of plain integers, of which the family's arm is written.
    unsafe {
        let mut tuple: bpf_sock_tuple = core::mem::zeroed();
        if v4 {
            tuple.__bindgen_anon_1.ipv4.daddr = u32::from_ne_bytes([127, 0, 0, 1]);
            tuple.__bindgen_anon_1.ipv4.dport = port.to_be();
        } else {
            tuple.__bindgen_anon_1.ipv6.daddr = [0, 0, 0, 1_u32.to_be()];
            tuple.__bindgen_anon_1.ipv6.dport = port.to_be();
        }
        tuple
    }
}

/// The state of the socket in the connecting one's namespace that this tuple leads to.
#[inline(always)]
fn look_up(ctx: *mut bpf_sock_addr, tuple: &mut bpf_sock_tuple, v4: bool) -> Option<u32> {
    // SAFETY: a size does not depend on the values.
    let size = unsafe {
        if v4 {
            size_of_val(&tuple.__bindgen_anon_1.ipv4)
        } else {
            size_of_val(&tuple.__bindgen_anon_1.ipv6)
        }
    };
    let netns = BPF_F_CURRENT_NETNS as i64 as u64;
    // SAFETY: `tuple` lives across the call; the reference is released at once.
    unsafe {
        let found = bpf_skc_lookup_tcp(ctx.cast(), tuple, size as u32, netns, 0);
        if found.is_null() {
            return None;
        }
        let state = (*found).state;
        bpf_sk_release(found.cast());
        Some(state)
    }
}

#[inline(always)]
fn place(address: Address, port: u16) -> Destination {
    Destination {
        address,
        port,
        reserved: [0; 3],
    }
}

#[inline(always)]
fn remember(sk: *mut bpf_sock, mut note: SocketNote) -> bool {
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: the map and the socket are the verifier's; `note` lives across the call.
    unsafe {
        let place = bpf_sk_storage_get(storage(), sk.cast(), (&raw mut note).cast(), flags)
            .cast::<SocketNote>();
        if place.is_null() {
            return false;
        }
        // There was one already: a socket may connect again after a failure.
        *place = note;
    }
    true
}

/// A socket that connected through us before and does not now must not show the old destination.
#[inline(always)]
fn forget(sk: *mut bpf_sock) {
    // SAFETY: deleting what is not there is an error which changes nothing.
    unsafe { bpf_sk_storage_delete(storage(), sk.cast()) };
}

/// The note of a socket, or null.
#[inline(always)]
pub fn note_of(sk: *mut core::ffi::c_void) -> *mut SocketNote {
    // SAFETY: the verifier knows `sk` as a socket; without the flag nothing is made.
    unsafe { bpf_sk_storage_get(storage(), sk, null_mut(), 0).cast() }
}

#[inline(always)]
pub fn storage() -> *mut core::ffi::c_void {
    (&raw const SOCKETS).cast_mut().cast()
}
