//! cgroup/connect6: an AF_INET6 socket is about to connect, perhaps to an IPv4-mapped address.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use shunt_ebpf_common::decision::Address;

use crate::connect::{Outcome, connect};

#[cgroup_sock_addr(connect6)]
pub fn shunt_connect6(ctx: SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    // SAFETY: `addr` is the program's context; single words are read and written, volatile so that the compiler
    // does not merge them into accesses which the verifier refuses.
    unsafe {
        let words = &raw mut (*addr).user_ip6;
        let word = |index: usize| words.cast::<u32>().add(index);
        let address = Address([
            read_volatile(word(0)),
            read_volatile(word(1)),
            read_volatile(word(2)),
            read_volatile(word(3)),
        ]);
        let port = u16::from_be((*addr).user_port as u16);
        match connect(addr, address, port) {
            Outcome::Return(code) => code,
            Outcome::Direct(route) => {
                let upstream = route.upstream.address.0;
                write_volatile(word(0), upstream[0]);
                write_volatile(word(1), upstream[1]);
                write_volatile(word(2), upstream[2]);
                write_volatile(word(3), upstream[3]);
                (*addr).user_port = u32::from(route.upstream.port.to_be());
                crate::connect::ALLOW
            }
            Outcome::Rewrite { port } => {
                let loopback = if address.is_v4() {
                    [0, 0, Address::V4_MAPPED, u32::from_ne_bytes([127, 0, 0, 1])]
                } else {
                    [0, 0, 0, 1_u32.to_be()]
                };
                write_volatile(word(0), loopback[0]);
                write_volatile(word(1), loopback[1]);
                write_volatile(word(2), loopback[2]);
                write_volatile(word(3), loopback[3]);
                (*addr).user_port = u32::from(port.to_be());
                crate::connect::ALLOW
            }
        }
    }
}
