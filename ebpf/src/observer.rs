//! How programs read the sockets that are watched: the tracepoint behind every recv(2), read(2) and the like.
//!
//! Every reader of the host passes here while somebody is learned about, and nearly all leave at once: a socket without
//! storage of its own costs one look.

use core::ffi::c_void;
use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use shunt_ebpf_common::classes::{Class, fault};

use crate::classes::{good, is_drained, noted, watched_of};
use crate::kernel_memory::at;
use crate::maps::Watched;

/// Members of `struct sock`; set from the kernel's BTF when the programs are loaded.
#[unsafe(no_mangle)]
pub static LOW_WATER_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
pub static FLAGS_OFFSET: u32 = 0;
/// The bit of `SOCK_ZEROCOPY` among a socket's flags.
#[unsafe(no_mangle)]
pub static ZEROCOPY_BIT: u32 = 0;

/// From linux/socket.h.
const MSG_OOB: i32 = 1;
const MSG_PEEK: i32 = 2;
const MSG_TRUNC: i32 = 0x20;
const MSG_DONTWAIT: i32 = 0x40;
const MSG_WAITALL: i32 = 0x100;
const MSG_ERRQUEUE: i32 = 0x2000;
const STRANGE: i32 = MSG_OOB | MSG_TRUNC | MSG_WAITALL | MSG_ERRQUEUE;

/// `(sk, ret, flags)`, when the read is over. One of a file that is `O_NONBLOCK` has `MSG_DONTWAIT`.
#[btf_tracepoint]
pub fn shunt_read(ctx: BtfTracePointContext) -> i32 {
    let sk: *mut c_void = ctx.arg(0);
    let watched = watched_of(sk);
    if watched.is_null() {
        return 0;
    }
    let (result, flags): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    if flags & STRANGE != 0 {
        wrong(sk, watched, fault::FLAGS);
    } else if flags & MSG_DONTWAIT == 0 {
        wrong(sk, watched, fault::BLOCKING);
    } else if result > 0 && flags & MSG_PEEK == 0 {
        took(sk, watched, result as u32);
    }
    0
}

/// A read that could not wait took bytes.
#[inline(always)]
fn took(sk: *mut c_void, watched: *mut Watched, bytes: u32) {
    // SAFETY: the caller has checked for null. Two threads at once may lose a read: then bytes look as if nobody had
    // read them, and the class is off.
    let reads = unsafe {
        (*watched).taken = (*watched).taken.wrapping_add(bytes);
        (*watched).reads = (*watched).reads.saturating_add(1);
        (*watched).reads
    };
    if reads <= Class::LONG && has_options(sk) {
        wrong(sk, watched, fault::OPTION);
    } else if reads == Class::LONG {
        if is_drained(sk as u64, watched) {
            wrong(sk, watched, fault::OTHERWISE);
        } else {
            good(watched);
        }
    }
}

/// `SO_RCVLOWAT`, `SO_ZEROCOPY`.
#[inline(always)]
fn has_options(sk: *mut c_void) -> bool {
    let low_water: i32 = at(sk as u64, &raw const LOW_WATER_OFFSET).unwrap_or(0);
    let flags: u64 = at(sk as u64, &raw const FLAGS_OFFSET).unwrap_or(u64::MAX);
    // SAFETY: reading our own static, volatile since the loader changes it.
    let bit = unsafe { read_volatile(&raw const ZEROCOPY_BIT) };
    low_water != 1 || flags >> (bit & 63) & 1 != 0
}

#[inline(always)]
fn wrong(sk: *mut c_void, watched: *mut Watched, what: u32) {
    // SAFETY: the caller has checked for null; `class` is a map's value, and there is room for a name.
    unsafe {
        let Some(class) = noted(sk, watched, what) else {
            return;
        };
        bpf_get_current_comm((&raw mut (*class).program).cast(), 16);
        (*class).process = (bpf_get_current_pid_tgid() >> 32) as u32;
    }
}
