//! sock_ops at the agent's own cgroup: notes the connections which the agent makes, so that sk_lookup in the
//! destination's namespace lets them through. Kept until the socket closes: with SYN cookies the listener is looked up
//! again by the handshake's last segment.

use aya_ebpf::bindings::{
    BPF_ANY, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
    BPF_TCP_CLOSE,
};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::warn;
use shunt_ebpf_common::maps::{Event, OwnFlow};

use crate::connect::is_own_mark;
use crate::handshake::{local_address, remote_address};
use crate::maps::{OWN_FLOWS, count};

const DONE: u32 = 1;

#[sock_ops]
pub fn shunt_own_flows(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => {
            let _ = OWN_FLOWS.remove(&key(&ctx));
        }
        _ => {}
    }
    DONE
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
    if OWN_FLOWS.insert(&key(ctx), &1, u64::from(BPF_ANY)).is_err() {
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
fn key(ctx: &SockOpsContext) -> OwnFlow {
    OwnFlow {
        source: local_address(ctx),
        destination: remote_address(ctx),
        source_port: ctx.local_port() as u16,
        destination_port: u32::from_be(ctx.remote_port()) as u16,
    }
}
