//! The agent's outbound listeners in the namespace of a connecting socket.

use core::ptr::read_volatile;

use aya_ebpf::bindings::{
    BPF_F_CURRENT_NETNS, BPF_TCP_LISTEN, bpf_sock, bpf_sock_addr, bpf_sock_tuple,
};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use shunt_ebpf_common::decision::Address;
use shunt_ebpf_common::maps::{Destination, Workload};

/// The ports of the listeners of one family.
#[derive(Clone, Copy)]
pub struct Ports([u16; Workload::OUTBOUND_PORTS]);

impl Ports {
    /// By shifting: the verifier knows no pointer into the stack that varies.
    #[inline(always)]
    pub fn at(self, index: usize) -> u16 {
        let [a, b, c, d] = self.0.map(u64::from);
        let all = a | b << 16 | c << 32 | d << 48;
        (all >> (index % Workload::OUTBOUND_PORTS * 16)) as u16
    }
}

#[inline(always)]
pub fn ports(workload: &Workload, address: &Address) -> Ports {
    Ports(if address.is_v4() {
        workload.outbound_ports_v4
    } else {
        workload.outbound_ports_v6
    })
}

/// The destination's own listener. A socket that has a local port already may have the next one: two destinations
/// from one port are two connections only as long as they differ on loopback too.
#[inline(always)]
pub fn port(ctx: *mut bpf_sock_addr, sk: *mut bpf_sock, ports: Ports, to: &Destination) -> u16 {
    let own = Workload::spread(&to.address, to.port);
    // SAFETY: the verifier knows `sk` as a socket.
    let source_port = unsafe { (*sk).src_port } as u16;
    if source_port != 0 {
        for next in 0..Workload::OUTBOUND_PORTS {
            let candidate = ports.at(own + next);
            if !is_taken(ctx, sk, to.address.is_v4(), source_port, candidate) {
                return candidate;
            }
        }
    }
    ports.at(own)
}

/// Has this socket's address and port a connection to that listener already?
#[inline(always)]
fn is_taken(
    ctx: *mut bpf_sock_addr,
    sk: *mut bpf_sock,
    v4: bool,
    source_port: u16,
    listener: u16,
) -> bool {
    let mut tuple = loopback(v4, 0);
    // SAFETY: writing the arm of the family; the verifier knows `sk` as a socket. As the client's end would receive.
    unsafe {
        if v4 {
            let ends = &mut tuple.__bindgen_anon_1.ipv4;
            (ends.saddr, ends.sport) = (ends.daddr, listener.to_be());
            ends.dport = source_port.to_be();
            if (*sk).src_ip4 != 0 {
                ends.daddr = (*sk).src_ip4;
            }
        } else {
            let ends = &mut tuple.__bindgen_anon_1.ipv6;
            (ends.saddr, ends.sport) = (ends.daddr, listener.to_be());
            ends.dport = source_port.to_be();
            let words = (&raw const (*sk).src_ip6).cast::<u32>();
            let bound = [
                read_volatile(words),
                read_volatile(words.add(1)),
                read_volatile(words.add(2)),
                read_volatile(words.add(3)),
            ];
            if bound[0] | bound[1] | bound[2] | bound[3] != 0 {
                ends.daddr = bound;
            }
        }
    }
    !matches!(look_up(ctx, &mut tuple, v4), None | Some(BPF_TCP_LISTEN))
}

/// Asks for the agent's listener in the socket's own namespace: an agent that is gone must not refuse connections.
#[inline(always)]
pub fn is_there(ctx: *mut bpf_sock_addr, v4: bool, port: u16) -> bool {
    look_up(ctx, &mut loopback(v4, port), v4).is_some()
}

/// The same of a socket for datagrams.
#[inline(always)]
pub fn takes_datagrams(ctx: *mut bpf_sock_addr, v4: bool, port: u16) -> bool {
    let mut tuple = loopback(v4, port);
    let netns = BPF_F_CURRENT_NETNS as i64 as u64;
    // SAFETY: `tuple` lives across the call; the reference is released at once.
    unsafe {
        let size = size(&tuple, v4);
        let found = bpf_sk_lookup_udp(ctx.cast(), &raw mut tuple, size, netns, 0);
        if found.is_null() {
            return false;
        }
        bpf_sk_release(found.cast());
        true
    }
}

/// From anywhere to this port of loopback.
#[inline(always)]
fn loopback(v4: bool, port: u16) -> bpf_sock_tuple {
    // SAFETY: a union of plain integers, of which the family's arm is written.
    unsafe {
        let mut tuple: bpf_sock_tuple = core::mem::zeroed();
        if v4 {
            tuple.__bindgen_anon_1.ipv4.daddr = u32::from_ne_bytes([127, 0, 0, 1]);
            tuple.__bindgen_anon_1.ipv4.dport = port.to_be();
        } else {
            tuple.__bindgen_anon_1.ipv6.daddr = [0, 0, 0, 1_u32.to_be()];
            tuple.__bindgen_anon_1.ipv6.dport = port.to_be();
        }
        tuple
    }
}

/// The state of the socket in the connecting one's namespace that this tuple leads to.
#[inline(always)]
fn look_up(ctx: *mut bpf_sock_addr, tuple: &mut bpf_sock_tuple, v4: bool) -> Option<u32> {
    let size = size(tuple, v4);
    let netns = BPF_F_CURRENT_NETNS as i64 as u64;
    // SAFETY: `tuple` lives across the call; the reference is released at once.
    unsafe {
        let found = bpf_skc_lookup_tcp(ctx.cast(), tuple, size, netns, 0);
        if found.is_null() {
            return None;
        }
        let state = (*found).state;
        bpf_sk_release(found.cast());
        Some(state)
    }
}

#[inline(always)]
fn size(tuple: &bpf_sock_tuple, v4: bool) -> u32 {
    // SAFETY: a size does not depend on the values.
    unsafe {
        if v4 {
            size_of_val(&tuple.__bindgen_anon_1.ipv4) as u32
        } else {
            size_of_val(&tuple.__bindgen_anon_1.ipv6) as u32
        }
    }
}
