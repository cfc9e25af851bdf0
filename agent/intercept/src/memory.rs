//! Freed memory goes back to the kernel.

/// After much was allocated and freed in one go, as when a configuration is read: the C library keeps it otherwise.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "no crate has a safe call for it")]
    // SAFETY: it takes a number and touches only what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}
