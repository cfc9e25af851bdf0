//! BPF_PROG_TEST_RUN of `sk_lookup`.
#![expect(unsafe_code, reason = "bpf(2) and SO_COOKIE have no safe binding")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use aya::programs::{ProgramFd, loaded_programs};

/// From linux/bpf.h.
const BPF_PROG_TEST_RUN: i64 = 10;
/// A port on which only this test has a listener and a captured connection at once.
const RARE: u16 = 65535;

/// A connection's first packet.
pub struct Packet {
    pub from: IpAddr,
    pub to: SocketAddr,
}

/// `union bpf_attr`, the arm of the command.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// `struct bpf_sk_lookup`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Lookup {
    cookie: u64,
    family: u32,
    protocol: u32,
    remote_ip4: [u8; 4],
    remote_ip6: [u8; 16],
    remote_port: [u8; 2],
    padding: u16,
    local_ip4: [u8; 4],
    local_ip6: [u8; 16],
    local_port: u32,
    ingress_ifindex: u32,
    tail: u32,
}

/// The cookie of the chosen listener; `None`: the kernel goes on as without the program.
pub fn run(program: &ProgramFd, packet: &Packet) -> io::Result<Option<u64>> {
    let mut lookup = Lookup {
        protocol: 6,
        remote_port: 40000_u16.to_be_bytes(),
        local_port: u32::from(packet.to.port()),
        ..Lookup::default()
    };
    match (packet.from, packet.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            lookup.family = libc::AF_INET as u32;
            (lookup.remote_ip4, lookup.local_ip4) = (from.octets(), to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            lookup.family = libc::AF_INET6 as u32;
            (lookup.remote_ip6, lookup.local_ip6) = (from.octets(), to.octets());
        }
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    let mut out = Lookup::default();
    let size = size_of::<Lookup>() as u32;
    let mut attr = TestRun {
        prog_fd: program.as_fd().as_raw_fd() as u32,
        ctx_size_in: size,
        ctx_size_out: size,
        ctx_in: (&raw const lookup) as u64,
        ctx_out: (&raw mut out) as u64,
        ..TestRun::default()
    };
    let (at, length) = (&raw mut attr, size_of::<TestRun>());
    // SAFETY: `attr` has the layout of the command; its pointers lead to two contexts of the sizes beside them.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, at, length) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((out.cookie != 0).then_some(out.cookie))
}

/// The instance that hands connections to this listener. Of the others, none has a workload that listens on [`RARE`].
pub fn program_that_chooses(cookie: u64, to: IpAddr) -> ProgramFd {
    let packet = Packet {
        from: Ipv4Addr::new(192, 0, 2, 1).into(),
        to: SocketAddr::new(to, RARE),
    };
    loaded_programs()
        .flatten()
        .filter(|info| info.name_as_str() == Some("shunt_sk_lookup"))
        .filter_map(|info| info.fd().ok())
        .find(|program| run(program, &packet).is_ok_and(|chosen| chosen == Some(cookie)))
        .expect("the program that was just attached")
}

/// SO_COOKIE.
pub fn cookie(socket: i32) -> u64 {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_COOKIE);
    // SAFETY: `cookie` and `length` live across the call and `length` is the size of `cookie`.
    let done = unsafe {
        libc::getsockopt(
            socket,
            level,
            name,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    cookie
}
