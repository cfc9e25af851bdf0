//! Which sockets may be accelerated: what the configuration says, and what was learned where it leaves that to us.
//!
//! ```text
//!  established: watched while its class may still change ──► observer: reads ──► closed, or LONG reads: counts as good
//!                                                                 └─ a fault: the class is off for good
//! ```

use core::ffi::c_void;
use core::ptr::null_mut;

use aya_ebpf::bindings::{BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_STATE_CB_FLAG};
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_sk_storage_get};
use aya_ebpf::programs::SockOpsContext;
use shunt_ebpf_common::classes::{Class, ClassKey, Verdict, Wish, fault};
use shunt_ebpf_common::decision::Address;
use shunt_ebpf_common::maps::{Destination, ListeningPort, NetnsCookie, Workload};

use crate::connect::is_upstream_mark;
use crate::kernel_memory::{address_of, at};
use crate::maps::{ADDRESSES, CLASSES, LISTENING, VERDICTS, WATCHED, WORKLOADS, Watched};
use crate::pairing::{ends, socket};
use crate::rules::{acceleration, has_inbound_listener, has_outbound_listener};

/// The way from `struct sock` to how its file was opened; set from the kernel's BTF when the programs are loaded.
#[unsafe(no_mangle)]
pub static SOCKET_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
pub static FILE_OFFSET: u32 = 0;
#[unsafe(no_mangle)]
pub static FILE_FLAGS_OFFSET: u32 = 0;
/// Where `struct tcp_sock` has the number of the next byte to be read.
#[unsafe(no_mangle)]
pub static COPIED_OFFSET: u32 = 0;

/// From asm-generic/fcntl.h.
const O_NONBLOCK: u32 = 0o4000;

/// May this end, the one of `role` of a connection to `port`, be accelerated?
#[inline(always)]
pub fn verdict(workload: &Workload, role: u16, port: u16) -> Verdict {
    match wish(workload, port) {
        Wish::Off => Verdict::Off,
        Wish::Always => Verdict::Always,
        Wish::Auto => {
            let key = key(workload, role, port);
            // SAFETY: what is read of it may be of two moments, each of which is right.
            unsafe { CLASSES.get(&key) }.map_or(Verdict::Learning, Class::verdict)
        }
    }
}

#[inline(always)]
fn key(workload: &Workload, role: u16, port: u16) -> ClassKey {
    ClassKey {
        workload: workload.id,
        port,
        role,
    }
}

#[inline(always)]
fn wish(workload: &Workload, port: u16) -> Wish {
    Wish::of(acceleration(workload, port))
}

/// Of a connection that the agent makes for a client in this namespace to that server.
#[inline(always)]
pub fn both(from: NetnsCookie, server: &Address, port: u16) -> Verdict {
    // SAFETY: the agent replaces an entry as a whole, and the kernel frees the old one when no program uses it.
    unsafe {
        let Some(client) = WORKLOADS.get(&from) else {
            return Verdict::Off;
        };
        let Some(owner) = ADDRESSES.get(server) else {
            return Verdict::Off;
        };
        let Some(server) = WORKLOADS.get(owner) else {
            return Verdict::Off;
        };
        // It is not known which of its sockets this is for; to that one nothing happens here.
        let own = better(
            verdict(client, ClassKey::CLIENT, port),
            verdict(client, ClassKey::BLOCKING_CLIENT, port),
        );
        worse(own, verdict(server, ClassKey::SERVER, port))
    }
}

#[inline(always)]
fn better(one: Verdict, other: Verdict) -> Verdict {
    if (one as u32) < other as u32 {
        one
    } else {
        other
    }
}

#[inline(always)]
fn worse(one: Verdict, other: Verdict) -> Verdict {
    if one as u32 > other as u32 {
        one
    } else {
        other
    }
}

/// A captured connection is established: is it to be accelerated? Watches it if that tells something.
#[inline(always)]
pub fn connected(ctx: &SockOpsContext, from: NetnsCookie, to: &Destination) -> bool {
    // SAFETY: as in `both`.
    let (client, server) = unsafe {
        let Some(client) = WORKLOADS.get(&from) else {
            return false;
        };
        let Some(owner) = ADDRESSES.get(&to.address) else {
            return false;
        };
        let Some(server) = WORKLOADS.get(owner) else {
            return false;
        };
        (client, server)
    };
    // It ends in a listener's proxy, which knows TCP only.
    if has_outbound_listener(client, to) || has_inbound_listener(server, to.port) {
        return false;
    }
    let role = if wish(client, to.port) == Wish::Auto && blocks(ctx) {
        ClassKey::BLOCKING_CLIENT
    } else {
        ClassKey::CLIENT
    };
    let own = verdict(client, role, to.port);
    let theirs = verdict(server, ClassKey::SERVER, to.port);
    if own.is_watched() && theirs != Verdict::Off && theirs != Verdict::Fault {
        // No more classes than there are listeners, whoever knocks at how many ports.
        let listening = ListeningPort {
            workload: server.id,
            port: u32::from(to.port),
        };
        // SAFETY: only whether it is there is asked.
        if unsafe { LISTENING.get(&listening) }.is_some() {
            watch(ctx, key(client, role, to.port));
        }
    }
    let verdict = worse(own, theirs);
    tell(verdict as u32);
    verdict.accelerates()
}

/// A connection reached an application.
#[inline(always)]
pub fn accepted(ctx: &SockOpsContext, workload: &Workload) {
    let sk = socket(ctx);
    // At the cgroup2 root this also sees what the agent itself accepts in the workload's name: by its listener's mark.
    // SAFETY: the verifier knows `sk` as a socket.
    if sk.is_null() || is_upstream_mark(unsafe { (*sk).mark }) {
        return;
    }
    let port = ctx.local_port() as u16;
    if verdict(workload, ClassKey::SERVER, port).is_watched() {
        watch(ctx, key(workload, ClassKey::SERVER, port));
    }
}

