//! Flags of send and recv, signals, edge-triggered epoll.

use std::net::Shutdown;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFlags, PollTimeout};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{self, MsgFlags};
use nix::unistd::{Pid, gettid};

use super::SETTLE;
use crate::conform::raw::{Thread, take_signals};
use crate::conform::row::Sockets::{Blocking, Both, NonBlocking};
use crate::conform::row::{End, Row, Seen, pair};
use crate::conform::wire::{Dice, Wire, known};
use crate::wait;

pub(super) const ROWS: &[Row] = &[
    pair("msg-peek", Both, sends_a_thousand, peeks),
    pair("msg-trunc", Both, sends_a_thousand, truncates),
    pair("msg-waitall", Blocking, sends_in_tenths, waits_for_all),
    pair("msg-dontwait", Blocking, sends_when_met, does_not_wait),
    pair("msg-more", Both, sends_with_more, drinks),
    pair(
        "signal-restarting",
        Blocking,
        sends_when_met,
        signalled_restarting,
    ),
    pair(
        "signal-interrupting",
        Blocking,
        sends_when_met,
        signalled_interrupting,
    ),
    pair(
        "signal-with-a-timeout",
        Blocking,
        sends_when_met,
        signalled_with_timeout,
    ),
    pair(
        "reader-beside-a-writer",
        Blocking,
        writes_and_reads,
        reads_slowly_and_answers,
    ),
    pair(
        "epoll-edge-triggered",
        NonBlocking,
        sends_in_pieces,
        drinks_by_edges,
    ),
];

const MEGABYTE: u64 = 1 << 20;

fn sends_a_thousand(mut end: End) -> Seen {
    end.wire.pour(0, 1000)?;
    end.link.meet()?;
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(end.wire.drink())
}

fn drinks(end: End) -> Seen {
    Ok(end.wire.drink())
}

fn peeks(mut end: End) -> Seen {
    end.link.meet()?;
    let peek = |length: usize| {
        let mut buffer = vec![0; length];
        let got = end.wire.recv_with(&mut buffer, MsgFlags::MSG_PEEK)?;
        let right = buffer[..got] == *known(0, got);
        Ok::<_, Errno>(format!("{got} {}", if right { "right" } else { "wrong" }))
    };
    let peeks = [peek(5)?, peek(5)?, peek(5000)?];
    Ok(format!("peeks {}; {}", peeks.join(", "), end.wire.drink()))
}

/// On TCP, `MSG_TRUNC` throws bytes away.
fn truncates(mut end: End) -> Seen {
    end.link.meet()?;
    let mut untouched = [7; 500];
    let got = end.wire.recv_with(&mut untouched, MsgFlags::MSG_TRUNC)?;
    let written = if untouched == [7; 500] {
        "none"
    } else {
        "some"
    };
    let rest = end.wire.drink_from(500);
    Ok(format!("{got} bytes, {written} written; {rest}"))
}

fn sends_in_tenths(end: End) -> Seen {
    for tenth in 0..10 {
        end.wire.pour(tenth * 1000, (tenth + 1) * 1000)?;
        wait::pause(Duration::from_millis(10));
    }
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(end.wire.drink())
}

fn waits_for_all(end: End) -> Seen {
    let mut buffer = vec![0; 10_000];
    let got = end.wire.recv_with(&mut buffer, MsgFlags::MSG_WAITALL)?;
    let right = buffer[..got] == *known(0, got);
    let rest = end.wire.drink_from(got as u64);
    Ok(format!(
        "{got} bytes, {}; {rest}",
        if right { "right" } else { "wrong" }
    ))
}

/// Half of it when the other waits, all of it later.
fn sends_when_met(mut end: End) -> Seen {
    end.link.meet()?;
    end.wire.pour(0, 1000)?;
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(end.wire.drink())
}

fn does_not_wait(mut end: End) -> Seen {
    let one = || match socket::recv(end.wire.fd(), &mut [0], MsgFlags::MSG_DONTWAIT) {
        Ok(got) => format!("{got} bytes"),
        Err(error) => format!("{error:?}"),
    };
    let before = one();
    end.link.meet()?;
    end.wire.wait(PollFlags::POLLIN);
    let after = one();
    Ok(format!(
        "{before}, then {after}; {}",
        end.wire.drink_from(1)
    ))
}

fn sends_with_more(end: End) -> Seen {
    for piece in 0..4 {
        let flags = if piece < 3 {
            socket_more()
        } else {
            MsgFlags::empty()
        };
        end.wire.send_with(known(piece * 1000, 1000), flags)?;
    }
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(end.wire.drink())
}

