//! Room in the queue that a direction writes into.
//!
//! What is sent into a full queue goes by TCP for ever, and lies behind the queue: there a reader does not look that takes
//! a short read for an empty socket, as programs do that wait for edges. So a relay sends no more than there is room
//! for, and all of its bytes come by one way. The kernel announces that there is something in a queue, never that there
//! is room: whoever waits for that must look. Nobody else writes into this queue while a relay has bytes for it, so room
//! that was seen is there.

use std::future::Future;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use shunt_core::sockets::Accelerator;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// Until the first look: the grain of the timer. A queue (1 MiB) that is read at a gigabyte a second is just empty then.
const FIRST: Duration = Duration::from_millis(1);
/// A reader that stalls costs some thirty looks a second.
const LONGEST: Duration = Duration::from_millis(32);

/// See the head of this module.
#[derive(Default)]
pub(super) struct Room {
    /// Bytes that were seen to fit, less those written since.
    left: u64,
    /// Made when there was none for the first time.
    look: Option<Pin<Box<Sleep>>>,
    pause: Duration,
}

impl Room {
    /// How many bytes may be written now, at least one.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        accelerator: &dyn Accelerator,
        sink: &TcpStream,
    ) -> Poll<u64> {
        while self.left == 0 {
            if let Some(look) = self.look.as_mut().filter(|_| !self.pause.is_zero()) {
                ready!(look.as_mut().poll(cx));
            }
            // Who cannot be asked writes as he always did: in order, behind the queue.
            let room = accelerator.room(sink.as_fd());
            self.left = room.ok().flatten().unwrap_or(u64::MAX);
            if self.left > 0 {
                self.pause = Duration::ZERO;
                break;
            }
            self.pause = (self.pause * 2).clamp(FIRST, LONGEST);
            match &mut self.look {
                Some(look) => look.as_mut().reset(Instant::now() + self.pause),
                None => self.look = Some(Box::pin(sleep(self.pause))),
            }
        }
        Poll::Ready(self.left)
    }

    pub(super) fn written(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes as u64);
    }

    /// Somebody else may write into the queue from now on.
    pub(super) fn forget(&mut self) {
        self.left = 0;
    }
}
