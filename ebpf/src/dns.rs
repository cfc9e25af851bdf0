//! Datagrams to port 53, where a workload wants its DNS captured: attached to the cgroups of such workloads alone.
//!
//! ```text
//! connect(2), sendto(2) ─► rules ─► the resolver's slot: the agent's socket on loopback ─► REWRITE
//! recvfrom(2) from a slot's socket ─► from the resolver that the slot stands for
//! ```
//! A slot stands for one resolver as long as the workload is enrolled: so both the agent and an answer's reader know by
//! the port alone which one is meant, whatever else the socket is used for.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::{BPF_NOEXIST, bpf_sock_addr};
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use shunt_ebpf_common::decision::{Address, Direction, Question};
use shunt_ebpf_common::dns::{DnsListeners, ResolverKey};
use shunt_ebpf_common::maps::{Destination, Event};

use crate::connect::{
    ALLOW, Outcome, failed, forget, is_own_mark, is_refused, note_of, place, remember,
};
use crate::listeners::takes_datagrams;
use crate::maps::{DNS, RESOLVERS, SocketNote, WORKLOADS, count, gate_is_fresh};
use crate::rules::captures;

const IPPROTO_UDP: u32 = 17;
const PORT: u16 = 53;
/// No slot.
const NONE: usize = usize::MAX;
/// recvmsg has nothing to refuse.
const DONE: i32 = 1;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Connect,
    Send,
}

#[cgroup_sock_addr(connect4)]
pub fn shunt_dns_connect4(ctx: SockAddrContext) -> i32 {
    steer4(ctx.sock_addr, Call::Connect)
}

