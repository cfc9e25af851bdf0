//! sock_ops at the workload's cgroup: leaves a captured connection's destination for the accepting side, keeps count of
//! the ports on which the workload listens, and tells `pairing` of the applications' ends.
//!
//! `agent_sockets` takes a handshake entry when the connection is established. Here it is removed only when that never
//! happened, and not at close: the agent's side may be established after the client has sent everything and closed.
//!
//! Attached to nested cgroups, this runs more than once for each event: doing it twice must be doing it once.

use aya_ebpf::bindings::{
    BPF_ANY, BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_CLOSE, BPF_TCP_FIN_WAIT1,
    BPF_TCP_LAST_ACK, BPF_TCP_LISTEN, BPF_TCP_SYN_SENT,
};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_sk_storage_get};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::warn;
use shunt_ebpf_common::classes::Verdict;
use shunt_ebpf_common::decision::Address;
use shunt_ebpf_common::maps::{Event, Handshake, ListeningPort, Workload};

use crate::bulk;
use crate::classes;
use crate::connect::{note_of, storage};
use crate::ledger;
use crate::maps::{HANDSHAKES, LISTENING, SocketNote, WORKLOADS, count};
use crate::pairing::{self, Between};

/// sock_ops programs return 1; the reply is not ours to touch.
const DONE: u32 = 1;

#[sock_ops]
pub fn shunt_handshake(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_TCP_LISTEN_CB => listening(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&ctx),
        BPF_SOCK_OPS_STATE_CB => match ctx.arg(1) {
            BPF_TCP_FIN_WAIT1 | BPF_TCP_LAST_ACK => pairing::ending(&ctx),
            BPF_TCP_CLOSE => {
                closed(&ctx);
                pairing::left(&ctx);
                classes::closed(&ctx);
            }
            _ => {}
        },
        _ => {}
    }
    DONE
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    let note = socket_note(ctx);
    if note.is_null() {
        return;
    }
    // SAFETY: checked for null; the socket is locked.
    let note = unsafe { &mut *note };
    let before = note.state;
    note.state |= SocketNote::HANDED_OVER;
    if before & (SocketNote::DIRECT | SocketNote::HANDED_OVER) == SocketNote::DIRECT {
        ledger::opened(ctx, note);
    }
    if before & SocketNote::CAPTURED == 0 {
        return;
    }
    let destination = note.destination;
    if HANDSHAKES
        .insert(&key(ctx), &destination, u64::from(BPF_ANY))
        .is_err()
    {
        count(Event::HandshakesFull);
        warn!(
            ctx,
            "the handshake map is full: a connection will be refused"
        );
    }
    let _ = ctx.set_cb_flags(ctx.cb_flags() as i32 | BPF_SOCK_OPS_STATE_CB_FLAG as i32);
}

/// A captured connection reached the agent, or a direct one its destination.
#[inline(always)]
fn connected(ctx: &SockOpsContext) {
    let note = socket_note(ctx);
    if note.is_null() {
        return;
    }
    // SAFETY: checked for null, and the program's context.
    let (netns, state, dialled, upstream) = unsafe {
        (
            bpf_get_netns_cookie(ctx.ops.cast()),
            (*note).state,
            (*note).destination,
            (*note).upstream,
        )
    };
    if state & SocketNote::CAPTURED != 0 {
        if classes::connected(ctx, netns, &dialled) {
            pairing::connected(ctx, Between::AgentAndApplication);
        }
    } else if state & SocketNote::DIRECT != 0
        // Nobody is there who could hold bytes back behind a full queue: it must be asked for.
        && classes::both(netns, &upstream.address, upstream.port) == Verdict::Always
        // SAFETY: checked for null; the socket is locked.
        && bulk::is_worth_pairing(unsafe { &*note })
    {
        pairing::connected(ctx, Between::Applications);
    }
}

/// A connection reached an application. Only ends that are wanted wait to be met.
#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    const SOME: u32 =
        Workload::ACCELERATE | Workload::ACCELERATE_PROVEN | Workload::ACCELERATION_BY_PORT;
    // SAFETY: the program's context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.ops.cast()) };
    // SAFETY: see `connect`.
    let Some(workload) = (unsafe { WORKLOADS.get(&netns) }) else {
        return;
    };
    // At the cgroup2 root this also sees what the agent accepts on loopback; that is `agent_sockets`' affair.
    if workload.flags & SOME != 0 && !local_address(ctx).is_loopback() {
        pairing::accepted(ctx);
        classes::accepted(ctx, workload);
    }
}

