//! Every message of an accelerated socket: into its receiver's queue, or by TCP.
//!
//! ```text
//!              first message: peer found          the agent says: all that you sent has arrived
//!  UNDECIDED ─────────────────────────► REDIRECTED ──────────────────────────────────────────► HANDED_OVER
//!      │ peer not found                    │ receiver's queue full, receiver gone, bulk            │
//!      └───────────────────────────────► TCP ◄─────────────────────────────────────────────────────┘
//! ```
//! TCP is for ever. A receiver reads its queue before what came by TCP, so the way there keeps the order, and no way
//! back would.

use core::ptr::{null_mut, read_volatile};

use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::sk_msg;
use aya_ebpf::programs::SkMsgContext;
use shunt_ebpf_common::maps::{End, Event};

use crate::kernel_memory::{address_of, at};
use crate::maps::{HANDOFFS, PEERS, QUEUES, SOCKHASH, Sender, count};
use crate::pairing::{ends, senders};
use crate::tap;

const SK_PASS: u32 = 1;
/// From linux/bpf.h: into the socket's receive queue, not out of it.
const BPF_F_INGRESS: u64 = 1;
/// No [`Event`] of this program.
pub const REDIRECTED: u32 = 0;

/// Where `struct sock` counts the bytes of its receive queue; set from the kernel's BTF when the programs are loaded.
#[unsafe(no_mangle)]
pub static RECEIVE_QUEUE_OFFSET: u32 = 0;
/// And where it has its size, and what of it the program has set itself.
#[unsafe(no_mangle)]
pub static RECEIVE_BUFFER_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
pub static LOCKS_OFFSET: u32 = 0;
/// The bit of `SOCK_RCVBUF_LOCK` among those.
#[unsafe(no_mangle)]
pub static RECEIVE_BUFFER_LOCK: u32 = 0;
/// Bytes in a receiver's queue above which a direction goes by TCP, which knows back-pressure.
#[unsafe(no_mangle)]
pub static RECEIVE_QUEUE_LIMIT: u32 = 0;

/// The smallest receive buffer the kernel lets anybody have (`SOCK_MIN_RCVBUF`), in bytes, or less.
const SMALLEST_BUFFER: u32 = 2048;
/// The part of a buffer of the program's own that the queue may take.
const SHARE: u32 = 4;

/// Messages that a queue may hold: the kernel takes a KiB for each, and charges nobody for it.
pub const MOST_MESSAGES: u64 = 2048;
/// Of so many at least the sizes are remembered.
const RECENT: u32 = 512;

/// Bytes of a message that TCP sends faster, and how many of them in a row make a direction a bulk one.
const BULK_MESSAGE: u32 = 32 << 10;
const BULK_RUN: u32 = 16;

#[sk_msg]
pub fn shunt_message(ctx: SkMsgContext) -> u32 {
    // SAFETY: the program's context; the socket is checked for null.
    let (sk, end, sender) = unsafe {
        let sk = (*ctx.msg).__bindgen_anon_3.sk;
        if sk.is_null() {
            return SK_PASS;
        }
        let end = bpf_sk_storage_get(ends(), sk.cast(), null_mut(), 0).cast::<End>();
        let sender = bpf_sk_storage_get(senders(), sk.cast(), null_mut(), 0).cast::<Sender>();
        if end.is_null() || sender.is_null() {
            return SK_PASS;
        }
        // The socket is locked while this runs, and nothing else writes these.
        (sk, &mut *end, &mut *sender)
    };
    if end.state == End::TCP {
        return SK_PASS;
    }
    let before = end.state;
    let why = redirect(&ctx, end, sender);
    // Whatever becomes of it there, the message is on its way.
    if tap::is_on() {
        let state = if why == REDIRECTED { end.state } else { before };
        tap::seen(&ctx, address_of(sk), state, end, sender, why);
    }
    SK_PASS
}

