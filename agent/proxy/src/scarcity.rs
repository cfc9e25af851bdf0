//! When descriptors run out, and how often that is said.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::time::Instant;

/// One line of a kind in this time, from each worker.
const SELDOM: Duration = Duration::from_secs(10);

/// Descriptors of a worker. Between giving one up and accepting, another thread may take its place: with some more that
/// costs a try, with none left the clients hang.
const RESERVE: usize = 8;

/// Descriptors kept for the moment when there are no others: with a place of theirs a client can be accepted and
/// refused, instead of waiting in the queue for as long as other flows live.
#[derive(Debug)]
pub(crate) struct Reserve(RefCell<Vec<OwnedFd>>);

/// Says when a warning is due.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    last: Cell<Option<Instant>>,
    unsaid: Cell<u64>,
}

impl Default for Reserve {
    fn default() -> Self {
        let reserve = Self(RefCell::default());
        reserve.refill();
        reserve
    }
}

impl Reserve {
    /// Makes a place free; false when it had none.
    pub(crate) fn give(&self) -> bool {
        self.0.borrow_mut().pop().is_some()
    }

    /// Takes what is missing; false when something still is.
    pub(crate) fn refill(&self) -> bool {
        let mut held = self.0.borrow_mut();
        while held.len() < RESERVE {
            match descriptor() {
                Some(descriptor) => held.push(descriptor),
                None => return false,
            }
        }
        true
    }
}

/// The cheapest thing that has a descriptor and needs no file.
fn descriptor() -> Option<OwnedFd> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).ok()?;
    Some(socket.into())
}

impl Seldom {
    /// The number of occasions that were passed over since the last warning, if one is due now.
    pub(crate) fn now(&self) -> Option<u64> {
        let due = self.last.get().is_none_or(|last| last.elapsed() >= SELDOM);
        if !due {
            self.unsaid.set(self.unsaid.get() + 1);
            return None;
        }
        self.last.set(Some(Instant::now()));
        Some(self.unsaid.take())
    }
}

/// Has this process, or the host, no descriptor left?
pub(crate) fn out_of_descriptors(error: &io::Error) -> bool {
    [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_warning_counts_those_that_were_left_out() {
        let seldom = Seldom::default();
        assert_eq!(seldom.now(), Some(0));
        assert_eq!((0..5).find_map(|_| seldom.now()), None);
        tokio::time::advance(SELDOM).await;
        assert_eq!(seldom.now(), Some(5));
    }

    #[test]
    fn the_reserve_is_given_to_the_last_and_comes_back() {
        let reserve = Reserve::default();
        assert_eq!(
            std::iter::from_fn(|| reserve.give().then_some(())).count(),
            RESERVE
        );
        assert!(reserve.refill() && reserve.give());
    }
}
