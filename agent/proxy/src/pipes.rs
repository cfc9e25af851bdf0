//! Pipes for splice(2) that belong to a worker: leased while bytes move through them, bounded in number.
//!
//! The data plane is not privileged, and the kernel counts the pipes of a user, root's with everybody's root: it may
//! give none, or one with two slots. Then the direction goes on copying.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::pipe::{
    PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice,
};
use tokio::net::TcpStream;

/// A worker's pipes, in use or free: with [`LARGE_PIPE`] an eighth of what one user may have (`fs.pipe-user-pages-soft`,
/// 16384 pages by default), and at most a long turn each of what stalled readers hold.
const MAX_PIPES: usize = 32;
/// Free ones that are kept: two descriptors and some hundred bytes each.
const KEPT_PIPES: usize = 16;
/// Bytes; 64 slots. A slot holds a fragment of the network's buffers, 32 KiB at most and often much less, not a page:
/// with 16 slots a single flow had 0.7 of the rate without us, with 64 0.95.
const LARGE_PIPE: usize = 256 << 10;
/// Bytes. A pipe made under the kernel's limit is smaller: 8 KiB, not worth a system call.
const SMALLEST_PIPE: usize = 64 << 10;

/// A worker's pool.
#[derive(Clone, Debug)]
pub(crate) struct Pipes {
    shared: Rc<RefCell<Shared>>,
}

#[derive(Debug)]
struct Shared {
    free: Vec<Pipe>,
    /// In use and free.
    open: usize,
    most: usize,
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe on loan and the bytes in it.
#[derive(Debug)]
pub(crate) struct Lease {
    pipe: Option<Pipe>,
    held: usize,
    pool: Pipes,
}

/// Why there is no pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPipe {
    AllInUse,
    /// The kernel gave none, or one too small.
    Refused,
}

impl Default for Pipes {
    fn default() -> Self {
        Self::at_most(MAX_PIPES)
    }
}

impl Pipes {
    pub(crate) fn at_most(most: usize) -> Self {
        let shared = Shared {
            free: Vec::new(),
            open: 0,
            most,
        };
        Self {
            shared: Rc::new(RefCell::new(shared)),
        }
    }

    /// An empty pipe.
    pub(crate) fn lease(&self) -> Result<Lease, NoPipe> {
        let mut shared = self.shared.borrow_mut();
        let pipe = match shared.free.pop() {
            Some(pipe) => pipe,
            None if shared.open >= shared.most => return Err(NoPipe::AllInUse),
            None => {
                let pipe = Pipe::open().ok_or(NoPipe::Refused)?;
                shared.open += 1;
                pipe
            }
        };
        drop(shared);
        Ok(Lease {
            pipe: Some(pipe),
            held: 0,
            pool: self.clone(),
        })
    }

    #[cfg(test)]
    pub(crate) fn in_use(&self) -> usize {
        let shared = self.shared.borrow();
        shared.open - shared.free.len()
    }
}

impl Pipe {
    fn open() -> Option<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // Refused when this user has many already; as it is, it still is worth a system call.
        let _ = fcntl_setpipe_size(&write, LARGE_PIPE);
        let size = fcntl_getpipe_size(&write).ok()?;
        (size >= SMALLEST_PIPE).then_some(Self { read, write })
    }
}

impl Lease {
    /// Bytes taken and not given yet.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Takes what `from` has into the empty pipe, `most` bytes of it; 0 is its end.
    ///
    /// # Errors
    /// `WouldBlock`: `from` has nothing, as there is room in the pipe. Or what reading says.
    pub(crate) fn take(&mut self, from: &TcpStream, most: u64) -> io::Result<usize> {
        debug_assert_eq!(self.held, 0, "a full pipe says the same as an empty socket");
        let pipe = self.pipe.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let taken =
            rustix::io::retry_on_intr(|| splice(from, None, &pipe.write, None, most, flags))?;
        self.held += taken;
        Ok(taken)
    }

    /// Gives `to` what it takes of the pipe's bytes.
    ///
    /// # Errors
    /// `WouldBlock`: `to` takes nothing now. Or what writing says.
    pub(crate) fn give(&mut self, to: &TcpStream) -> io::Result<usize> {
        let pipe = self.pipe.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let given =
            rustix::io::retry_on_intr(|| splice(&pipe.read, None, to, None, self.held, flags))?;
        self.held = self.held.saturating_sub(given);
        Ok(given)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut shared = self.pool.shared.borrow_mut();
        // One with bytes in it would give them to the next flow.
        if self.held == 0 && shared.free.len() < KEPT_PIPES {
            shared.free.extend(self.pipe.take());
        } else {
            shared.open -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn one_with_bytes_in_it_does_not_come_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let near = TcpStream::connect(listener.local_addr().expect("an address"));
        let (near, far) = tokio::join!(near, listener.accept());
        let (mut near, far) = (near.expect("connected"), far.expect("accepted").0);
        near.write_all(b"secret").await.expect("written");
        far.readable().await.expect("bytes");
        let pool = Pipes::at_most(1);
        let mut lease = pool.lease().expect("a pipe");
        assert_eq!(lease.take(&far, 128 << 10).expect("taken"), 6);
        assert_eq!(pool.lease().expect_err("one is all"), NoPipe::AllInUse);
        drop(lease);
        assert!(pool.shared.borrow().free.is_empty());
        let lease = pool.lease().expect("a new one");
        assert_eq!(lease.held(), 0);
        let fresh = lease.pipe.as_ref().expect("a pipe");
        let error = rustix::io::read(&fresh.read, &mut [0; 6]).expect_err("nothing in it");
        assert_eq!(error, rustix::io::Errno::AGAIN);
        drop(lease);
        assert_eq!((pool.in_use(), pool.shared.borrow().free.len()), (0, 1));
    }

    #[test]
    fn a_burst_does_not_keep_descriptors_for_ever() {
        let pool = Pipes::default();
        let all: Vec<Lease> = std::iter::from_fn(|| pool.lease().ok()).collect();
        assert_eq!(all.len(), MAX_PIPES);
        drop(all);
        assert_eq!(pool.shared.borrow().open, KEPT_PIPES);
    }
}
