//! Every byte arrives once and in order.

use std::fs::File;
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::conform::row::Sockets::{Blocking, Both};
use crate::conform::row::{Acceptor, Caller, End, Fault, Row, Seen, call, pair};
use crate::conform::wire::{Dice, Wire, known};
use crate::wait;

pub(super) const ROWS: &[Row] = &[
    call("order", Both, order_caller, order_acceptor).long(),
    call("bursts", Both, bursts_caller, bursts_acceptor).long(),
    call("early-data", Both, early_caller, early_acceptor).long(),
    call("server-first", Both, greeted, greets),
    pair("both-at-once", Both, duplex_near, duplex_far),
    pair("many-threads", Blocking, threads_write, threads_read),
    pair("socket-of-a-child", Blocking, child_echoes, hears_child),
];

/// Streams at once, and the bytes of each, both ways.
const STREAMS: u64 = 40;
const STREAM: u64 = 512 << 10;
/// Connections, rounds on each, and the size of each burst: 240 bursts.
const BURSTERS: u64 = 4;
const ROUNDS: u64 = 30;
const BURST: u64 = 1 << 20;
/// Connections that send at once when they are connected.
const EARLY: u64 = 200;
const WRITERS: u8 = 4;
const OF_EACH: usize = 20_000;

/// Random sizes and rests, both ways at once, each way ended by itself.
fn duplex(wire: &Wire, seed: u64) -> String {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut dice, mut at) = (Dice::new(seed), 0);
            while at < STREAM {
                let to = (at + dice.size()).min(STREAM);
                // What goes wrong is seen by whoever reads.
                if wire.pour(at, to).is_err() {
                    return;
                }
                at = to;
                if dice.below(33) == 0 {
                    wait::pause(Duration::from_micros(dice.below(3000)));
                }
            }
            let _ = wire.socket.shutdown(Shutdown::Write);
        });
        wire.drink()
    })
}

fn whole(all: &[String]) -> String {
    let expected = format!("{STREAM} bytes, then end");
    let other = all.iter().find(|seen| **seen != expected);
    let good = all.iter().filter(|seen| **seen == expected).count();
    match other {
        None => format!("{good} whole"),
        Some(other) => format!("{good} whole, one {other}"),
    }
}

fn order_caller(caller: Caller) -> Seen {
    let wires: Result<Vec<Wire>, Fault> = (0..STREAMS).map(|_| dial(&caller)).collect();
    Ok(all_at_once(&wires?, 1000))
}

fn order_acceptor(acceptor: Acceptor) -> Seen {
    let wires: Result<Vec<Wire>, Fault> = (0..STREAMS).map(|_| accept(&acceptor)).collect();
    Ok(all_at_once(&wires?, 0))
}

fn all_at_once(wires: &[Wire], seed: u64) -> String {
    let seen: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (seed..)
            .zip(wires)
            .map(|(seed, wire)| scope.spawn(move || duplex(wire, seed)))
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|seen| seen.unwrap_or_default()).collect()
    });
    whole(&seen)
}

pub(super) fn dial(caller: &Caller) -> Result<Wire, Fault> {
    Ok(Wire::new(
        TcpStream::connect(caller.v4)?,
        caller.nonblocking,
    )?)
}

pub(super) fn accept(acceptor: &Acceptor) -> Result<Wire, Fault> {
    Ok(Wire::new(
        acceptor.listener.accept()?.0,
        acceptor.nonblocking,
    )?)
}

/// A megabyte there, checked; then one back.
fn rounds(wire: &Wire, sends_first: bool) -> Result<(), Fault> {
    for round in 0..ROUNDS {
        let (from, to) = (round * BURST, (round + 1) * BURST);
        for turn in [sends_first, !sends_first] {
            match turn {
                true => wire.pour(from, to)?,
                false => wire.take(from, to)?,
            }
        }
    }
    Ok(())
}

fn bursts(wires: &[Wire], sends_first: bool) -> Seen {
    let ends: Vec<Result<(), Fault>> = std::thread::scope(|scope| {
        let threads: Vec<_> = wires
            .iter()
            .map(|wire| scope.spawn(move || rounds(wire, sends_first)))
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|end| end.unwrap_or(Err(Fault::Alone))).collect()
    });
    ends.into_iter().collect::<Result<(), Fault>>()?;
    Ok(format!("{} bursts whole", ROUNDS * BURSTERS))
}

