//! Taking original destinations out of the handshake map. Runs in the data plane, without any capability: kernels
//! from 5.19 let whoever holds a map's descriptor use it.
#![expect(
    unsafe_code,
    reason = "bpf(2) has no safe binding for look-up-and-delete"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use shunt_ebpf_common::maps::{Destination, Handshake};

use super::raw;

/// From linux/bpf.h.
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: i64 = 21;

/// The data plane's end of `HANDSHAKES`.
#[derive(Debug)]
pub struct HandshakeTable {
    map: OwnedFd,
}

/// `union bpf_attr`, the arm of the map element commands.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl HandshakeTable {
    /// `map` as [`super::EbpfBackend::handshakes_fd`] gave it.
    pub fn from_fd(map: OwnedFd) -> Self {
        Self { map }
    }

    /// The destination noted for an accepted connection, once.
    ///
    /// # Errors
    /// The kernel does not let this process use the map.
    pub fn take(&self, handshake: &Handshake) -> io::Result<Option<Destination>> {
        let mut destination = MaybeUninit::<Destination>::uninit();
        let attr = ElementAttr {
            map_fd: raw(&self.map).unsigned_abs(),
            padding: 0,
            key: std::ptr::from_ref(handshake) as u64,
            value: destination.as_mut_ptr() as u64,
            flags: 0,
        };
        let (address, size) = (std::ptr::from_ref(&attr), size_of::<ElementAttr>());
        // SAFETY: `attr` has the layout of the command, and its pointers lead to a key and a value of the map's sizes.
        let done =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_AND_DELETE_ELEM, address, size) };
        if done == 0 {
            // SAFETY: the kernel wrote the whole value.
            return Ok(Some(unsafe { destination.assume_init() }));
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::NotFound => Ok(None),
            error => Err(error),
        }
    }
}