fn socket_more() -> MsgFlags {
    MsgFlags::from_bits_retain(libc::MSG_MORE)
}

/// Waits until a thread of ours is in recv, or for a second.
fn wait_for_recv(thread: Pid) {
    let file = format!("/proc/self/task/{thread}/syscall");
    for _ in 0..200 {
        let call = std::fs::read_to_string(&file).unwrap_or_default();
        if call.split(' ').next() == Some(&libc::SYS_recvfrom.to_string()) {
            return;
        }
        wait::pause(Duration::from_millis(5));
    }
}

/// A signal while the thread is in recv; what it waits for comes later.
fn signalled(mut end: End, signal: i32) -> Seen {
    take_signals();
    let (wire, link) = (&end.wire, &mut end.link);
    let (reader, id) = (Thread::current(), gettid());
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            wait_for_recv(id);
            let sent = reader.signal(signal);
            wait::pause(SETTLE);
            sent.is_ok() && link.meet().is_ok()
        });
        let mut buffer = [0; 2000];
        let first = match wire.recv(&mut buffer) {
            Ok(got) => format!("{got} bytes"),
            Err(error) => format!("{error:?}"),
        };
        // The thread that was sent a signal is this one, alive until here.
        let told = sender.join().unwrap_or_default();
        let rest = if first.ends_with("bytes") {
            wire.drink_from(1000)
        } else {
            wire.drink()
        };
        Ok(format!(
            "{first}, then {rest}{}",
            if told { "" } else { ", no signal" }
        ))
    })
}

fn signalled_restarting(end: End) -> Seen {
    signalled(end, libc::SIGUSR1)
}

fn signalled_interrupting(end: End) -> Seen {
    signalled(end, libc::SIGUSR2)
}

/// With `SO_RCVTIMEO` even a restarting signal ends a recv.
fn signalled_with_timeout(end: End) -> Seen {
    end.wire
        .socket
        .set_read_timeout(Some(Duration::from_secs(5)))?;
    signalled(end, libc::SIGUSR1)
}

/// Room in its send buffer comes and goes while it is in recv: that must not wake it.
fn writes_and_reads(end: End) -> Seen {
    let wire = &end.wire;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| wire.drink());
        wire.pour(0, 20 * MEGABYTE)?;
        wire.socket.shutdown(Shutdown::Write)?;
        Ok(reader.join().unwrap_or_default())
    })
}

fn reads_slowly_and_answers(end: End) -> Seen {
    for megabyte in 0..20 {
        end.wire
            .take(megabyte * MEGABYTE, (megabyte + 1) * MEGABYTE)?;
        wait::pause(Duration::from_millis(5));
    }
    let seen = end.wire.drink_from(20 * MEGABYTE);
    end.wire.pour(0, 1000)?;
    Ok(seen)
}

fn sends_in_pieces(end: End) -> Seen {
    let (mut dice, mut at) = (Dice::new(2), 0);
    while at < MEGABYTE {
        let to = (at + 1 + dice.below(20_000)).min(MEGABYTE);
        end.wire.pour(at, to)?;
        at = to;
        if dice.below(10) == 0 {
            wait::pause(Duration::from_millis(2));
        }
    }
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(end.wire.drink())
}

/// Reads only when there is a new edge, to `EAGAIN`. An edge that does not come is a stall.
fn drinks_by_edges(end: End) -> Seen {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET | EpollFlags::EPOLLRDHUP;
    epoll.add(&end.wire.socket, EpollEvent::new(flags, 0))?;
    let mut at = 0;
    loop {
        let mut events = [EpollEvent::empty()];
        if epoll.wait(&mut events, PollTimeout::from(5000_u16))? == 0 {
            return Ok(format!("no edge after {at} bytes"));
        }
        if let Some(end) = drink_edge(&end.wire, &mut at) {
            return Ok(end);
        }
    }
}

fn drink_edge(wire: &Wire, at: &mut u64) -> Option<String> {
    let mut buffer = [0; 4096];
    loop {
        match socket::recv(wire.fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) => return Some(format!("{at} bytes, then end")),
            Ok(got) if buffer[..got] == *known(*at, got) => *at += got as u64,
            Ok(_) => return Some(format!("wrong bytes after {at}")),
            Err(Errno::EAGAIN) => return None,
            Err(error) => return Some(format!("{at} bytes, then {error:?}")),
        }
    }
}
