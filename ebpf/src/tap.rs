//! Copies of what is sent past the TCP stack, while somebody taps.
//!
//! ```text
//!   client app ── loopback ──► agent ── CLIENT:PORT ──► server app      one flow through the agent, before hand-off
//!        └────────────────────────────────────────────────▲             and after it
//! ```
//! Of a flow through the agent only what goes to and from the server is told, under the addresses that the server knows:
//! nothing twice, and the same connection before hand-off and after it. A tap changes neither what becomes of a message
//! nor the order of messages: it looks when that is settled.

use core::ffi::c_void;
use core::ptr::read_volatile;

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_msg_pull_data, bpf_probe_read_kernel};
use aya_ebpf::programs::SkMsgContext;
use shunt_ebpf_common::decision::Address;
use shunt_ebpf_common::maps::{Destination, End, Event};
use shunt_ebpf_common::tap::{Copied, LONG, Record, SHORT, Tap};

use crate::connect::place;
use crate::kernel_memory::at;
use crate::maps::{Sender, TAP, TAPPED, WORKLOADS, count};
use crate::sk_msg::REDIRECTED;

/// Members of `struct sock` and `struct net`; set from the kernel's BTF when the programs are loaded.
#[unsafe(no_mangle)]
pub static FAMILY_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
pub static LOCAL_PORT_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
pub static REMOTE_PORT_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
pub static LOCAL_V4_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
pub static REMOTE_V4_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
pub static LOCAL_V6_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
pub static REMOTE_V6_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
pub static NET_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
pub static NET_COOKIE_OFFSET: u32 = 0;

const AF_INET: u16 = 2;
const MOST_RECORDS: u32 = Tap::MOST_BYTES / LONG as u32;

/// All that a message costs while nobody taps: one look at a map of one element.
#[inline(always)]
pub fn is_on() -> bool {
    let Some(tap) = TAP.get(0) else {
        return false;
    };
    // SAFETY: a map value, volatile since the agent writes it at any time.
    let until = unsafe { read_volatile(&raw const tap.until) };
    // SAFETY: the helper takes no argument.
    until != 0 && unsafe { bpf_ktime_get_ns() } <= until
}

/// A message was redirected, or its direction goes by TCP from now on, for the reason `why`. `own` is the kernel's
/// address of the sender's socket, `state` the state in which it was sent.
#[inline(always)]
pub fn seen(ctx: &SkMsgContext, own: u64, state: u32, end: &End, sender: &mut Sender, why: u32) {
    let Some(tap) = TAP.get(0) else {
        return;
    };
    // SAFETY: a map value, copied at once. What is half old and half new ends with the next renewal.
    let tap = unsafe { read_volatile(tap) };
    if sender.tap != tap.number {
        (sender.tap, sender.passed) = (tap.number, 0);
    }
    let size = ctx.size();
    let before = sender.passed;
    if why == REDIRECTED {
        sender.passed = before.saturating_add(size);
        if before >= tap.bytes {
            return;
        }
    }
    let mut way = Way::of(own);
    if way.is_local() {
        if state != End::HANDED_OVER {
            return;
        }
        way = Way::of(sender.queue).back();
    }
    let (workload, peer) = (workload_of(own), workload_of(sender.queue));
    if tap.workload != 0 && tap.workload != workload && tap.workload != peer {
        return;
    }
    let head = Copied {
        // SAFETY: the helper takes no argument.
        at: unsafe { bpf_ktime_get_ns() },
        from: end.cookie,
        to: sender.target,
        offset: u64::from(before),
        source: way.source,
        destination: way.destination,
        workload,
        peer,
        kind: Copied::BYTES,
        value: 0,
        number: tap.number,
        reserved: 0,
    };
    if why != REDIRECTED {
        let head = Copied {
            kind: Copied::BY_TCP,
            value: why,
            ..head
        };
        return tell::<SHORT>(ctx, &head, 0);
    }
    let wanted = size.min(tap.bytes - before);
    for index in 0..MOST_RECORDS {
        let start = index * LONG as u32;
        if start >= wanted {
            return;
        }
        let length = (wanted - start).min(LONG as u32);
        let head = Copied {
            offset: head.offset + u64::from(start),
            value: length,
            ..head
        };
        if length <= SHORT as u32 {
            return tell::<SHORT>(ctx, &head, start);
        }
        tell::<LONG>(ctx, &head, start);
    }
}

