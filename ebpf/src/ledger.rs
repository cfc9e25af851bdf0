//! The books of direct connections: what is known of one when its SYN is sent and when it ends, for the agent, which has
//! no socket of its own in it.

use aya_ebpf::bindings::{
    BPF_ANY, BPF_RB_NO_WAKEUP, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_CLOSING, BPF_TCP_FIN_WAIT1,
    BPF_TCP_FIN_WAIT2, BPF_TCP_LAST_ACK, BPF_TCP_SYN_SENT, bpf_sock_addr,
};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::programs::SockOpsContext;
use shunt_ebpf_common::decision::Address;
use shunt_ebpf_common::direct::DirectEvent;
use shunt_ebpf_common::maps::{Destination, Event, FlowOwner, Handoff, SocketCookie, Workload};

use crate::agent_sockets::own_flow;
use crate::bulk;
use crate::connect::place;
use crate::direct::Refusal;
use crate::handshake::local_address;
use crate::kernel_memory::{address_of, at};
use crate::maps::{DIRECT_EVENTS, HANDOFFS, OWN_FLOWS, PEERS, SocketNote, count};
use crate::pairing::WRITTEN_OFFSET;
use crate::scope::workload_key;

/// Where `struct sock` has its pending error and its flags; set from the kernel's BTF when the programs are loaded.
#[unsafe(no_mangle)]
pub static ERROR_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
pub static SOCK_FLAGS_OFFSET: u32 = 0;

/// From net/sock.h, `enum sock_flags`: the peer's FIN has come.
const SOCK_DONE: u64 = 1 << 1;

/// The SYN of a direct connection is about to be sent.
#[inline(always)]
pub fn opened(ctx: &SockOpsContext, note: &mut SocketNote) {
    // SAFETY: the helper takes no argument.
    note.opened = unsafe { bpf_ktime_get_ns() };
    if note.peer != 0 {
        // sk_lookup at an enrolled destination lets it through, as it does the agent's own.
        let owner = FlowOwner {
            // SAFETY: the program's context.
            key: workload_key(unsafe { bpf_get_netns_cookie(ctx.ops.cast()) }),
            workload: note.workload,
            reserved: 0,
        };
        if OWN_FLOWS
            .insert(&own_flow(ctx), &owner, u64::from(BPF_ANY))
            .is_err()
        {
            count(Event::OwnFlowsFull);
        }
    }
    let _ = ctx.set_cb_flags(ctx.cb_flags() as i32 | BPF_SOCK_OPS_STATE_CB_FLAG as i32);
    tell(ctx, note, &Ending::default(), DirectEvent::OPENED);
}

/// A direct connection has ended, in whichever way.
#[inline(always)]
pub fn closed(ctx: &SockOpsContext, note: &mut SocketNote, state: u32) {
    note.state &= !(SocketNote::DIRECT | SocketNote::HANDED_OVER);
    if note.peer != 0 {
        let _ = OWN_FLOWS.remove(&own_flow(ctx));
    }
    let mut ending = Ending {
        state,
        ..Ending::default()
    };
    // SAFETY: the program's context.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if !sk.is_null() {
        count_tcp(ctx, address_of(sk), &mut ending);
    }
    if count_redirected(ctx, &mut ending) {
        let by_queue = ending.redirected_sent + ending.redirected_received;
        bulk::ended(note, ending.sent + ending.received, by_queue);
    }
    tell(ctx, note, &ending, DirectEvent::CLOSED);
}

/// What only the end shows.
#[derive(Default)]
struct Ending {
    state: u32,
    error: u32,
    sent: u64,
    received: u64,
    redirected_sent: u64,
    redirected_received: u64,
    messages_sent: u64,
    messages_received: u64,
}

/// TCP's own counts, which take a SYN and a FIN for a byte each.
#[inline(always)]
fn count_tcp(ctx: &SockOpsContext, sk: u64, ending: &mut Ending) {
    // SAFETY: the program's context.
    let (acked, received, first_unacked) = unsafe {
        let ops = ctx.ops;
        ((*ops).bytes_acked, (*ops).bytes_received, (*ops).snd_una)
    };
    ending.error = at(sk, &raw const ERROR_OFFSET).unwrap_or(0);
    if ending.state == BPF_TCP_SYN_SENT {
        return;
    }
    let written: u32 = at(sk, &raw const WRITTEN_OFFSET).unwrap_or(0);
    let has_sent_fin = matches!(
        ending.state,
        BPF_TCP_FIN_WAIT1 | BPF_TCP_FIN_WAIT2 | BPF_TCP_CLOSING | BPF_TCP_LAST_ACK
    );
    let fin = u64::from(has_sent_fin && first_unacked == written);
    let flags: u64 = at(sk, &raw const SOCK_FLAGS_OFFSET).unwrap_or(0);
    let peers_fin = u64::from(flags & SOCK_DONE != 0);
    ending.sent = acked.saturating_sub(1 + fin);
    ending.received = received.saturating_sub(peers_fin);
}

