//! Every message of an accelerated socket: into its receiver's queue, or by TCP.
//!
//! ```text
//!              first message: peer found          the agent says: all that you sent has arrived
//!  UNDECIDED ─────────────────────────► REDIRECTED ──────────────────────────────────────────► HANDED_OVER
//!      │ peer not found                    │ receiver's queue full, or receiver gone               │
//!      └───────────────────────────────► TCP ◄─────────────────────────────────────────────────────┘
//! ```
//! TCP is for ever. A receiver reads its queue before what came by TCP, so the way there keeps the order, and no way
//! back would.

use core::ffi::c_void;
use core::ptr::{null_mut, read_volatile};

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_sk_storage_get};
use aya_ebpf::macros::sk_msg;
use aya_ebpf::programs::SkMsgContext;
use shunt_ebpf_common::maps::{End, Event};

use crate::maps::{HANDOFFS, PEERS, QUEUES, SOCKHASH, Sender, count};
use crate::pairing::{ends, senders};

const SK_PASS: u32 = 1;
/// From linux/bpf.h: into the socket's receive queue, not out of it.
const BPF_F_INGRESS: u64 = 1;

/// Where `struct sock` counts the bytes of its receive queue; set from the kernel's BTF when the programs are loaded.
#[unsafe(no_mangle)]
pub static RECEIVE_QUEUE_OFFSET: u32 = 0;
/// Bytes in a receiver's queue above which a direction goes by TCP, which knows back-pressure.
#[unsafe(no_mangle)]
pub static RECEIVE_QUEUE_LIMIT: u32 = 0;

#[sk_msg]
pub fn shunt_message(ctx: SkMsgContext) -> u32 {
    redirect(&ctx);
    SK_PASS
}

#[inline(always)]
fn redirect(ctx: &SkMsgContext) {
    // SAFETY: the program's context; the socket is checked for null.
    let (end, sender) = unsafe {
        let sk = (*ctx.msg).__bindgen_anon_3.sk;
        if sk.is_null() {
            return;
        }
        let end = bpf_sk_storage_get(ends(), sk.cast(), null_mut(), 0).cast::<End>();
        let sender = bpf_sk_storage_get(senders(), sk.cast(), null_mut(), 0).cast::<Sender>();
        if end.is_null() || sender.is_null() {
            return;
        }
        // The socket is locked while this runs, and nothing else writes these.
        (&mut *end, &mut *sender)
    };
    if end.state == End::TCP {
        return;
    }
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
    if is_full(sender) {
        return by_tcp(end, Event::QueueFull);
    }
    let mut target = sender.target;
    if SOCKHASH.redirect_msg(ctx, &mut target, BPF_F_INGRESS) != i64::from(SK_PASS) {
        return by_tcp(end, Event::ReceiverGone);
    }
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
}

#[inline(always)]
fn by_tcp(end: &mut End, why: Event) {
    end.state = End::TCP;
    count(why);
}

/// The receiver may be gone: then whatever is read decides between TCP and a redirect that fails, both of them right.
#[inline(always)]
fn is_full(sender: &mut Sender) -> bool {
    if sender.queue == 0 {
        // SAFETY: copied at once.
        match unsafe { QUEUES.get(&sender.target) } {
            Some(address) => sender.queue = *address,
            None => return false,
        }
    }
    let mut queued = 0_u32;
    // SAFETY: reading our own statics, volatile since the loader changes them; the kernel's memory is read by a helper
    // that fails when there is none.
    unsafe {
        let from = sender.queue + u64::from(read_volatile(&raw const RECEIVE_QUEUE_OFFSET));
        let read = bpf_probe_read_kernel((&raw mut queued).cast(), 4, from as *const c_void);
        read == 0 && queued > read_volatile(&raw const RECEIVE_QUEUE_LIMIT)
    }
}