/// With the bytes from `start` on, if there are any in it.
#[inline(always)]
fn tell<const ROOM: usize>(ctx: &SkMsgContext, head: &Copied, start: u32) {
    let length = if head.kind == Copied::BYTES {
        head.value
    } else {
        0
    };
    // Nothing is read of nothing, but the kernel wants an address of its own.
    let mut from = (&raw const *head).cast::<c_void>();
    if length > 0 {
        // SAFETY: the program's context; what it points to is read by a helper only. The kernel puts bytes that are in
        // several places into one, if it has the memory; the message stays the same.
        unsafe {
            if bpf_msg_pull_data(ctx.msg, start, start + length, 0) != 0 {
                return count(Event::TapLost);
            }
            from = read_volatile(&raw const (*ctx.msg).__bindgen_anon_1.data).cast_const();
        }
    }
    let Some(mut place) = TAPPED.reserve::<Record<ROOM>>(0) else {
        return count(Event::TapLost);
    };
    let record = place.as_mut_ptr();
    // SAFETY: there is room for a head and `ROOM` bytes, and the kernel's memory is read by a helper that fails when there
    // is none.
    let failed = unsafe {
        (*record).head = *head;
        let bytes = (&raw mut (*record).bytes).cast();
        bpf_probe_read_kernel(bytes, length.min(ROOM as u32), from)
    };
    if failed != 0 {
        count(Event::TapLost);
        return place.discard(u64::from(BPF_RB_NO_WAKEUP));
    }
    place.submit(u64::from(BPF_RB_NO_WAKEUP));
    count(Event::TapCopied);
}

/// From where to where a message goes.
struct Way {
    source: Destination,
    destination: Destination,
}

impl Way {
    /// What is sent on the socket at this address of the kernel's.
    #[inline(always)]
    fn of(socket: u64) -> Self {
        let end = |v4, v6, port| {
            let family: u16 = at(socket, &raw const FAMILY_OFFSET).unwrap_or(0);
            let address = if family == AF_INET {
                Address::v4(at(socket, v4).unwrap_or(0))
            } else {
                Address(at(socket, v6).unwrap_or([0; 4]))
            };
            place(address, port)
        };
        let port: u16 = at(socket, &raw const LOCAL_PORT_OFFSET).unwrap_or(0);
        let remote: u16 = at(socket, &raw const REMOTE_PORT_OFFSET).unwrap_or(0);
        let (v4, v6) = (&raw const LOCAL_V4_OFFSET, &raw const LOCAL_V6_OFFSET);
        let (far_v4, far_v6) = (&raw const REMOTE_V4_OFFSET, &raw const REMOTE_V6_OFFSET);
        Self {
            source: end(v4, v6, port),
            destination: end(far_v4, far_v6, u16::from_be(remote)),
        }
    }

    #[inline(always)]
    fn back(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
        }
    }

    /// Between an application and the agent.
    #[inline(always)]
    fn is_local(&self) -> bool {
        self.source.address.is_loopback() || self.destination.address.is_loopback()
    }
}

/// The workload in whose namespace a socket is; 0: none.
#[inline(always)]
fn workload_of(socket: u64) -> u32 {
    let net: u64 = at(socket, &raw const NET_OFFSET).unwrap_or(0);
    let cookie: u64 = at(net, &raw const NET_COOKIE_OFFSET).unwrap_or(0);
    // SAFETY: see `connect`.
    unsafe { WORKLOADS.get(&cookie) }.map_or(0, |workload| workload.id)
}
