//! How connections end: half-closed, closed, reset, and what either side is told.

use std::net::Shutdown;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::epoll::EpollFlags;

use super::SETTLE;
use crate::conform::row::Sockets::Both;
use crate::conform::row::{End, Fault, Row, Seen, pair};
use crate::conform::wire::{Wire, known};
use crate::wait;

pub(super) const ROWS: &[Row] = &[
    pair("half-close", Both, half_closes, answers_after_the_end),
    pair(
        "half-close-late-answer",
        Both,
        waits_for_answer,
        answers_late,
    ),
    pair(
        "half-close-late-reader",
        Both,
        reads_late,
        answers_and_closes,
    ),
    pair(
        "close-with-data-under-way",
        Both,
        sends_and_closes,
        reads_after_the_close,
    ),
    pair("close-with-data-unread", Both, closes_unread, is_reset),
    pair("reset", Both, resets, is_reset_and_sends),
    pair(
        "reset-behind-data",
        Both,
        sends_and_resets,
        reads_then_reset,
    ),
    pair(
        "reset-at-once-behind-data",
        Both,
        resets_at_once,
        reads_then_reset_late,
    )
    .warm(),
    pair("epipe", Both, sends_to_nobody, closes_at_once),
    pair(
        "errors-of-a-reset-sender",
        Both,
        sends_into_reset,
        closes_with_unread,
    ),
    pair("send-after-shutdown", Both, shuts_and_sends, answers_short),
    pair(
        "shutdown-by-another-thread",
        Both,
        another_shuts,
        answers_late,
    ),
    pair("shutdown-of-reading", Both, shuts_reading, drinks),
    pair("readiness", Both, ready_near, ready_far),
    pair("readiness-of-a-reset", Both, resets_when_met, ready_reset),
];

const MEGABYTE: u64 = 1 << 20;

fn half_closes(end: End) -> Seen {
    end.wire.pour(0, MEGABYTE)?;
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(end.wire.drink())
}

fn answers_after_the_end(end: End) -> Seen {
    let seen = end.wire.drink();
    end.wire.pour(0, MEGABYTE)?;
    Ok(seen)
}

/// In recv already when the acknowledgement of its own end comes in, which must not wake it.
fn waits_for_answer(end: End) -> Seen {
    end.wire.pour(0, 1000)?;
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(end.wire.drink())
}

fn answers_late(end: End) -> Seen {
    let seen = end.wire.drink();
    wait::pause(SETTLE);
    end.wire.pour(0, 1000)?;
    Ok(seen)
}

fn reads_late(mut end: End) -> Seen {
    end.wire.pour(0, 3)?;
    end.wire.socket.shutdown(Shutdown::Write)?;
    end.link.meet()?;
    wait::pause(SETTLE);
    Ok(end.wire.drink())
}

fn answers_and_closes(end: End) -> Seen {
    let (wire, mut link) = (end.wire, end.link);
    let seen = wire.drink();
    wire.pour(0, 200_000)?;
    drop(wire);
    link.meet()?;
    Ok(seen)
}

fn sends_and_closes(end: End) -> Seen {
    let (wire, mut link) = (end.wire, end.link);
    wire.pour(0, 200_000)?;
    drop(wire);
    link.meet()?;
    Ok("closed".into())
}

fn reads_after_the_close(mut end: End) -> Seen {
    end.link.meet()?;
    wait::pause(SETTLE);
    Ok(end.wire.drink())
}

fn closes_unread(end: End) -> Seen {
    let (wire, mut link) = (end.wire, end.link);
    wire.wait(PollFlags::POLLIN);
    drop(wire);
    link.meet()?;
    Ok("closed".into())
}

fn is_reset(mut end: End) -> Seen {
    end.wire.pour(0, 1000)?;
    end.link.meet()?;
    Ok(end.wire.drink())
}

fn resets(mut end: End) -> Seen {
    end.link.meet()?;
    // The other is in recv by then.
    wait::pause(SETTLE);
    end.wire.reset()?;
    Ok("reset".into())
}

fn is_reset_and_sends(mut end: End) -> Seen {
    end.link.meet()?;
    let seen = end.wire.drink();
    Ok(format!("{seen}; send {}", sending(&end.wire)))
}

/// What a send gives.
fn sending(wire: &Wire) -> String {
    match wire.send(known(0, 1000)) {
        Ok(()) => "works".to_owned(),
        Err(error) => format!("{error:?}"),
    }
}

fn sends_and_resets(mut end: End) -> Seen {
    end.wire.pour(0, 1000)?;
    end.link.meet()?;
    end.wire.reset()?;
    end.link.meet()?;
    Ok("reset".into())
}

fn reads_then_reset(mut end: End) -> Seen {
    end.wire.wait(PollFlags::POLLIN);
    end.link.meet()?;
    end.link.meet()?;
    wait::pause(SETTLE);
    Ok(end.wire.drink())
}

