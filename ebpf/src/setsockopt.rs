//! cgroup/setsockopt: what cannot be had on a socket in the socket hash is refused as by a kernel that does not have it,
//! before harm.
//!
//! | option | harm on such a socket | answer |
//! |---|---|---|
//! | `TCP_ULP` | two owners of the socket's protocol: records that nobody decrypts | `ENOENT`: no such module |
//! | `SO_ZEROCOPY` | a completion that never comes: pages are never free again | `ENOPROTOOPT` |
//! | `TCP_REPAIR` | a checkpoint without the bytes in the queue | `ENOPROTOOPT` |
//!
//! The kernel hands every option of every socket of the cgroup to this program, copied. It gives those back untouched
//! which it does not know; of options longer than a page it has a part only, and the kernel wants to be told to take
//! the caller's own.

use core::ptr::{null_mut, read_volatile, write_volatile};

use aya_ebpf::helpers::generated::{bpf_set_retval, bpf_sk_storage_get};
use aya_ebpf::macros::cgroup_sockopt;
use aya_ebpf::programs::SockoptContext;
use shunt_ebpf_common::maps::Event;

use crate::maps::count;
use crate::pairing::ends;

const PASS: i32 = 1;
const REFUSE: i32 = 0;

/// From the kernel's headers, the same on every target that we have.
const SOL_SOCKET: i32 = 1;
const SO_ZEROCOPY: i32 = 60;
const SOL_TCP: i32 = 6;
const TCP_REPAIR: i32 = 19;
const TCP_ULP: i32 = 31;
const ENOENT: i32 = 2;
const ENOPROTOOPT: i32 = 92;
/// Of the smallest page: what is longer may have been cut.
const PAGE: i32 = 4096;

#[cgroup_sockopt(setsockopt)]
pub fn shunt_setsockopt(ctx: SockoptContext) -> i32 {
    // SAFETY: the program's context. Volatile, since the verifier takes no access that was merged from two.
    let (level, name, length) = unsafe {
        let option = ctx.sockopt;
        (
            read_volatile(&raw const (*option).level),
            read_volatile(&raw const (*option).optname),
            read_volatile(&raw const (*option).optlen),
        )
    };
    let answer = match (level, name) {
        (SOL_TCP, TCP_ULP) => ENOENT,
        (SOL_TCP, TCP_REPAIR) | (SOL_SOCKET, SO_ZEROCOPY) => ENOPROTOOPT,
        _ => {
            if length > PAGE {
                // SAFETY: as above.
                unsafe { write_volatile(&raw mut (*ctx.sockopt).optlen, 0) };
            }
            return PASS;
        }
    };
    // SAFETY: the program's context; without the flag nothing is made.
    let is_accelerated = unsafe {
        let sk = (*ctx.sockopt).__bindgen_anon_1.sk;
        !sk.is_null() && !bpf_sk_storage_get(ends(), sk.cast(), null_mut(), 0).is_null()
    };
    if !is_accelerated {
        return PASS;
    }
    count(Event::OptionRefused);
    // SAFETY: the helper takes a number. It stays when the program says no.
    unsafe { bpf_set_retval(-answer) };
    REFUSE
}
