//! Bytes both ways between two sockets, with back-pressure, half-close, resets as resets.
//!
//! ```text
//!  per direction:  Moving --EOF--> Ending --all written, FIN sent--> Ended
//!  both Ended: linger cleared, an orderly close.   Anything else: dropped with linger 0, a reset to both.
//! ```
//! A direction holds a buffer or a pipe only while it has bytes in it: an idle connection holds none.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use shunt_core::config::Timeouts;
use shunt_core::flow::CloseReason;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

pub(crate) use self::counting::{COUNT, Counting};
use self::half::{Half, Side, Way};
pub(crate) use self::shortcut::Shortcut;
use self::turns::Turns;
use crate::account::Account;
use crate::buffers::Buffers;
use crate::pipes::Pipes;

mod counting;
mod half;
mod room;
mod shortcut;
#[cfg(test)]
mod tests;
mod turns;

/// What a worker lends to its relays.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pools {
    pub(crate) buffers: Buffers,
    pub(crate) pipes: Pipes,
    pub(crate) turns: Turns,
    pub(crate) counting: Counting,
}

/// What the configuration says about a relay.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rules {
    pub(crate) timeouts: Timeouts,
    /// Bytes of a direction; `None`: never.
    pub(crate) splice_after: Option<u64>,
}

/// Bytes that were read, and counted, before the relay begins. They go first.
#[derive(Debug, Default)]
pub(crate) struct Early {
    pub(crate) to_upstream: Bytes,
    pub(crate) to_client: Bytes,
}

/// How a relay ended, and the error behind it.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) reason: CloseReason,
    pub(crate) error: Option<io::Error>,
}

/// Which side an operation failed on.
#[derive(Debug)]
enum Failure {
    Client(io::Error),
    Upstream(io::Error),
}

/// Moves bytes until both sides ended, one failed, or time is up. Closes both sockets in order or, by dropping them,
/// with a reset.
pub(crate) async fn relay(
    mut client: TcpStream,
    mut upstream: TcpStream,
    early: Early,
    pools: &Pools,
    rules: &Rules,
    mut shortcut: Option<Shortcut<'_>>,
    account: &mut Account,
) -> End {
    let mut client_first = None;
    let end = {
        let (client_read, client_write) = client.split();
        let (upstream_read, upstream_write) = upstream.split();
        let by_tcp = Way::Tcp {
            splice_after: rules.splice_after,
        };
        let [up, down] = shortcut.as_ref().map_or([by_tcp; 2], Shortcut::ways);
        let half = |read, write, way, early| Half::new(read, write, &pools.turns, way, early);
        let mut to_upstream = half(client_read, upstream_write, up, early.to_upstream);
        let mut to_client = half(upstream_read, client_write, down, early.to_client);
        let mut clock = Clock::new(&rules.timeouts);
        let agent = Arc::clone(account.agent());
        poll_fn(|cx| {
            let received = |path, bytes| account.received(path, bytes);
            let up = to_upstream.poll(cx, pools, &agent, received);
            if let Poll::Ready(Err(error)) = up {
                return Poll::Ready(failed(match error {
                    Side::Read(error) => Failure::Client(error),
                    Side::Write(error) => Failure::Upstream(error),
                }));
            }
            let sent = |path, bytes| account.sent(path, bytes);
            let down = to_client.poll(cx, pools, &agent, sent);
            if let Poll::Ready(Err(error)) = down {
                return Poll::Ready(failed(match error {
                    Side::Read(error) => Failure::Upstream(error),
                    Side::Write(error) => Failure::Client(error),
                }));
            }
            if up.is_ready() || down.is_ready() {
                client_first.get_or_insert(up.is_ready());
            }
            if up.is_ready() && down.is_ready() {
                return Poll::Ready(End {
                    reason: CloseReason::Finished,
                    error: None,
                });
            }
            if let Some(shortcut) = &mut shortcut {
                shortcut.offer(&mut to_upstream, &mut to_client);
                shortcut.poll_count(cx, account);
            }
            loop {
                let past_us = shortcut.as_ref().map_or(0, Shortcut::moved);
                let now = Now {
                    moved: to_upstream.moved + to_client.moved + past_us,
                    half_closed: up.is_ready() || down.is_ready(),
                    stalled: to_upstream.is_stalled() || to_client.is_stalled(),
                };
                let timed_out = clock.poll(cx, now, |cx| {
                    to_upstream.is_orphaned(cx) || to_client.is_orphaned(cx)
                });
                // What looks idle from here may be busy past us.
                let is_busy = |shortcut: &mut Shortcut<'_>| shortcut.count(account);
                if timed_out.is_pending() || !shortcut.as_mut().is_some_and(is_busy) {
                    return timed_out;
                }
            }
        })
        .await
    };
    if let Some(mut shortcut) = shortcut {
        shortcut.count(account);
    }
    if end.reason == CloseReason::Finished {
        account.ended_first(client_first == Some(true));
        for socket in [&client, &upstream] {
            // It fails only for a socket that is gone.
            let _ = SockRef::from(socket).set_linger(None);
        }
    }
    end
}

fn failed(failure: Failure) -> End {
    match failure {
        Failure::Client(error) => End {
            reason: CloseReason::ClientReset,
            error: Some(error),
        },
        Failure::Upstream(error) => End {
            reason: CloseReason::UpstreamReset,
            error: Some(error),
        },
    }
}

/// What the clock is told.
#[derive(Clone, Copy)]
struct Now {
    /// Bytes, both directions.
    moved: u64,
    half_closed: bool,
    stalled: bool,
}

/// The idle and half-close timers: one, made when first needed.
struct Clock {
    idle: Duration,
    half_close: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    seen: u64,
    half_closed: bool,
    since: Instant,
}

impl Clock {
    fn new(timeouts: &Timeouts) -> Self {
        Self {
            idle: timeouts.idle,
            half_close: timeouts.half_close,
            sleep: None,
            seen: 0,
            half_closed: false,
            since: Instant::now(),
        }
    }

    /// Restarts whenever bytes moved. Ready when time is up; `orphaned` is asked then, when nothing but a stall says so.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Now,
        mut orphaned: impl FnMut(&mut Context<'_>) -> bool,
    ) -> Poll<End> {
        let Now {
            moved, half_closed, ..
        } = now;
        let ended = (self.half_close, CloseReason::HalfCloseTimeout, true);
        let (limit, reason, sure) = match half_closed {
            true => ended,
            false if !self.idle.is_zero() => (self.idle, CloseReason::IdleTimeout, true),
            // Behind the bytes that nobody takes there may be an end, which reading has not come to.
            false if now.stalled => (ended.0, ended.1, false),
            false => return Poll::Pending,
        };
        if moved != self.seen || half_closed != self.half_closed {
            (self.seen, self.half_closed, self.since) = (moved, half_closed, Instant::now());
        }
        let mut deadline = self.since + limit;
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        loop {
            // Rearmed only when it rings: a busy flow does not touch the timer wheel at each byte.
            ready!(sleep.as_mut().poll(cx));
            let now = Instant::now();
            if now >= deadline && !sure && !orphaned(cx) {
                // A slow reader may be slow as long as the writer waits.
                (self.since, deadline) = (now, now + limit);
            } else if now >= deadline {
                return Poll::Ready(End {
                    reason,
                    error: None,
                });
            }
            sleep.as_mut().reset(deadline);
        }
    }
}
