//! Turns: who of a worker's busy directions moves bytes next.
//!
//! ```text
//!  used up its turn ──► line of the worker ──► called, after the worker has looked for others ──► next turn
//! ```
//! One is called at a time, so whoever has little to say waits for one turn of somebody else, however many are busy.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Bytes of a turn, some 30 microseconds. tokio's own budget counts operations, and one splice moves as much as a
/// hundred small reads.
pub(super) const TURN: u64 = 128 << 10;
/// Bytes of a turn when nobody but the line has moved any since the last one: nobody waits for its end, and more bytes at
/// once cost less.
pub(super) const LONG_TURN: u64 = 1 << 20;

/// A worker's line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Rc<Line>);

#[derive(Debug, Default)]
struct Line {
    waiting: RefCell<VecDeque<Rc<Place>>>,
    /// Somebody was called and has not ended its turn.
    called: Cell<bool>,
    /// How often somebody moved bytes who was not called.
    others: Cell<u64>,
}

#[derive(Debug)]
struct Place {
    waker: RefCell<Waker>,
    called: Cell<bool>,
}

/// A direction's part in this.
#[derive(Debug)]
pub(super) struct Turn {
    line: Rc<Line>,
    place: Option<Rc<Place>>,
    /// The line's `others` at the end of our last turn.
    seen: u64,
}

impl Turns {
    pub(super) fn turn(&self) -> Turn {
        Turn {
            line: Rc::clone(&self.0),
            place: None,
            seen: self.0.others.get(),
        }
    }
}

impl Turn {
    /// How many bytes may move now. Pending: others are first.
    pub(super) fn poll_begin(&self, cx: &Context<'_>) -> Poll<u64> {
        if let Some(place) = self.place.as_deref().filter(|place| !place.called.get()) {
            place.waker.borrow_mut().clone_from(cx.waker());
            return Poll::Pending;
        }
        let undisturbed = self.line.others.get() == self.seen;
        Poll::Ready(if undisturbed { LONG_TURN } else { TURN })
    }

    /// After bytes have moved, or have not. Who has used up its turn is woken for the next.
    pub(super) fn end(&mut self, cx: &Context<'_>, moved: u64, used_up: bool) {
        let line = &self.line;
        let was_called = self.place.take().is_some();
        if moved > 0 && !was_called {
            line.others.set(line.others.get() + 1);
        }
        self.seen = line.others.get();
        if used_up {
            let place = Rc::new(Place {
                waker: RefCell::new(cx.waker().clone()),
                called: Cell::new(false),
            });
            self.place = Some(Rc::clone(&place));
            line.waiting.borrow_mut().push_back(place);
        }
        if was_called || !line.called.get() {
            line.call_next();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else {
            return;
        };
        if place.called.get() {
            self.line.call_next();
        } else {
            let mut waiting = self.line.waiting.borrow_mut();
            waiting.retain(|other| !Rc::ptr_eq(other, &place));
        }
    }
}

impl Line {
    fn call_next(&self) {
        let next = self.waiting.borrow_mut().pop_front();
        self.called.set(next.is_some());
        if let Some(place) = next {
            place.called.set(true);
            let waker = place.waker.borrow().clone();
            // Wakes it when the driver has looked for others, which waking it here would not wait for.
            let _ = pin!(tokio::task::yield_now()).poll(&mut Context::from_waker(&waker));
        }
    }
}
