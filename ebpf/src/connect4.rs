//! cgroup/connect4: an AF_INET socket is about to connect.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use shunt_ebpf_common::decision::Address;

use crate::connect::{Outcome, connect};

#[cgroup_sock_addr(connect4)]
pub fn shunt_connect4(ctx: SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    // SAFETY: `addr` is the program's context; single words are read and written.
    unsafe {
        let port = u16::from_be((*addr).user_port as u16);
        match connect(addr, Address::v4((*addr).user_ip4), port) {
            Outcome::Return(code) => code,
            Outcome::Direct(route) => {
                (*addr).user_ip4 = route.upstream.address.0[3];
                (*addr).user_port = u32::from(route.upstream.port.to_be());
                crate::connect::ALLOW
            }
            Outcome::Rewrite { port } => {
                (*addr).user_ip4 = u32::from_ne_bytes([127, 0, 0, 1]);
                (*addr).user_port = u32::from(port.to_be());
                crate::connect::ALLOW
            }
        }
    }
}
