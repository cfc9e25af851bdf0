//! cgroup/getsockopt at the agent's own cgroup: how much room the queue has into which one of its sockets writes.
//!
//! The data plane may not read the kernel's memory, and what it sends into a full queue would go by TCP for ever, to lie
//! behind the queue. So it asks first, by an option that no kernel has, and waits.

use core::ptr::{null_mut, read_volatile, write_volatile};

use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::cgroup_sockopt;
use aya_ebpf::programs::SockoptContext;
use shunt_ebpf_common::maps::{End, ROOM_LEVEL, ROOM_OPTION};

use crate::kernel_memory::at;
use crate::maps::{PEERS, QUEUES, Sender};
use crate::pairing::{ends, senders};
use crate::sk_msg::{MOST_MESSAGES, RECEIVE_QUEUE_OFFSET, messages, most};

/// Other options, also those that failed, are what the kernel said.
const PASS: i32 = 1;

#[cgroup_sockopt(getsockopt)]
pub fn shunt_room(ctx: SockoptContext) -> i32 {
    // SAFETY: the program's context. Volatile, since the verifier takes no access that was merged from two.
    let (level, name) = unsafe {
        (
            read_volatile(&raw const (*ctx.sockopt).level),
            read_volatile(&raw const (*ctx.sockopt).optname),
        )
    };
    if (level, name) == (ROOM_LEVEL, ROOM_OPTION)
        && let Some(room) = room(&ctx)
    {
        answer(&ctx, room);
    }
    PASS
}

/// `None`: what this socket sends goes into no queue.
#[inline(always)]
fn room(ctx: &SockoptContext) -> Option<u32> {
    // SAFETY: the program's context; the socket and its storage are checked for null. What its messages change
    // meanwhile is read word by word.
    let (cookie, peer, sender) = unsafe {
        let sk = (*ctx.sockopt).__bindgen_anon_1.sk;
        if sk.is_null() {
            return None;
        }
        let end = bpf_sk_storage_get(ends(), sk.cast(), null_mut(), 0).cast::<End>();
        if end.is_null() || (*end).state == End::TCP {
            return None;
        }
        let sender = bpf_sk_storage_get(senders(), sk.cast(), null_mut(), 0).cast::<Sender>();
        if sender.is_null() {
            return None;
        }
        ((*end).cookie, (*end).peer, &*sender)
    };
    let peer = match peer {
        // SAFETY: copied at once.
        0 => *unsafe { PEERS.get(&cookie) }?,
        peer => peer,
    };
    // SAFETY: copied at once.
    let receiver = *unsafe { QUEUES.get(&peer) }?;
    let queued: u32 = at(receiver, &raw const RECEIVE_QUEUE_OFFSET)?;
    // Some more may be sent before it is asked again.
    if messages(sender, queued) > MOST_MESSAGES / 2 {
        return Some(0);
    }
    Some(most(receiver).saturating_sub(queued))
}

#[inline(always)]
fn answer(ctx: &SockoptContext, room: u32) {
    // SAFETY: the program's context; the caller's room is compared with its end before it is written.
    unsafe {
        let option = ctx.sockopt;
        let value = (*option).__bindgen_anon_2.optval.cast::<u32>();
        let end = (*option).__bindgen_anon_3.optval_end.cast::<u32>();
        if value.add(1) > end {
            return;
        }
        *value = room;
        write_volatile(&raw mut (*option).optlen, size_of::<u32>() as i32);
        write_volatile(&raw mut (*option).retval, 0);
    }
}
