//! How long a turn on a core the kernel gives this thread.
#![expect(unsafe_code, reason = "sched_setattr(2) has no safe binding")]

use std::io;
use std::mem::size_of;
use std::time::Duration;

const THIS_THREAD: libc::pid_t = 0;

/// Asks for short slices, for this thread and those that it will start. Who has short slices gets no more of a core, but
/// sooner (EEVDF, Linux 6.12; before, nothing changes). The kernel takes 0.1 ms to 100 ms.
///
/// # Errors
/// The kernel refuses. A thread that is not scheduled as most are is left as it is, which is no error.
pub fn take_slices(length: Duration) -> io::Result<()> {
    // SAFETY: integers, for which zero is a value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: the kernel writes at most `size` bytes.
    let read = unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            THIS_THREAD,
            &raw mut attributes,
            size,
            0,
        )
    };
    if read < 0 {
        return Err(io::Error::last_os_error());
    }
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.sched_runtime = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the kernel reads `attributes.size` bytes, as it has told itself.
    let set = unsafe {
        libc::syscall(
            libc::SYS_sched_setattr,
            THIS_THREAD,
            &raw const attributes,
            0,
        )
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
