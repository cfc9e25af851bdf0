//! Finds the two ends of an accelerated connection when it is established, and makes both sockets ready for `sk_msg`.
//!
//! ```text
//!  connecting end: established first, when SYN-ACK comes   -> into SOCKHASH, waits in MEETINGS
//!  accepting end:  established when the last ACK comes     -> finds it there: into SOCKHASH, PEERS
//! ```
//! A socket enters here or never. Whoever is not found, or has begun to send, goes by TCP as if nothing had happened.

use core::ptr::null_mut;

use aya_ebpf::bindings::{
    BPF_ANY, BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock,
};
use aya_ebpf::helpers::bpf_sock_hash_update;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_sk_storage_get};
use aya_ebpf::programs::SockOpsContext;
use shunt_ebpf_common::maps::{End, Event, Handoff, Meeting, SocketCookie};

use crate::kernel_memory::{address_of, at};
use crate::maps::{CUT, ENDS, HANDOFFS, MEETINGS, PEERS, QUEUES, SENDERS, SOCKHASH, Sender, count};
use crate::sk_msg::{RECEIVE_QUEUE_OFFSET, has_own_buffer};

/// Where `struct sock` says that it is in a socket hash, and how many callers wait to send, and `struct tcp_sock` has the
/// number of the next byte to be written; set from the kernel's BTF when the programs are loaded.
#[unsafe(no_mangle)]
pub static USER_DATA_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
pub static WRITERS_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
pub static WRITTEN_OFFSET: u32 = 0;

/// Whose sockets the two ends of a connection are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Between {
    AgentAndApplication,
    /// What one sends may go to the other from the first byte on.
    Applications,
}

/// The connecting end of a connection that is to be accelerated.
#[inline(always)]
pub fn connected(ctx: &SockOpsContext, between: Between) {
    let meeting = Meeting {
        // SAFETY: the program's context.
        from_connector: unsafe { (*ctx.ops).snd_nxt },
        // SAFETY: as above.
        from_acceptor: unsafe { (*ctx.ops).rcv_nxt },
        connector_port: ctx.local_port() as u16,
        acceptor_port: u32::from_be(ctx.remote_port()) as u16,
        reserved: 0,
    };
    if let Some(cookie) = enter(ctx, 0, meeting, between) {
        if between == Between::Applications {
            send_directly(&cookie, 0);
        }
        let _ = MEETINGS.insert(&meeting, &cookie, u64::from(BPF_ANY));
    }
}

/// An accepting end: accelerated when the connecting one waits for it.
#[inline(always)]
pub fn accepted(ctx: &SockOpsContext) {
    let meeting = Meeting {
        // SAFETY: the program's context.
        from_connector: unsafe { (*ctx.ops).rcv_nxt },
        // SAFETY: as above.
        from_acceptor: unsafe { (*ctx.ops).snd_nxt },
        connector_port: u32::from_be(ctx.remote_port()) as u16,
        acceptor_port: ctx.local_port() as u16,
        reserved: 0,
    };
    // SAFETY: copied at once.
    let Some(peer) = (unsafe { MEETINGS.get(&meeting) }).copied() else {
        return;
    };
    let between = if is_direct(&peer) {
        Between::Applications
    } else {
        Between::AgentAndApplication
    };
    if let Some(cookie) = enter(ctx, peer, meeting, between) {
        if between == Between::Applications {
            send_directly(&cookie, peer);
            send_directly(&peer, cookie);
        }
        let _ = PEERS.insert(&peer, &cookie, u64::from(BPF_ANY));
    }
    let _ = MEETINGS.remove(&meeting);
}

/// What is sent on this socket goes to that one; 0: it is not known yet.
#[inline(always)]
fn send_directly(from: &SocketCookie, to: SocketCookie) {
    let handoff = Handoff {
        to,
        at: 0,
        bytes: 0,
        messages: 0,
        flags: Handoff::DIRECT,
        reserved: 0,
    };
    // Without room the bytes go the same way, but are counted nowhere.
    let _ = HANDOFFS.insert(from, &handoff, u64::from(BPF_ANY));
}

#[inline(always)]
fn is_direct(connector: &SocketCookie) -> bool {
    // SAFETY: copied at once.
    unsafe { HANDOFFS.get(connector) }.is_some_and(|handoff| handoff.flags & Handoff::DIRECT != 0)
}

/// An application ends its direction, or closes its socket.
#[inline(always)]
pub fn ending(ctx: &SockOpsContext) {
    let sk = socket(ctx);
    if sk.is_null() {
        return;
    }
    // SAFETY: the verifier knows `sk` as a socket; without the flag nothing is made. It is locked.
    let (cookie, flags) = unsafe {
        let end = bpf_sk_storage_get(ends(), sk.cast(), null_mut(), 0).cast::<End>();
        if end.is_null() {
            return;
        }
        // Only TCP knows that it may not send any more.
        (*end).state = End::TCP;
        ((*end).cookie, (*end).flags)
    };
    // Only the agent could make a reset of it.
    if flags & End::DIRECT != 0 {
        return;
    }
    // A socket that is being closed has left the socket hash just before; one that is shut down stays there.
    let closes = read(&cookie, &raw const USER_DATA_OFFSET).unwrap_or(1_u64) == 0;
    if closes && read(&cookie, &raw const RECEIVE_QUEUE_OFFSET).unwrap_or(0_u32) > 0 {
        let _ = CUT.insert(&cookie, &1, u64::from(BPF_ANY));
    }
}

