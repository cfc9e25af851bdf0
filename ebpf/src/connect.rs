//! What connect4 and connect6 have in common. Whatever cannot be decided lets the connection through untouched.
//!
//! ```text
//! not TCP, not enrolled, part of MPTCP, agent's own mark, rules say no -> ALLOW
//! rewritten a moment ago by a hook of a nearer cgroup -> ALLOW
//! nothing needs the proxy                             -> note it on the socket, ALLOW; or REFUSE as policy says
//! gate stale, listener gone                           -> ALLOW, or REFUSE when the workload fails closed
//! else: note the destination on the socket            -> REWRITE
//! ```

use core::ptr::{null_mut, read_volatile};

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::bpf_skc_to_mptcp_sock;
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_retval, bpf_set_retval, bpf_sk_storage_delete, bpf_sk_storage_get,
};
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;
use shunt_ebpf_common::decision::{Address, Direction, Question};
use shunt_ebpf_common::maps::{Destination, Event, Workload};

use crate::direct::{self, Route, Way};
use crate::ledger;
use crate::listeners;
use crate::maps::{SOCKETS, SocketNote, WORKLOADS, count, gate_is_fresh};
use crate::rules::captures;
use crate::scope::workload_key;

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
    let netns = unsafe { bpf_get_netns_cookie(ctx.cast()) };
    let key = workload_key(netns);
    let scoped = if key == netns { 0 } else { SocketNote::SCOPED };
    // SAFETY: the agent replaces an entry as a whole, and the kernel frees the old one when no program uses it.
    let Some(workload) = (unsafe { WORKLOADS.get(&key) }) else {
        if scoped != 0 || !is_noted_nearer(sk) {
            forget(sk);
        }
        return Outcome::Return(ALLOW);
    };
    if is_subflow(sk) {
        return Outcome::Return(ALLOW);
    }
    if is_rewritten(sk, workload, &place(address, port)) || is_refused() {
        return Outcome::Return(ALLOW);
    }
    match choose(ctx, sk, workload, address, port) {
        Outcome::Rewrite { port: listener } => {
            let note = SocketNote {
                destination: place(address, port),
                state: SocketNote::CAPTURED | scoped,
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
                state: SocketNote::DIRECT | scoped,
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
/// A socket whose connection went as far as a SYN is past that: there the application itself asks for that address.
#[inline(always)]
fn is_rewritten(sk: *mut bpf_sock, workload: &Workload, now: &Destination) -> bool {
    let note = note_of(sk.cast());
    if note.is_null() {
        return false;
    }
    // SAFETY: checked for null.
    let (state, dialled, upstream) =
        unsafe { ((*note).state, (*note).destination, (*note).upstream) };
    if state & SocketNote::HANDED_OVER != 0 {
        return false;
    }
    if state & SocketNote::DIRECT != 0 {
        return upstream == *now && dialled != *now;
    }
    let listeners = listeners::ports(workload, &dialled.address);
    state & SocketNote::CAPTURED != 0
        && now.address.is_loopback()
        && (0..Workload::OUTBOUND_PORTS).any(|index| now.port == listeners.at(index))
}

/// By a hook of a nearer cgroup, which knows more: to whom a socket of this namespace belongs.
#[inline(always)]
fn is_noted_nearer(sk: *mut bpf_sock) -> bool {
    const THIS_TIME: u32 = SocketNote::SCOPED | SocketNote::HANDED_OVER;
    let note = note_of(sk.cast());
    // SAFETY: checked for null.
    !note.is_null() && unsafe { (*note).state } & THIS_TIME == SocketNote::SCOPED
}

/// As above: refusing twice would be told of twice.
#[inline(always)]
pub fn is_refused() -> bool {
    // SAFETY: the helper takes no argument.
    unsafe { bpf_get_retval() < 0 }
}

#[inline(always)]
fn choose(
    ctx: *mut bpf_sock_addr,
    sk: *mut bpf_sock,
    workload: &Workload,
    address: Address,
    port: u16,
) -> Outcome {
    let ports = listeners::ports(workload, &address);
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
    if !captures(workload, &question) {
        count(Event::OutboundBypassed);
        return Outcome::Return(ALLOW);
    }
    let is_fresh = gate_is_fresh();
    // What the maps decide needs no living agent, unless nothing may happen without one.
    if is_fresh || workload.flags & Workload::FAIL_CLOSED == 0 {
        let destination = place(address, port);
        match direct::way(workload, destination) {
            Way::Direct(route) => return Outcome::Direct(route),
            Way::Refused(refusal) => {
                ledger::refused(ctx, workload, destination, refusal);
                return refuse();
            }
            Way::Agent => {}
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
    let listener = listeners::port(ctx, sk, ports, &place(address, port));
    if !listeners::is_there(ctx, address.is_v4(), listener) {
        count(Event::ListenerGone);
        return failed(workload);
    }
    Outcome::Rewrite { port: listener }
}

#[inline(always)]
pub fn failed(workload: &Workload) -> Outcome {
    if workload.flags & Workload::FAIL_CLOSED == 0 {
        return Outcome::Return(ALLOW);
    }
    refuse()
}

#[inline(always)]
pub fn refuse() -> Outcome {
    // SAFETY: a plain number; the application gets it from connect(2) instead of EPERM.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    Outcome::Return(REFUSE)
}

#[inline(always)]
pub fn place(address: Address, port: u16) -> Destination {
    Destination {
        address,
        port,
        reserved: [0; 3],
    }
}

#[inline(always)]
pub fn remember(sk: *mut bpf_sock, mut note: SocketNote) -> bool {
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
pub fn forget(sk: *mut bpf_sock) {
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
