//! System calls that no crate of ours offers without `unsafe`, each wrapped so that its callers need none.
#![expect(
    unsafe_code,
    reason = "raw options, ioctls and signal actions have no safe wrapper"
)]

use std::mem::size_of_val;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;
use std::sync::Once;

use nix::errno::Errno;

/// One option of a socket, `room` bytes at most.
pub(super) fn option(
    socket: &impl AsFd,
    level: i32,
    name: i32,
    room: usize,
) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0_u8; room];
    let mut length = room as libc::socklen_t;
    // SAFETY: `value` has `length` bytes, and both outlive the call.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(done)?;
    value.truncate(length as usize);
    Ok(value)
}

pub(super) fn set_option(
    socket: &impl AsFd,
    level: i32,
    name: i32,
    value: &[u8],
) -> Result<(), Errno> {
    // SAFETY: the pointer and the length are those of `value`.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            size_of_val(value) as libc::socklen_t,
        )
    };
    Errno::result(done).map(drop)
}

/// An ioctl that answers with one int: FIONREAD, TIOCOUTQ, SIOCATMARK.
pub(super) fn ask(socket: &impl AsFd, request: libc::Ioctl) -> Result<i32, Errno> {
    let mut answer: libc::c_int = 0;
    // SAFETY: these requests write one int, which `answer` is.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), request, &raw mut answer) };
    Errno::result(done)?;
    Ok(answer)
}

/// A thread that can be sent a signal while it lives.
#[derive(Clone, Copy)]
pub(super) struct Thread(libc::pthread_t);

impl Thread {
    pub(super) fn current() -> Self {
        // SAFETY: it has no preconditions.
        Self(unsafe { libc::pthread_self() })
    }

    /// The caller makes sure that the thread has not ended.
    pub(super) fn signal(self, signal: i32) -> Result<(), Errno> {
        // SAFETY: the rows that call it join the sender before the thread that it names ends.
        match unsafe { libc::pthread_kill(self.0, signal) } {
            0 => Ok(()),
            error => Err(Errno::from_raw(error)),
        }
    }
}

extern "C" fn nothing(_: libc::c_int) {}

/// SIGUSR1 interrupts and system calls go on after it (`SA_RESTART`); SIGUSR2 interrupts, and they end.
pub(super) fn take_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (signal, flags) in [(libc::SIGUSR1, libc::SA_RESTART), (libc::SIGUSR2, 0)] {
            // SAFETY: zeroes are a correct sigaction; its handler does nothing, which is safe at any moment.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
                action.sa_flags = flags;
                libc::sigaction(signal, &raw const action, ptr::null_mut());
            }
        }
    });
}