/// Has a connecting socket sent anything yet, or is somebody about to, in a call that began before it was connected
/// (`MSG_FASTOPEN`)? Those bytes go by TCP, and nothing may overtake them.
#[inline(always)]
fn has_begun(ctx: &SockOpsContext, cookie: &SocketCookie) -> bool {
    // SAFETY: the program's context.
    let next = unsafe { (*ctx.ops).snd_nxt };
    let written = read(cookie, &raw const WRITTEN_OFFSET).unwrap_or(!next);
    let writers = read(cookie, &raw const WRITERS_OFFSET).unwrap_or(1_i32);
    written != next || writers != 0
}

/// Something of a socket that is in `QUEUES`, as the kernel keeps it.
#[inline(always)]
pub fn read<T: Copy + Default>(cookie: &SocketCookie, offset: *const u32) -> Option<T> {
    // SAFETY: copied at once.
    let address = *unsafe { QUEUES.get(cookie) }?;
    at(address, offset)
}

/// An accelerated socket has closed.
#[inline(always)]
pub fn left(ctx: &SockOpsContext) {
    let sk = socket(ctx);
    if sk.is_null() {
        return;
    }
    // SAFETY: the verifier knows `sk` as a socket; without the flag nothing is made.
    unsafe {
        let sender = bpf_sk_storage_get(senders(), sk.cast(), null_mut(), 0).cast::<Sender>();
        if sender.is_null() {
            return;
        }
        let cookie = bpf_get_socket_cookie(ctx.ops.cast());
        let meeting = (*sender).meeting;
        let _ = QUEUES.remove(&cookie);
        let _ = PEERS.remove(&cookie);
        let _ = MEETINGS.remove(&meeting);
    }
}

/// Puts a socket where it can be redirected to. `None`: it was there (these programs also run for an ancestor's
/// cgroup), there is no room, or it must not be.
#[inline(always)]
fn enter(
    ctx: &SockOpsContext,
    peer: SocketCookie,
    meeting: Meeting,
    between: Between,
) -> Option<SocketCookie> {
    let sk = socket(ctx);
    if sk.is_null() {
        return None;
    }
    // TCP's first window and a queue of some use do not both fit.
    if has_own_buffer(address_of(sk)) {
        count(Event::OwnBuffer);
        return None;
    }
    // SAFETY: the program's context.
    let mut cookie = unsafe { bpf_get_socket_cookie(ctx.ops.cast()) };
    let mut end = End {
        cookie,
        peer,
        flags: match between {
            Between::AgentAndApplication => 0,
            Between::Applications => End::DIRECT,
        },
        ..End::default()
    };
    let mut sender = Sender {
        target: peer,
        queue: 0,
        meeting,
        large: 0,
        tap: 0,
        passed: 0,
        messages: 0,
        bytes: 0,
        reserved: 0,
    };
    let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: the map and the socket are the verifier's; what is pointed to lives across the calls.
    let entered = unsafe {
        if !bpf_sk_storage_get(ends(), sk.cast(), null_mut(), 0).is_null() {
            return None;
        }
        let end = bpf_sk_storage_get(ends(), sk.cast(), (&raw mut end).cast(), create);
        let sender = bpf_sk_storage_get(senders(), sk.cast(), (&raw mut sender).cast(), create);
        if end.is_null() || sender.is_null() {
            count(Event::StorageFailed);
            return None;
        }
        let address = sk as u64;
        let sockhash = (&raw const SOCKHASH).cast_mut().cast();
        if QUEUES.insert(&cookie, &address, u64::from(BPF_ANY)).is_ok()
            && peer == 0
            && has_begun(ctx, &cookie)
        {
            let _ = QUEUES.remove(&cookie);
            return None;
        }
        QUEUES.get(&cookie).is_some()
            && bpf_sock_hash_update(
                ctx.ops,
                sockhash,
                (&raw mut cookie).cast(),
                u64::from(BPF_NOEXIST),
            ) == 0
    };
    if !entered {
        let _ = QUEUES.remove(&cookie);
        count(Event::SocketsFull);
        return None;
    }
    count(Event::SocketAccelerated);
    let _ = ctx.set_cb_flags(ctx.cb_flags() as i32 | BPF_SOCK_OPS_STATE_CB_FLAG as i32);
    Some(cookie)
}

#[inline(always)]
pub fn socket(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: the program's context.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk }
}

#[inline(always)]
pub fn ends() -> *mut core::ffi::c_void {
    (&raw const ENDS).cast_mut().cast()
}

#[inline(always)]
pub fn senders() -> *mut core::ffi::c_void {
    (&raw const SENDERS).cast_mut().cast()
}
