//! Elements of a map by its descriptor alone, without any capability: kernels from 5.19 let whoever holds a map's
//! descriptor use it. For the data plane.
#![expect(
    unsafe_code,
    reason = "bpf(2) has no safe binding for maps that another process made"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

/// From linux/bpf.h.
const LOOKUP: i64 = 1;
const UPDATE: i64 = 2;
const DELETE: i64 = 3;

/// `union bpf_attr`, the arm of the map element commands.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A map whose keys are `K` and whose values are `V`, as far as whoever made this knows.
#[derive(Debug)]
pub(super) struct Elements<K, V> {
    map: OwnedFd,
    types: std::marker::PhantomData<fn(K) -> V>,
}

impl<K: aya::Pod, V: aya::Pod> Elements<K, V> {
    pub(super) fn from_fd(map: OwnedFd) -> Self {
        let types = std::marker::PhantomData;
        Self { map, types }
    }

    pub(super) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        match self.call(LOOKUP, key, value.as_mut_ptr() as u64) {
            // SAFETY: the kernel wrote the whole value, which may have any bits.
            Ok(()) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn set(&self, key: &K, value: &V) -> io::Result<()> {
        self.call(UPDATE, key, std::ptr::from_ref(value) as u64)
    }

    pub(super) fn remove(&self, key: &K) -> io::Result<()> {
        self.call(DELETE, key, 0)
    }

    fn call(&self, command: i64, key: &K, value: u64) -> io::Result<()> {
        let attr = ElementAttr {
            map_fd: self.map.as_raw_fd().unsigned_abs(),
            padding: 0,
            key: std::ptr::from_ref(key) as u64,
            value,
            flags: 0,
        };
        let (address, size) = (std::ptr::from_ref(&attr), size_of::<ElementAttr>());
        // SAFETY: `attr` has the layout of the command, and its pointers lead to a key and a value of the map's sizes.
        match unsafe { libc::syscall(libc::SYS_bpf, command, address, size) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
