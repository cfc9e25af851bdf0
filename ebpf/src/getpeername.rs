//! cgroup/getpeername4 and getpeername6: the peer of a captured or direct socket is where it wanted to go.

use core::ptr::write_volatile;

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::connect::note_of;
use crate::maps::SocketNote;

const STEERED: u32 = SocketNote::CAPTURED | SocketNote::DIRECT;

/// getpeername has nothing to refuse.
const DONE: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn shunt_peername4(ctx: SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    // SAFETY: `addr` is the program's context; the note is checked for null.
    unsafe {
        let note = note_of((*addr).__bindgen_anon_1.sk.cast());
        if !note.is_null() && (*note).state & STEERED != 0 {
            (*addr).user_ip4 = (*note).destination.address.0[3];
            (*addr).user_port = u32::from((*note).destination.port.to_be());
        }
    }
    DONE
}

#[cgroup_sock_addr(getpeername6)]
pub fn shunt_peername6(ctx: SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    // SAFETY: as above; volatile so that no access is merged.
    unsafe {
        let note = note_of((*addr).__bindgen_anon_1.sk.cast());
        if !note.is_null() && (*note).state & STEERED != 0 {
            let words = (&raw mut (*addr).user_ip6).cast::<u32>();
            let address = (*note).destination.address.0;
            write_volatile(words, address[0]);
            write_volatile(words.add(1), address[1]);
            write_volatile(words.add(2), address[2]);
            write_volatile(words.add(3), address[3]);
            (*addr).user_port = u32::from((*note).destination.port.to_be());
        }
    }
    DONE
}
