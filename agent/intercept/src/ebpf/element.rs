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
const LOOKUP_BATCH: i64 = 24;
/// Elements that are read with one call; no bucket of a hash map has so many.
const BATCH: usize = 4096;

/// `union bpf_attr`, the arm of the map element commands.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The arm of the batch commands.
#[repr(C)]
struct BatchAttr {
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
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

    /// Tells of every element of a hash map; of one that comes or goes meanwhile, perhaps.
    pub(super) fn each(&self, mut told: impl FnMut(K, V)) -> io::Result<()> {
        let mut keys = Vec::<K>::with_capacity(BATCH);
        let mut values = Vec::<V>::with_capacity(BATCH);
        let (mut from, mut next) = (None::<u32>, 0_u32);
        loop {
            let mut attr = BatchAttr {
                from: from
                    .as_ref()
                    .map_or(0, |from| std::ptr::from_ref(from) as u64),
                next: std::ptr::from_mut(&mut next) as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: BATCH as u32,
                map_fd: self.map.as_raw_fd().unsigned_abs(),
                element_flags: 0,
                flags: 0,
            };
            let (address, size) = (std::ptr::from_mut(&mut attr), size_of::<BatchAttr>());
            // SAFETY: `attr` has the layout of the command, and its pointers lead to places in a hash map's order and to
            // room for as many keys and values of the map's sizes as it says.
            let done = unsafe { libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, address, size) };
            let was_last = match done {
                0 => false,
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::NotFound => true,
                    error => return Err(error),
                },
            };
            // SAFETY: the kernel wrote that many of each, which may have any bits.
            unsafe {
                keys.set_len(attr.count as usize);
                values.set_len(attr.count as usize);
            }
            keys.drain(..)
                .zip(values.drain(..))
                .for_each(|(key, value)| told(key, value));
            if was_last {
                return Ok(());
            }
            from = Some(next);
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
