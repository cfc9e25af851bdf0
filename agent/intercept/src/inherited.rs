//! Descriptors across exec(2): what a process leaves to the program that takes its place, by number.
#![expect(
    unsafe_code,
    reason = "a number that came across exec is a descriptor only by agreement"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Leaves it to the next program. Gives its number.
///
/// # Errors
/// It is none.
pub fn bequeath(fd: &OwnedFd) -> io::Result<i32> {
    fcntl_setfd(fd, FdFlags::empty())?;
    Ok(fd.as_raw_fd())
}

/// Writing where nobody reads is an error again, and does not end this process. An exec(2) by the standard library that
/// failed has left it as other programs expect it.
///
/// # Errors
/// Never, on Linux.
pub fn ignore_broken_pipes() -> io::Result<()> {
    // SAFETY: no handler of ours is set or replaced by it.
    let before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    match before {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Takes what the program before has [left](bequeath). Each number once.
///
/// # Errors
/// There is no such descriptor, or it was not left on purpose.
pub fn inherit(number: i32) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: borrowed for the two calls only, which say whether it is open, and by its flag whether it came across exec:
    // everything that this program opens itself has the flag set.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    if fcntl_getfd(borrowed)?.contains(FdFlags::CLOEXEC) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, it was left to us, and nobody else in this program has taken it: its flag was not set.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