#[inline(always)]
fn watch(ctx: &SockOpsContext, key: ClassKey) {
    if CLASSES.get_ptr(&key).is_none() {
        // SAFETY: all zeroes are a class of which nothing is known.
        let class: Class = unsafe { core::mem::zeroed() };
        if CLASSES.insert(&key, &class, u64::from(BPF_NOEXIST)).is_ok() {
            tell(Verdict::CHANGES);
        }
    }
    let Some(class) = CLASSES.get_ptr_mut(&key) else {
        return;
    };
    let sk = socket(ctx);
    if sk.is_null() {
        return;
    }
    let mut watched = Watched {
        class: key,
        // SAFETY: the program's context. Bytes that came with the SYN (TCP fast open) look taken, which is no fault.
        start: unsafe { (*ctx.ops).rcv_nxt },
        taken: 0,
        reads: 0,
        state: 0,
    };
    let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: the map and the socket are the verifier's; `watched` lives across the call, and `class` is a map's value.
    unsafe {
        if !watched_of(sk.cast()).is_null() {
            return;
        }
        let made = bpf_sk_storage_get(storage(), sk.cast(), (&raw mut watched).cast(), create);
        if made.is_null() {
            return;
        }
        (*class).watched += 1;
    }
    let _ = ctx.set_cb_flags(ctx.cb_flags() as i32 | BPF_SOCK_OPS_STATE_CB_FLAG as i32);
}

/// A watched socket has closed.
#[inline(always)]
pub fn closed(ctx: &SockOpsContext) {
    let sk = socket(ctx);
    if sk.is_null() {
        return;
    }
    let watched = watched_of(sk.cast());
    if watched.is_null() {
        return;
    }
    if is_drained(address_of(sk), watched) {
        // Whoever it was is not here.
        let _ = noted(sk.cast(), watched, fault::OTHERWISE);
    }
    // SAFETY: checked for null; the socket is locked. One that was never read tells nothing.
    if unsafe { (*watched).reads } > 0 {
        good(watched);
    }
}

/// Have bytes left the socket that nobody read: by splice(2), mmap(2), for a program in the kernel? The end of a stream
/// is one more. What came by way of the queue is not among them.
#[inline(always)]
pub fn is_drained(sk: u64, watched: *const Watched) -> bool {
    let Some(copied) = at::<u32>(sk, &raw const COPIED_OFFSET) else {
        return true;
    };
    // SAFETY: the caller has checked for null.
    let (start, taken) = unsafe { ((*watched).start, (*watched).taken) };
    copied.wrapping_sub(start).wrapping_sub(taken).cast_signed() > 1
}

/// Notes a fault of a socket. Gives the class if it is its first, for who it was to be noted.
#[inline(always)]
pub fn noted(sk: *mut c_void, watched: *mut Watched, what: u32) -> Option<*mut Class> {
    // SAFETY: the caller has checked for null; `class` is a map's value.
    unsafe {
        if (*watched).state & Watched::FAULTY != 0 {
            return None;
        }
        (*watched).state |= Watched::FAULTY;
        let key = (*watched).class;
        let class = CLASSES.get_ptr_mut(&key)?;
        if !bpf_sk_storage_get(ends(), sk, null_mut(), 0).is_null() {
            (*class).late += 1;
            tell(Verdict::CHANGES);
        }
        if (*class).fault != fault::NONE {
            return None;
        }
        (*class).fault_at = bpf_ktime_get_ns();
        (*class).fault = what;
        tell(Verdict::CHANGES);
        Some(class)
    }
}

/// A connection has shown how it is used, and nothing was wrong.
#[inline(always)]
pub fn good(watched: *mut Watched) {
    const DONE: u32 = Watched::TOLD | Watched::FAULTY;
    // SAFETY: the caller has checked for null; the other is a map's value.
    unsafe {
        if (*watched).state & DONE != 0 {
            return;
        }
        (*watched).state |= Watched::TOLD;
        let key = (*watched).class;
        let Some(class) = CLASSES.get_ptr_mut(&key) else {
            return;
        };
        let before = (*class).verdict();
        (*class).reads = (*class).average((*watched).reads);
        (*class).good = (*class).good.saturating_add(1);
        if (*class).verdict() as u32 != before as u32 {
            tell(Verdict::CHANGES);
        }
    }
}

/// Would a read of this socket wait, as it is now?
#[inline(always)]
fn blocks(ctx: &SockOpsContext) -> bool {
    let sk = socket(ctx);
    if sk.is_null() {
        return true;
    }
    let socket: u64 = at(address_of(sk), &raw const SOCKET_OFFSET).unwrap_or(0);
    let file: u64 = at(socket, &raw const FILE_OFFSET).unwrap_or(0);
    let flags: u32 = at(file, &raw const FILE_FLAGS_OFFSET).unwrap_or(0);
    flags & O_NONBLOCK == 0
}

#[inline(always)]
pub fn tell(slot: u32) {
    if let Some(counter) = VERDICTS.get_ptr_mut(slot) {
        // SAFETY: as in `maps::count`.
        unsafe { *counter += 1 };
    }
}

/// Null when it is not watched.
#[inline(always)]
pub fn watched_of(sk: *mut c_void) -> *mut Watched {
    // SAFETY: the verifier knows `sk` as a socket; without the flag nothing is made.
    unsafe { bpf_sk_storage_get(storage(), sk, null_mut(), 0).cast() }
}

#[inline(always)]
fn storage() -> *mut c_void {
    (&raw const WATCHED).cast_mut().cast()
}