#[cgroup_sock_addr(connect6)]
pub fn shunt_dns_connect6(ctx: SockAddrContext) -> i32 {
    steer6(ctx.sock_addr, Call::Connect)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn shunt_dns_sendmsg4(ctx: SockAddrContext) -> i32 {
    steer4(ctx.sock_addr, Call::Send)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn shunt_dns_sendmsg6(ctx: SockAddrContext) -> i32 {
    steer6(ctx.sock_addr, Call::Send)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn shunt_dns_recvmsg4(ctx: SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    // SAFETY: the program's context; single words are read and written.
    unsafe {
        if let Some(resolver) = resolver(addr, &Address::v4((*addr).user_ip4)) {
            (*addr).user_ip4 = resolver.address.0[3];
            (*addr).user_port = u32::from(resolver.port.to_be());
        }
    }
    DONE
}

#[cgroup_sock_addr(recvmsg6)]
pub fn shunt_dns_recvmsg6(ctx: SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    if let Some(resolver) = resolver(addr, &address6(addr)) {
        write6(addr, resolver.address);
        // SAFETY: the program's context.
        unsafe { (*addr).user_port = u32::from(resolver.port.to_be()) };
    }
    DONE
}

#[inline(always)]
fn steer4(addr: *mut bpf_sock_addr, call: Call) -> i32 {
    // SAFETY: the program's context; single words are read and written.
    unsafe {
        let address = Address::v4((*addr).user_ip4);
        match steer(addr, address, call) {
            Outcome::Return(code) => return code,
            Outcome::Rewrite { port } => {
                (*addr).user_ip4 = u32::from_ne_bytes([127, 0, 0, 1]);
                (*addr).user_port = u32::from(port.to_be());
            }
            Outcome::Direct(_) => {}
        }
    }
    ALLOW
}

#[inline(always)]
fn steer6(addr: *mut bpf_sock_addr, call: Call) -> i32 {
    let address = address6(addr);
    match steer(addr, address, call) {
        Outcome::Return(code) => return code,
        Outcome::Rewrite { port } => {
            write6(
                addr,
                if address.is_v4() {
                    Address::v4(u32::from_ne_bytes([127, 0, 0, 1]))
                } else {
                    Address([0, 0, 0, 1_u32.to_be()])
                },
            );
            // SAFETY: the program's context.
            unsafe { (*addr).user_port = u32::from(port.to_be()) };
        }
        Outcome::Direct(_) => {}
    }
    ALLOW
}

/// As `connect` does with connections, and by the same rules.
#[inline(always)]
fn steer(ctx: *mut bpf_sock_addr, address: Address, call: Call) -> Outcome {
    // SAFETY: `ctx` is the program's context.
    let (protocol, port) = unsafe { ((*ctx).protocol, u16::from_be((*ctx).user_port as u16)) };
    // SAFETY: as above; the verifier knows the pointer as a socket.
    let sk = unsafe { (*ctx).__bindgen_anon_1.sk };
    if protocol != IPPROTO_UDP || sk.is_null() || is_refused() {
        return Outcome::Return(ALLOW);
    }
    // SAFETY: as above.
    let netns = unsafe { bpf_get_netns_cookie(ctx.cast()) };
    // SAFETY: the agent replaces an entry as a whole, and the kernel frees the old one when no program uses it.
    let (Some(listeners), Some(workload)) = (unsafe { (DNS.get(&netns), WORKLOADS.get(&netns)) })
    else {
        return Outcome::Return(ALLOW);
    };
    let note = note_of(sk.cast());
    // SAFETY: checked for null.
    let noted = !note.is_null() && unsafe { (*note).state } & SocketNote::CAPTURED != 0;
    if call == Call::Connect && noted {
        // Rewritten a moment ago by the same program of a nearer cgroup, or the socket connects to somebody else.
        if slot_of(listeners, &address, port) != NONE {
            return Outcome::Return(ALLOW);
        }
        forget(sk);
    }
    // SAFETY: the verifier knows `sk` as a socket.
    let (mark, bound_to_device) = unsafe { ((*sk).mark, (*sk).bound_dev_if != 0) };
    if port != PORT || is_own_mark(mark) {
        return Outcome::Return(ALLOW);
    }
    let question = Question {
        direction: Direction::Outbound,
        address,
        port,
        bound_to_device,
    };
    if !captures(workload, &question) {
        return Outcome::Return(ALLOW);
    }
    if !gate_is_fresh() {
        count(Event::GateStale);
        return failed(workload);
    }
    let resolver = place(address, port);
    let slot = slot_for(listeners, &resolver);
    if slot == NONE {
        count(Event::ResolversFull);
        return failed(workload);
    }
    let listener = port_of(listeners, address.is_v4(), slot);
    if listener == 0 {
        return Outcome::Return(ALLOW);
    }
    if !takes_datagrams(ctx, address.is_v4(), listener) {
        count(Event::ListenerGone);
        return failed(workload);
    }
    if call == Call::Connect {
        let note = SocketNote {
            destination: resolver,
            state: SocketNote::CAPTURED,
            ..SocketNote::EMPTY
        };
        if !remember(sk, note) {
            count(Event::StorageFailed);
            return Outcome::Return(ALLOW);
        }
    }
    count(Event::DnsCaptured);
    Outcome::Rewrite { port: listener }
}

/// The slot that stands for this resolver from now on, or `NONE`: all stand for others.
#[inline(always)]
fn slot_for(listeners: &DnsListeners, resolver: &Destination) -> usize {
    let v4 = resolver.address.is_v4();
    for index in 0..DnsListeners::SLOTS {
        let key = ResolverKey::new(listeners.workload, v4, index);
        // SAFETY: entries are never changed, only removed with their workload.
        match unsafe { RESOLVERS.get(&key) } {
            Some(known) if known == resolver => return index,
            Some(_) => {}
            // Where somebody else was faster, the next one will do.
            None => {
                let new = u64::from(BPF_NOEXIST);
                if RESOLVERS.insert(&key, resolver, new).is_ok() {
                    return index;
                }
            }
        }
    }
    NONE
}

/// The slot whose socket this is, or `NONE`.
#[inline(always)]
fn slot_of(listeners: &DnsListeners, address: &Address, port: u16) -> usize {
    if !address.is_loopback() || port == 0 {
        return NONE;
    }
    for index in 0..DnsListeners::SLOTS {
        if port_of(listeners, address.is_v4(), index) == port {
            return index;
        }
    }
    NONE
}

/// The resolver that a datagram from this address was sent by, if it is an answer that came through the agent.
#[inline(always)]
fn resolver(ctx: *mut bpf_sock_addr, from: &Address) -> Option<&'static Destination> {
    // SAFETY: the program's context.
    let (netns, port) = unsafe {
        (
            bpf_get_netns_cookie(ctx.cast()),
            u16::from_be((*ctx).user_port as u16),
        )
    };
    // SAFETY: as in `steer`.
    let listeners = unsafe { DNS.get(&netns) }?;
    let slot = slot_of(listeners, from, port);
    if slot == NONE {
        return None;
    }
    let key = ResolverKey::new(listeners.workload, from.is_v4(), slot);
    // SAFETY: as in `slot_for`.
    unsafe { RESOLVERS.get(&key) }
}

/// `index` is a slot. Volatile: the verifier wants each read where the map's value is.
#[inline(always)]
fn port_of(listeners: &DnsListeners, v4: bool, index: usize) -> u16 {
    let ports = if v4 {
        &raw const listeners.ports_v4
    } else {
        &raw const listeners.ports_v6
    };
    let index = index % DnsListeners::SLOTS;
    // SAFETY: within the array.
    unsafe { read_volatile(ports.cast::<u16>().add(index)) }
}

#[inline(always)]
fn address6(addr: *mut bpf_sock_addr) -> Address {
    // SAFETY: the program's context; volatile so that no access is merged.
    unsafe {
        let words = (&raw const (*addr).user_ip6).cast::<u32>();
        Address([
            read_volatile(words),
            read_volatile(words.add(1)),
            read_volatile(words.add(2)),
            read_volatile(words.add(3)),
        ])
    }
}

#[inline(always)]
fn write6(addr: *mut bpf_sock_addr, address: Address) {
    // SAFETY: as above.
    unsafe {
        let words = (&raw mut (*addr).user_ip6).cast::<u32>();
        write_volatile(words, address.0[0]);
        write_volatile(words.add(1), address.0[1]);
        write_volatile(words.add(2), address.0[2]);
        write_volatile(words.add(3), address.0[3]);
    }
}