/// Why the direction goes by TCP from now on, an [`Event`]; [`REDIRECTED`] if it does not.
#[inline(always)]
fn redirect(ctx: &SkMsgContext, end: &mut End, sender: &mut Sender) -> u32 {
    let handoff = HANDOFFS.get_ptr_mut(&end.cookie);
    if end.state != End::HANDED_OVER
        && let Some(handoff) = handoff
    {
        // SAFETY: a map value; the data plane replaces an entry as a whole.
        let (at, to) = unsafe { ((*handoff).at, (*handoff).to) };
        if to != 0 && at == end.sent {
            end.state = End::HANDED_OVER;
            (sender.target, sender.queue) = (to, 0);
            count(Event::HandedOver);
        }
    }
    if end.state == End::UNDECIDED && sender.target == 0 {
        // SAFETY: copied at once.
        match unsafe { PEERS.get(&end.cookie) } {
            Some(peer) => (end.peer, sender.target) = (*peer, *peer),
            None => return by_tcp(end, Event::Unpaired),
        }
    }
    let queued = queued(sender);
    if queued == 0 {
        (sender.messages, sender.bytes) = (0, 0);
    }
    if !fits(sender.queue, queued, ctx.size()) || messages(sender, queued) > MOST_MESSAGES {
        return by_tcp(end, Event::QueueFull);
    }
    // The agent's relay is no faster.
    if end.flags & End::DIRECT != 0 && is_bulk(sender, ctx.size()) && queued == 0 {
        return by_tcp(end, Event::Bulk);
    }
    let mut target = sender.target;
    if SOCKHASH.redirect_msg(ctx, &mut target, BPF_F_INGRESS) != i64::from(SK_PASS) {
        return by_tcp(end, Event::ReceiverGone);
    }
    note(sender, ctx.size());
    let size = u64::from(ctx.size());
    if end.state != End::HANDED_OVER {
        end.state = End::REDIRECTED;
        end.sent += size;
    } else if let Some(handoff) = handoff {
        // SAFETY: as above; from here on only this direction's messages write it.
        unsafe {
            (*handoff).bytes += size;
            (*handoff).messages += 1;
        }
    }
    REDIRECTED
}

#[inline(always)]
fn by_tcp(end: &mut End, why: Event) -> u32 {
    end.state = End::TCP;
    count(why);
    why as u32
}

/// Bytes that wait for the receiver. When it may be gone: some, which changes nothing, as a redirect that fails says so.
#[inline(always)]
fn queued(sender: &mut Sender) -> u32 {
    const SOME: u32 = 1;
    if sender.queue == 0 {
        // SAFETY: copied at once.
        match unsafe { QUEUES.get(&sender.target) } {
            Some(address) => sender.queue = *address,
            None => return SOME,
        }
    }
    at(sender.queue, &raw const RECEIVE_QUEUE_OFFSET).unwrap_or(SOME)
}

/// How many messages wait in a queue of so many bytes, by the sizes of those that were sent of late.
#[inline(always)]
pub fn messages(sender: &Sender, queued: u32) -> u64 {
    match sender.bytes {
        0 => 0,
        bytes => u64::from(queued) * u64::from(sender.messages) / u64::from(bytes),
    }
}

#[inline(always)]
fn note(sender: &mut Sender, size: u32) {
    sender.messages += 1;
    sender.bytes = sender.bytes.saturating_add(size);
    if sender.messages >= 2 * RECENT {
        (sender.messages, sender.bytes) = (sender.messages / 2, sender.bytes / 2);
    }
}

#[inline(always)]
fn fits(receiver: u64, queued: u32, size: u32) -> bool {
    let then = queued.saturating_add(size);
    then <= SMALLEST_BUFFER / SHARE || then <= most(receiver)
}

/// Has a program set the size of this socket's receive buffer (`SO_RCVBUF`)?
#[inline(always)]
pub fn has_own_buffer(socket: u64) -> bool {
    // SAFETY: as in `most`.
    let lock = unsafe { read_volatile(&raw const RECEIVE_BUFFER_LOCK) };
    let locks: u8 = at(socket, &raw const LOCKS_OFFSET).unwrap_or(0);
    u32::from(locks) & lock != 0
}

/// Bytes that the queue of a receiver may hold. What is in it counts against the receive buffer: TCP drops what comes
/// on top, and its timer for another try doubles for as long as the receiver stalls. The kernel lets a buffer grow
/// with what is in it, unless its size was set by `SO_RCVBUF`. Then half of it is TCP's first window.
#[inline(always)]
pub fn most(receiver: u64) -> u32 {
    // SAFETY: reading our own static, volatile since the loader changes it.
    let limit = unsafe { read_volatile(&raw const RECEIVE_QUEUE_LIMIT) };
    if !has_own_buffer(receiver) {
        return limit;
    }
    let buffer: u32 = at(receiver, &raw const RECEIVE_BUFFER_OFFSET).unwrap_or(0);
    limit.min(buffer / SHARE)
}

/// TCP is faster for large messages in a row. Once the receiver has taken everything, the way there is also one that no
/// reader can overlook anything by.
#[inline(always)]
fn is_bulk(sender: &mut Sender, size: u32) -> bool {
    sender.large = if size < BULK_MESSAGE {
        0
    } else {
        sender.large.saturating_add(1)
    };
    sender.large > BULK_RUN
}
