//! sock_ops at the agent's own cgroup: what sockets it accepts and makes.
//!
//! Accepted: the destination that `handshake` left moves into the socket's own storage the moment the connection is
//! established. Before that the tuple cannot be reused, after it nobody else can take it (seen: a connection that was
//! reset in the accept queue took the destination of a later one from the same port).
//!
//! Made: noted, so that sk_lookup in the destination's namespace lets them through. Kept until the socket closes: with
//! SYN cookies the listener is looked up again by the handshake's last segment.

use aya_ebpf::bindings::{
    BPF_ANY, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_sk_storage_get};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::warn;
use shunt_ebpf_common::maps::{BY_TCP_PRIORITY, Event, FlowOwner, Handshake, OwnFlow};

use crate::classes;
use crate::connect::{is_own_mark, is_upstream_mark};
use crate::handshake::{local_address, remote_address};
use crate::maps::{ACCEPTED, HANDSHAKES, OWN_FLOWS, count};
use crate::pairing::{self, Between};

const DONE: u32 = 1;

#[sock_ops]
pub fn shunt_agent(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&ctx),
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => {
            let _ = OWN_FLOWS.remove(&own_flow(&ctx));
            pairing::left(&ctx);
        }
        _ => {}
    }
    DONE
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    let handshake = Handshake {
        // SAFETY: the program's context.
        netns: unsafe { bpf_get_netns_cookie(ctx.ops.cast()) },
        client: remote_address(ctx),
        client_port: u32::from_be(ctx.remote_port()) as u16,
        listener_port: ctx.local_port() as u16,
        reserved: 0,
    };
    // SAFETY: copied at once; only the client's own handshake writes this entry, and that is over.
    let Some(mut destination) = (unsafe { HANDSHAKES.get(&handshake) }).copied() else {
        return;
    };
    let _ = HANDSHAKES.remove(&handshake);
    pairing::accepted(ctx);
    let map = (&raw const ACCEPTED).cast_mut().cast();
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: the program's context; the socket is checked for null, and the value lives across the call.
    let stored = unsafe {
        let sk = (*ctx.ops).__bindgen_anon_2.sk;
        !sk.is_null()
            && !bpf_sk_storage_get(map, sk.cast(), (&raw mut destination).cast(), flags).is_null()
    };
    if !stored {
        count(Event::StorageFailed);
        warn!(
            ctx,
            "no storage for an accepted socket: the connection will be refused"
        );
    }
}

/// Deliveries have a client past which there is no way: they are not accelerated.
#[inline(always)]
fn connected(ctx: &SockOpsContext) {
    // SAFETY: the program's context; the socket is checked for null.
    let upstream = unsafe {
        let sk = (*ctx.ops).__bindgen_anon_2.sk;
        !sk.is_null() && is_upstream_mark((*sk).mark) && (*sk).priority != BY_TCP_PRIORITY
    };
    // SAFETY: the program's context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.ops.cast()) };
    let port = u32::from_be(ctx.remote_port()) as u16;
    if upstream && classes::both(netns, &remote_address(ctx), port).accelerates() {
        pairing::connected(ctx, Between::AgentAndApplication);
    }
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    // SAFETY: the program's context; the socket is checked for null.
    let mark = unsafe {
        let sk = (*ctx.ops).__bindgen_anon_2.sk;
        if sk.is_null() {
            return;
        }
        (*sk).mark
    };
    if !is_own_mark(mark) {
        return;
    }
    if OWN_FLOWS
        .insert(&own_flow(ctx), &FlowOwner::AGENT, u64::from(BPF_ANY))
        .is_err()
    {
        count(Event::OwnFlowsFull);
        warn!(
            ctx,
            "the map of own flows is full: a connection passes the agent twice"
        );
        return;
    }
    let _ = ctx.set_cb_flags(ctx.cb_flags() as i32 | BPF_SOCK_OPS_STATE_CB_FLAG as i32);
}

#[inline(always)]
pub fn own_flow(ctx: &SockOpsContext) -> OwnFlow {
    OwnFlow {
        source: local_address(ctx),
        destination: remote_address(ctx),
        source_port: ctx.local_port() as u16,
        destination_port: u32::from_be(ctx.remote_port()) as u16,
    }
}
