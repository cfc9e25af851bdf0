//! What the kernel keeps of its sockets, read where the agent found in the kernel's types that it is.

use core::ffi::c_void;
use core::ptr::read_volatile;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

/// The value `offset` bytes behind an address. `None`: there is none.
#[inline(always)]
pub fn at<T: Copy + Default>(address: u64, offset: *const u32) -> Option<T> {
    let mut value = T::default();
    // SAFETY: reading our own statics, volatile since the loader changes them; the kernel's memory is read by a helper
    // that fails when there is none.
    unsafe {
        let from = address + u64::from(read_volatile(offset));
        let size = size_of::<T>() as u32;
        let failed = bpf_probe_read_kernel((&raw mut value).cast(), size, from as *const c_void);
        (failed == 0).then_some(value)
    }
}

/// The verifier lets nobody compute with a socket's address; as a copy from memory it is a number.
#[inline(always)]
pub fn address_of(sk: *mut bpf_sock) -> u64 {
    let pointer = sk;
    let mut address = 0_u64;
    let from = (&raw const pointer).cast::<c_void>();
    // SAFETY: both are on the stack, eight bytes each.
    unsafe { bpf_probe_read_kernel((&raw mut address).cast(), 8, from) };
    address
}