fn bursts_caller(caller: Caller) -> Seen {
    let wires: Result<Vec<Wire>, Fault> = (0..BURSTERS).map(|_| dial(&caller)).collect();
    bursts(&wires?, true)
}

fn bursts_acceptor(acceptor: Acceptor) -> Seen {
    let wires: Result<Vec<Wire>, Fault> = (0..BURSTERS).map(|_| accept(&acceptor)).collect();
    bursts(&wires?, false)
}

/// Three pieces at once after connect: whichever way the first takes, the others come after it.
fn early_caller(caller: Caller) -> Seen {
    for number in 0..EARLY {
        let wire = dial(&caller)?;
        for piece in 0..3 {
            wire.pour(piece * 1000, (piece + 1) * 1000)?;
        }
        let end = wire.drink();
        if end != "1 bytes, then end" {
            return Ok(format!("after {number}: {end}"));
        }
    }
    Ok(format!("{EARLY} answered"))
}

fn early_acceptor(acceptor: Acceptor) -> Seen {
    for _ in 0..EARLY {
        let wire = accept(&acceptor)?;
        wire.take(0, 3000)?;
        wire.pour(0, 1)?;
    }
    Ok(format!("{EARLY} in order"))
}

fn greeted(caller: Caller) -> Seen {
    let wire = dial(&caller)?;
    wire.take(0, 10)?;
    wire.pour(0, 5)?;
    Ok(wire.drink_from(10))
}

fn greets(acceptor: Acceptor) -> Seen {
    let wire = accept(&acceptor)?;
    wire.pour(0, 10)?;
    wire.take(0, 5)?;
    wire.pour(10, 300_000)?;
    Ok("greeted, answered".into())
}

fn duplex_near(end: End) -> Seen {
    Ok(duplex(&end.wire, 7))
}

fn duplex_far(end: End) -> Seen {
    Ok(duplex(&end.wire, 8))
}

/// TCP promises no order between threads, but every byte once.
fn threads_write(end: End) -> Seen {
    let wire = &end.wire;
    std::thread::scope(|scope| {
        for value in 1..=WRITERS {
            scope.spawn(move || {
                for _ in 0..OF_EACH / 1000 {
                    let _ = wire.send(&[value; 1000]);
                }
            });
        }
    });
    wire.socket.shutdown(Shutdown::Write)?;
    Ok(wire.drink())
}

fn threads_read(end: End) -> Seen {
    let wire = &end.wire;
    let tallies: Vec<[usize; 256]> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..WRITERS)
            .map(|_| scope.spawn(move || tally(wire)))
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|tally| tally.unwrap_or([0; 256])).collect()
    });
    let sum = |value: u8| tallies.iter().map(|tally| tally[usize::from(value)]).sum();
    let counts: Vec<usize> = (1..=WRITERS).map(sum).collect();
    Ok(format!("{counts:?}"))
}

/// How often each byte came, until the end. An error is a byte that never comes.
fn tally(wire: &Wire) -> [usize; 256] {
    let (mut counts, mut buffer) = ([0; 256], [0; 5000]);
    loop {
        match wire.recv(&mut buffer) {
            Ok(0) => return counts,
            Ok(length) => {
                for byte in &buffer[..length] {
                    counts[usize::from(*byte)] += 1;
                }
            }
            Err(_) => {
                counts[1] += 1_000_000;
                return counts;
            }
        }
    }
}

/// Another program has the socket as its stdin and stdout, as inetd did it.
fn child_echoes(end: End) -> Seen {
    let socket = OwnedFd::from(end.wire.socket);
    let (stdin, stdout) = (File::from(socket.try_clone()?), File::from(socket));
    let mut cat = Command::new("cat");
    // If it hangs, it must hold nothing that whoever started us waits for.
    let cat = cat.stdin(stdin).stdout(stdout).stderr(Stdio::null());
    let status = cat.status()?;
    Ok(format!("{status}"))
}

fn hears_child(end: End) -> Seen {
    end.wire.send(known(0, 100_000))?;
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(end.wire.drink())
}