fn resets_at_once(mut end: End) -> Seen {
    end.wire.pour(0, 1000)?;
    end.wire.reset()?;
    end.link.meet()?;
    Ok("reset".into())
}

fn reads_then_reset_late(mut end: End) -> Seen {
    end.link.meet()?;
    wait::pause(SETTLE);
    Ok(end.wire.drink())
}

fn sends_to_nobody(mut end: End) -> Seen {
    end.link.meet()?;
    let seen = end.wire.drink();
    for _ in 0..400 {
        if let Err(error) = end.wire.send(known(0, 1000)) {
            return Ok(format!("{seen}; sending ends in {error:?}"));
        }
        wait::pause(Duration::from_millis(5));
    }
    Ok(format!("{seen}; sending never ends"))
}

fn closes_at_once(end: End) -> Seen {
    let (wire, mut link) = (end.wire, end.link);
    drop(wire);
    link.meet()?;
    Ok("closed".into())
}

/// The first send after a reset is told of the reset, the next that there is nobody.
fn sends_into_reset(mut end: End) -> Seen {
    end.wire.pour(0, 5000)?;
    end.link.meet()?;
    end.wire
        .events(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP)?;
    let (first, second) = (sending(&end.wire), sending(&end.wire));
    Ok(format!("{first}, then {second}"))
}

fn closes_with_unread(end: End) -> Seen {
    let (wire, mut link) = (end.wire, end.link);
    wire.wait(PollFlags::POLLIN);
    drop(wire);
    link.meet()?;
    Ok("closed".into())
}

fn shuts_and_sends(end: End) -> Seen {
    end.wire.socket.shutdown(Shutdown::Write)?;
    let send = sending(&end.wire);
    Ok(format!("send {send}; {}", end.wire.drink()))
}

fn answers_short(end: End) -> Seen {
    let seen = end.wire.drink();
    end.wire.pour(0, 1000)?;
    Ok(seen)
}

fn another_shuts(end: End) -> Seen {
    let wire = &end.wire;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| wire.drink());
        wait::pause(SETTLE);
        wire.socket.shutdown(Shutdown::Write)?;
        reader.join().map_err(|_| Fault::Alone)
    })
}

fn shuts_reading(end: End) -> Seen {
    let wire = &end.wire;
    let seen = std::thread::scope(|scope| {
        let reader = scope.spawn(|| wire.drink());
        wait::pause(SETTLE);
        wire.socket.shutdown(Shutdown::Read)?;
        reader.join().map_err(|_| Fault::Alone)
    })?;
    wire.pour(0, 1000)?;
    Ok(seen)
}

fn drinks(end: End) -> Seen {
    Ok(end.wire.drink())
}

/// What epoll says at each step: nothing, data, read, half-closed, closed.
fn ready_far(mut end: End) -> Seen {
    let mut seen = vec![end.wire.events(EpollFlags::EPOLLOUT)?];
    end.link.meet()?;
    seen.push(end.wire.events(EpollFlags::EPOLLIN)?);
    end.wire.take(0, 10)?;
    seen.push(end.wire.events(EpollFlags::EPOLLOUT)?);
    end.link.meet()?;
    seen.push(end.wire.events(EpollFlags::EPOLLRDHUP)?);
    end.link.meet()?;
    end.wire.socket.shutdown(Shutdown::Write)?;
    seen.push(end.wire.events(EpollFlags::EPOLLHUP)?);
    end.link.meet()?;
    Ok(seen.join(", "))
}

fn ready_near(mut end: End) -> Seen {
    end.link.meet()?;
    end.wire.pour(0, 10)?;
    end.link.meet()?;
    end.wire.socket.shutdown(Shutdown::Write)?;
    let mut seen = vec![end.wire.events(EpollFlags::EPOLLOUT)?];
    end.link.meet()?;
    seen.push(end.wire.events(EpollFlags::EPOLLHUP)?);
    end.link.meet()?;
    Ok(seen.join(", "))
}

fn resets_when_met(mut end: End) -> Seen {
    end.link.meet()?;
    end.wire.reset()?;
    end.link.meet()?;
    Ok("reset".into())
}

/// The error is there for whoever asks, once.
fn ready_reset(mut end: End) -> Seen {
    end.link.meet()?;
    // All of them: the kernel sets one after the other.
    let all = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP | EpollFlags::EPOLLRDHUP;
    let seen = end.wire.events(all)?;
    let ask = || -> Result<String, Fault> {
        let error = end.wire.socket.take_error()?;
        let errno = error.map(crate::conform::wire::errno);
        Ok(errno.map_or("none".to_owned(), |errno: Errno| format!("{errno:?}")))
    };
    let errors = [ask()?, ask()?];
    end.link.meet()?;
    Ok(format!("{seen}; SO_ERROR {}", errors.join(", then ")))
}
