//! Where an accepted connection was going: the kernel keeps it in the accepted socket's own storage. Read in the data
//! plane, without any capability: kernels from 5.19 let whoever holds a map's descriptor use it.
#![expect(
    unsafe_code,
    reason = "bpf(2) has no safe binding for a look-up by socket"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use shunt_ebpf_common::maps::Destination;

use super::raw;

/// From linux/bpf.h.
const BPF_MAP_LOOKUP_ELEM: i64 = 1;

/// The data plane's end of `ACCEPTED`.
#[derive(Debug)]
pub struct Destinations {
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

impl Destinations {
    /// `map` as [`super::EbpfBackend::destinations_fd`] gave it.
    pub fn from_fd(map: OwnedFd) -> Self {
        Self { map }
    }

    /// The destination of a connection that the connect hooks captured.
    ///
    /// # Errors
    /// The kernel does not let this process use the map.
    pub fn of(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<Destination>> {
        let socket = accepted.as_raw_fd();
        let mut destination = MaybeUninit::<Destination>::uninit();
        let attr = ElementAttr {
            map_fd: raw(&self.map).unsigned_abs(),
            padding: 0,
            key: std::ptr::from_ref(&socket) as u64,
            value: destination.as_mut_ptr() as u64,
            flags: 0,
        };
        let (address, size) = (std::ptr::from_ref(&attr), size_of::<ElementAttr>());
        // SAFETY: `attr` has the layout of the command, and its pointers lead to a key and a value of the map's sizes.
        let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_ELEM, address, size) };
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