#[inline(always)]
fn listening(ctx: &SockOpsContext) {
    let port = ctx.local_port();
    if port == 0 || local_address(ctx).is_loopback() {
        return;
    }
    // SAFETY: the program's context.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.ops.cast()) };
    // SAFETY: see `connect`.
    let Some(workload) = (unsafe { WORKLOADS.get(&cookie) }) else {
        return;
    };
    let key = ListeningPort {
        workload: workload.id,
        port,
    };
    let mut note = SocketNote {
        state: SocketNote::COUNTED_LISTENER,
        workload: workload.id,
        ..SocketNote::EMPTY
    };
    // SAFETY: the program's context, and a note that lives across the call.
    unsafe {
        let sk = (*ctx.ops).__bindgen_anon_2.sk;
        if sk.is_null() {
            return;
        }
        let before = note_of(sk.cast());
        if !before.is_null() && (*before).state & SocketNote::COUNTED_LISTENER != 0 {
            return;
        }
        let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        let place = bpf_sk_storage_get(storage(), sk.cast(), (&raw mut note).cast(), flags)
            .cast::<SocketNote>();
        if place.is_null() {
            return;
        }
        *place = note;
    }
    if LISTENING.insert(&key, &1, u64::from(BPF_NOEXIST)).is_err() {
        if let Some(listeners) = LISTENING.get_ptr_mut(&key) {
            // SAFETY: a map value. Two CPUs at once may lose a count (the target has no atomic that fits): the agent
            // compares with sock_diag every other second and mends it.
            unsafe { *listeners += 1 };
        }
    }
    let _ = ctx.set_cb_flags(ctx.cb_flags() as i32 | BPF_SOCK_OPS_STATE_CB_FLAG as i32);
}

#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    let before = ctx.arg(0);
    let note = socket_note(ctx);
    const UNDER_WAY: u32 = SocketNote::DIRECT | SocketNote::HANDED_OVER;
    // SAFETY: checked for null; the socket is locked.
    if !note.is_null() && unsafe { (*note).state } & UNDER_WAY == UNDER_WAY {
        // SAFETY: as above.
        return ledger::closed(ctx, unsafe { &mut *note }, before);
    }
    if before == BPF_TCP_SYN_SENT {
        let _ = HANDSHAKES.remove(&key(ctx));
        return;
    }
    // SAFETY: checked for null.
    if before != BPF_TCP_LISTEN
        || note.is_null()
        || unsafe { (*note).state } & SocketNote::COUNTED_LISTENER == 0
    {
        return;
    }
    // SAFETY: as above.
    let workload = unsafe {
        (*note).state &= !SocketNote::COUNTED_LISTENER;
        (*note).workload
    };
    let key = ListeningPort {
        workload,
        port: ctx.local_port(),
    };
    if let Some(listeners) = LISTENING.get_ptr_mut(&key) {
        // SAFETY: as in `listening`.
        let left = unsafe {
            *listeners = (*listeners).saturating_sub(1);
            *listeners
        };
        if left == 0 {
            let _ = LISTENING.remove(&key);
        }
    }
}

#[inline(always)]
fn socket_note(ctx: &SockOpsContext) -> *mut SocketNote {
    // SAFETY: the program's context; the verifier wants the check for null.
    unsafe {
        let sk = (*ctx.ops).__bindgen_anon_2.sk;
        if sk.is_null() {
            core::ptr::null_mut()
        } else {
            note_of(sk.cast())
        }
    }
}

#[inline(always)]
fn key(ctx: &SockOpsContext) -> Handshake {
    Handshake {
        // SAFETY: the program's context.
        netns: unsafe { bpf_get_netns_cookie(ctx.ops.cast()) },
        client: local_address(ctx),
        client_port: ctx.local_port() as u16,
        // Network order in the lower half of the byte-swapped word.
        listener_port: u32::from_be(ctx.remote_port()) as u16,
        reserved: 0,
    }
}

#[inline(always)]
pub fn local_address(ctx: &SockOpsContext) -> Address {
    const AF_INET: u32 = 2;
    if ctx.family() == AF_INET {
        return Address::v4(ctx.local_ip4());
    }
    // SAFETY: the program's context; word by word, as the verifier wants it.
    unsafe {
        let words = (&raw const (*ctx.ops).local_ip6).cast::<u32>();
        Address([
            core::ptr::read_volatile(words),
            core::ptr::read_volatile(words.add(1)),
            core::ptr::read_volatile(words.add(2)),
            core::ptr::read_volatile(words.add(3)),
        ])
    }
}

#[inline(always)]
pub fn remote_address(ctx: &SockOpsContext) -> Address {
    const AF_INET: u32 = 2;
    if ctx.family() == AF_INET {
        return Address::v4(ctx.remote_ip4());
    }
    // SAFETY: as in `local_address`.
    unsafe {
        let words = (&raw const (*ctx.ops).remote_ip6).cast::<u32>();
        Address([
            core::ptr::read_volatile(words),
            core::ptr::read_volatile(words.add(1)),
            core::ptr::read_volatile(words.add(2)),
            core::ptr::read_volatile(words.add(3)),
        ])
    }
}
