//! A reader that does not read: how much is taken in, who waits, and that all of it arrives.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollTimeout;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{self, MsgFlags};

use crate::conform::raw::ask;
use crate::conform::row::Sockets::{Blocking, Both, NonBlocking};
use crate::conform::row::{End, Fault, Row, Seen, pair};
use crate::conform::wire::{Wire, known};
use crate::wait;

pub(super) const ROWS: &[Row] = &[
    pair("stalled-reader", Both, fills, reads_it_all).long(),
    pair("so-sndtimeo", Blocking, sends_until_timeout, reads_it_all).long(),
    pair(
        "edge-of-room",
        NonBlocking,
        fills_then_goes_on,
        reads_when_met,
    )
    .long(),
    pair(
        "acknowledged",
        Both,
        asks_what_is_unacknowledged,
        reads_late,
    ),
    pair("so-linger", Both, lingers, reads_late),
];

/// Both sides' buffers, bytes; the kernel doubles them.
const BUFFER: usize = 64 << 10;
/// More is not offered: what a proxy's sockets may hold by themselves (tcp_rmem, tcp_wmem) is less.
const MOST: u64 = 96 << 20;
/// No room for this long: it stalls, and is not just slow.
const STALL: Duration = Duration::from_millis(800);
const TIMEOUT: Duration = Duration::from_millis(300);
/// More than the reader's buffer, less than the sender's own.
const SOME: u64 = 400_000;
const LINGER: Duration = Duration::from_secs(1);

/// Offers bytes until none are taken for a while; how many were.
fn fill(wire: &Wire) -> Result<u64, Errno> {
    let (mut at, mut since) = (0, Instant::now());
    while at < MOST && since.elapsed() < STALL {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match socket::send(wire.fd(), known(at, 65_536), flags) {
            Ok(sent) => (at, since) = (at + sent as u64, Instant::now()),
            Err(Errno::EAGAIN) => wait::pause(Duration::from_millis(5)),
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}

fn amount(bytes: u64) -> &'static str {
    match bytes {
        0..=1_000_000 => "less than a megabyte",
        1_000_001..MOST => "some megabytes",
        MOST.. => "all there is",
    }
}

fn fills(mut end: End) -> Seen {
    end.wire.options().set_send_buffer_size(BUFFER)?;
    end.link.meet()?;
    let taken = fill(&end.wire)?;
    end.link.tell(&taken.to_string())?;
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(format!("{} taken in; {}", amount(taken), end.wire.drink()))
}

fn reads_it_all(mut end: End) -> Seen {
    end.wire.options().set_recv_buffer_size(BUFFER)?;
    end.link.meet()?;
    let sent = end.link.hear()?;
    let seen = end.wire.drink();
    let expected = format!("{sent} bytes, then end");
    Ok(if seen == expected {
        "all of it".to_owned()
    } else {
        format!("{seen}, not {sent}")
    })
}

fn sends_until_timeout(mut end: End) -> Seen {
    end.wire.options().set_send_buffer_size(BUFFER)?;
    end.wire.socket.set_write_timeout(Some(TIMEOUT))?;
    end.link.meet()?;
    let mut at = 0;
    let error = loop {
        match end.wire.send_with(known(at, 100_000), MsgFlags::empty()) {
            Ok(sent) => at += sent as u64,
            Err(error) => break error,
        }
        if at > MOST {
            return Ok("never".into());
        }
    };
    end.link.tell(&at.to_string())?;
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(format!("{error:?}; {}", end.wire.drink()))
}

/// Room after a stall is told to those who wait for its edge.
fn fills_then_goes_on(mut end: End) -> Seen {
    end.wire.options().set_send_buffer_size(BUFFER)?;
    end.link.meet()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let flags = EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
    epoll.add(&end.wire.socket, EpollEvent::new(flags, 0))?;
    let mut at = fill(&end.wire)?;
    epoll.wait(&mut [EpollEvent::empty()], PollTimeout::ZERO)?;
    end.link.meet()?;
    let to = at + 10 * BUFFER as u64;
    while at < to {
        let flags = MsgFlags::MSG_NOSIGNAL;
        match socket::send(end.wire.fd(), known(at, 4096), flags) {
            Ok(sent) => at += sent as u64,
            Err(Errno::EAGAIN) => {
                if epoll.wait(&mut [EpollEvent::empty()], PollTimeout::from(5000_u16))? == 0 {
                    return Ok("no edge".into());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    end.link.tell(&at.to_string())?;
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(end.wire.drink())
}

fn reads_when_met(mut end: End) -> Seen {
    end.wire.options().set_recv_buffer_size(BUFFER)?;
    end.link.meet()?;
    end.link.meet()?;
    let seen = end.wire.drink();
    let expected = format!("{} bytes, then end", end.link.hear()?);
    Ok(if seen == expected {
        "all of it".to_owned()
    } else {
        format!("{seen}, not {expected}")
    })
}

/// Sends some bytes; true when all have been acknowledged within a while.
fn is_acknowledged(end: &mut End) -> Result<bool, Fault> {
    end.link.meet()?;
    end.wire.pour(0, SOME)?;
    let begun = Instant::now();
    while ask(&end.wire.socket, libc::TIOCOUTQ)? > 0 {
        if begun.elapsed() > LINGER {
            return Ok(false);
        }
        wait::pause(Duration::from_millis(5));
    }
    Ok(true)
}

/// Bytes that the other end has not acknowledged: without a proxy, the other program's host.
fn asks_what_is_unacknowledged(mut end: End) -> Seen {
    let all = is_acknowledged(&mut end)?;
    end.link.meet()?;
    end.wire.socket.shutdown(Shutdown::Write)?;
    let seen = end.wire.drink();
    Ok(format!("{}; {seen}", if all { "all" } else { "not all" }))
}

fn reads_late(mut end: End) -> Seen {
    end.wire.options().set_recv_buffer_size(BUFFER)?;
    end.link.meet()?;
    end.link.meet()?;
    Ok(end.wire.drink())
}

/// Close waits for acknowledgements that have not come yet.
fn lingers(mut end: End) -> Seen {
    is_acknowledged(&mut end)?;
    end.wire.options().set_linger(Some(LINGER))?;
    let begun = Instant::now();
    drop(end.wire);
    let waited = begun.elapsed() > LINGER / 2;
    end.link.meet()?;
    Ok(if waited {
        "close waits"
    } else {
        "close returns"
    }
    .to_owned())
}
