//! cgroup/getsockname4 and getsockname6: a captured socket's own address is the workload's, not loopback. The port is
//! the socket's own: the one which the destination sees belongs to the agent.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use shunt_ebpf_common::decision::Address;
use shunt_ebpf_common::maps::Workload;

use crate::connect::note_of;
use crate::maps::{SocketNote, WORKLOADS};
use crate::scope::workload_key;

const DONE: i32 = 1;

/// The workload of a captured socket.
#[inline(always)]
fn workload_of(ctx: &SockAddrContext) -> Option<&'static Workload> {
    // SAFETY: the program's context; the note is checked for null.
    unsafe {
        let note = note_of((*ctx.sock_addr).__bindgen_anon_1.sk.cast());
        if note.is_null() || (*note).state & SocketNote::CAPTURED == 0 {
            return None;
        }
        let key = workload_key(bpf_get_netns_cookie(ctx.sock_addr.cast()));
        WORKLOADS.get(&key)
    }
}

#[cgroup_sock_addr(getsockname4)]
pub fn shunt_sockname4(ctx: SockAddrContext) -> i32 {
    let Some(workload) = workload_of(&ctx) else {
        return DONE;
    };
    let addr = ctx.sock_addr;
    // SAFETY: the program's context.
    unsafe {
        if workload.source_v4 != 0 && Address::v4((*addr).user_ip4).is_loopback() {
            (*addr).user_ip4 = workload.source_v4;
        }
    }
    DONE
}

#[cgroup_sock_addr(getsockname6)]
pub fn shunt_sockname6(ctx: SockAddrContext) -> i32 {
    let Some(workload) = workload_of(&ctx) else {
        return DONE;
    };
    // SAFETY: the program's context; volatile so that no access is merged.
    unsafe {
        let words = (&raw mut (*ctx.sock_addr).user_ip6).cast::<u32>();
        let shown = Address([
            read_volatile(words),
            read_volatile(words.add(1)),
            read_volatile(words.add(2)),
            read_volatile(words.add(3)),
        ]);
        if !shown.is_loopback() {
            return DONE;
        }
        if shown.is_v4() {
            if workload.source_v4 != 0 {
                write_volatile(words.add(3), workload.source_v4);
            }
        } else if workload.source_v6[0] != 0 {
            write_volatile(words, workload.source_v6[0]);
            write_volatile(words.add(1), workload.source_v6[1]);
            write_volatile(words.add(2), workload.source_v6[2]);
            write_volatile(words.add(3), workload.source_v6[3]);
        }
    }
    DONE
}