/// What went from queue to queue. False: the two ends were not paired.
#[inline(always)]
fn count_redirected(ctx: &SockOpsContext, ending: &mut Ending) -> bool {
    // SAFETY: the program's context.
    let cookie: SocketCookie = unsafe { bpf_get_socket_cookie(ctx.ops.cast()) };
    let Some(own) = HANDOFFS.get_ptr(&cookie) else {
        return false;
    };
    // SAFETY: a map value; whoever else still writes it only adds to it.
    let (bytes, messages, flags) = unsafe { ((*own).bytes, (*own).messages, (*own).flags) };
    if flags & Handoff::DIRECT == 0 {
        return false;
    }
    (ending.redirected_sent, ending.messages_sent) = (bytes, messages);
    // SAFETY: copied at once.
    if let Some(peer) = unsafe { PEERS.get(&cookie) }.copied() {
        if let Some(other) = HANDOFFS.get_ptr(&peer) {
            // SAFETY: as above.
            let (bytes, messages) = unsafe { ((*other).bytes, (*other).messages) };
            (ending.redirected_received, ending.messages_received) = (bytes, messages);
        }
        let _ = HANDOFFS.remove(&peer);
    }
    let _ = HANDOFFS.remove(&cookie);
    true
}

#[inline(always)]
fn tell(ctx: &SockOpsContext, note: &SocketNote, ending: &Ending, kind: u32) {
    // SAFETY: the helper takes no argument, and the program's context.
    let (now, cookie) = unsafe { (bpf_ktime_get_ns(), bpf_get_socket_cookie(ctx.ops.cast())) };
    submit(DirectEvent {
        cookie,
        at: now,
        duration: now.saturating_sub(note.opened),
        sent: ending.sent,
        received: ending.received,
        redirected_sent: ending.redirected_sent,
        redirected_received: ending.redirected_received,
        messages_sent: ending.messages_sent,
        messages_received: ending.messages_received,
        client: place(local_address(ctx), ctx.local_port() as u16),
        original: note.destination,
        upstream: note.upstream,
        workload: note.workload,
        peer: note.peer,
        kind,
        state: ending.state,
        error: ending.error,
        rule: 0,
    });
}

/// A connection was not even begun.
#[inline(always)]
pub fn refused(
    ctx: *mut bpf_sock_addr,
    workload: &Workload,
    destination: Destination,
    refusal: Refusal,
) {
    let (kind, event) = match refusal.rule {
        Some(_) => (DirectEvent::DENIED, Event::OutboundDenied),
        None => (DirectEvent::UNSERVED, Event::ServiceEmpty),
    };
    count(event);
    let source = match destination.address.is_v4() {
        true => Address::v4(workload.source_v4),
        false => Address(workload.source_v6),
    };
    submit(DirectEvent {
        // SAFETY: the program's context.
        cookie: unsafe { bpf_get_socket_cookie(ctx.cast()) },
        // SAFETY: the helper takes no argument.
        at: unsafe { bpf_ktime_get_ns() },
        duration: 0,
        sent: 0,
        received: 0,
        redirected_sent: 0,
        redirected_received: 0,
        messages_sent: 0,
        messages_received: 0,
        client: place(source, 0),
        original: destination,
        upstream: refusal.upstream,
        workload: workload.id,
        peer: refusal.peer,
        kind,
        state: refusal.rule.map_or(0, |(_, direction)| direction as u32),
        error: 0,
        rule: refusal.rule.map_or(0, |(rule, _)| rule),
    });
}

#[inline(always)]
fn submit(event: DirectEvent) {
    match DIRECT_EVENTS.reserve::<DirectEvent>(0) {
        Some(mut place) => {
            place.write(event);
            place.submit(u64::from(BPF_RB_NO_WAKEUP));
        }
        None => count(Event::DirectEventLost),
    }
}
