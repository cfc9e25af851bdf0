//! The one timer of a connection.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{Due, Rung, Talk};

/// It is touched only when it rings or would ring too late.
#[derive(Debug, Default)]
pub(in crate::http) struct Clock {
    sleep: Option<Pin<Box<Sleep>>>,
    /// It knows whom it is to wake.
    runs: bool,
}

impl Clock {
    /// Ready when time is up; to be asked after every turn.
    pub(in crate::http) fn poll(&mut self, cx: &mut Context<'_>, talk: &Talk) -> Poll<Rung> {
        {
            let mut waker = talk.waker.borrow_mut();
            match &mut *waker {
                Some(waker) if waker.will_wake(cx.waker()) => {}
                waker => {
                    *waker = Some(cx.waker().clone());
                    self.runs = false;
                }
            }
        }
        loop {
            let Some((at, due)) = talk.due() else {
                return Poll::Pending;
            };
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if at < sleep.deadline() {
                sleep.as_mut().reset(at);
                self.runs = false;
            }
            if self.runs && talk.turn.get() < sleep.deadline() {
                return Poll::Pending;
            }
            // Also when who sends without a pause has used up what the connection may do at once.
            let rings = pin!(unconstrained(sleep.as_mut())).poll(cx);
            self.runs = rings.is_pending();
            ready!(rings);
            if Instant::now() < at {
                sleep.as_mut().reset(at);
                continue;
            }
            match due {
                Due::Old => talk.is_old.set(true),
                Due::Rung(rung) => {
                    if rung == Rung::Drained {
                        talk.is_drained.set(true);
                    }
                    return Poll::Ready(rung);
                }
                Due::Expired(expired) => {
                    if let Some(progress) = &*talk.request.borrow() {
                        progress.expire(expired);
                    }
                    talk.touch();
                    return Poll::Ready(Rung::Told);
                }
            }
        }
    }
}
