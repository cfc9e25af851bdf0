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

/// Looks that only let others have their turn: most readers are at work.
const TRIES: u8 = 8;
/// Until the next one: the grain of the timer.
const FIRST: Duration = Duration::from_millis(1);
/// A reader that stalls costs some thirty looks a second.
const LONGEST: Duration = Duration::from_millis(32);

/// See the head of this module.
#[derive(Default)]
pub(super) struct Room {
    /// Made when there was none for long.
    look: Option<Pin<Box<Sleep>>>,
    tries: u8,
    pause: Duration,
}

impl Room {
    /// How many bytes may be written now, at least one. It is asked before each write: how much fits also depends on how
    /// large writes are, and on what the receiver does with its buffer.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        accelerator: &dyn Accelerator,
        sink: &TcpStream,
    ) -> Poll<u64> {
        loop {
            if let Some(look) = self.look.as_mut().filter(|_| !self.pause.is_zero()) {
                ready!(look.as_mut().poll(cx));
            }
            // Who cannot be asked writes as he always did: in order, behind the queue.
            let room = accelerator.room(sink.as_fd()).ok().flatten();
            match room.unwrap_or(u64::MAX) {
                0 => {}
                room => {
                    (self.tries, self.pause) = (0, Duration::ZERO);
                    return Poll::Ready(room);
                }
            }
            if self.tries < TRIES {
                self.tries += 1;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.pause = (self.pause * 2).clamp(FIRST, LONGEST);
            match &mut self.look {
                Some(look) => look.as_mut().reset(Instant::now() + self.pause),
                None => self.look = Some(Box::pin(sleep(self.pause))),
            }
        }
    }
}
