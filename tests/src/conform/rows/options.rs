//! Socket options and ioctls.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::socket::{self, MsgFlags};

use super::SETTLE;
use crate::conform::raw::{ask, option, set_option};
use crate::conform::row::Sockets::{Blocking, Both};
use crate::conform::row::{End, Fault, Row, Seen, pair};
use crate::conform::wire::known;
use crate::wait;

pub(super) const ROWS: &[Row] = &[
    pair("so-rcvtimeo", Blocking, sends_late, times_out),
    pair("so-rcvlowat", Both, sends_in_halves, waits_for_low_water),
    pair("fionread", Both, sends_a_thousand, counts_unread),
    pair("urgent-data", Both, sends_urgently, takes_urgent),
    pair(
        "urgent-data-inline",
        Both,
        sends_urgently,
        takes_urgent_inline,
    ),
    pair("segment-size", Both, segment_size, drinks),
    pair("tcp-ulp", Both, asks_for_tls, drinks),
];

/// A little less than the time set: clocks tick.
const TIMEOUT: Duration = Duration::from_millis(200);
const LEAST: Duration = Duration::from_millis(190);

fn drinks(end: End) -> Seen {
    Ok(end.wire.drink())
}

fn sends_a_thousand(mut end: End) -> Seen {
    end.wire.pour(0, 1000)?;
    end.link.meet()?;
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(end.wire.drink())
}

fn sends_late(mut end: End) -> Seen {
    end.link.meet()?;
    end.wire.pour(0, 1000)?;
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(end.wire.drink())
}

fn times_out(mut end: End) -> Seen {
    end.wire.socket.set_read_timeout(Some(TIMEOUT))?;
    let begun = Instant::now();
    let first = end.wire.recv(&mut [0]);
    let waited = if begun.elapsed() >= LEAST {
        "in time"
    } else {
        "too early"
    };
    end.wire.socket.set_read_timeout(None)?;
    end.link.meet()?;
    let rest = end.wire.drink();
    Ok(match first {
        Ok(got) => format!("{got} bytes"),
        Err(error) => format!("{error:?} {waited}; {rest}"),
    })
}

fn sends_in_halves(mut end: End) -> Seen {
    end.wire.pour(0, 500)?;
    end.link.meet()?;
    end.link.meet()?;
    end.wire.pour(500, 1000)?;
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(end.wire.drink())
}

/// Half of the low water is not ready to read; all of it is.
fn waits_for_low_water(mut end: End) -> Seen {
    set_option(
        &end.wire.socket,
        libc::SOL_SOCKET,
        libc::SO_RCVLOWAT,
        &1000_i32.to_ne_bytes(),
    )?;
    end.link.meet()?;
    wait::pause(SETTLE);
    let early = end.wire.events(nix::sys::epoll::EpollFlags::EPOLLOUT)?;
    end.link.meet()?;
    end.wire.wait(PollFlags::POLLIN);
    let mut buffer = [0; 2000];
    let got = end.wire.recv(&mut buffer)?;
    set_option(
        &end.wire.socket,
        libc::SOL_SOCKET,
        libc::SO_RCVLOWAT,
        &1_i32.to_ne_bytes(),
    )?;
    Ok(format!(
        "{early}, then {got} bytes; {}",
        end.wire.drink_from(got as u64)
    ))
}

fn counts_unread(mut end: End) -> Seen {
    end.link.meet()?;
    end.wire.wait(PollFlags::POLLIN);
    let unread = ask(&end.wire.socket, libc::FIONREAD)?;
    Ok(format!("{unread} unread; {}", end.wire.drink()))
}

/// `abc`, urgent `!`, `def`.
fn sends_urgently(mut end: End) -> Seen {
    end.link.meet()?;
    socket::send(end.wire.fd(), b"abc!", MsgFlags::MSG_OOB)?;
    end.link.meet()?;
    end.link.meet()?;
    end.wire.send(b"def")?;
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(end.wire.text())
}

fn takes_urgent(mut end: End) -> Seen {
    end.link.meet()?;
    end.link.meet()?;
    wait::pause(SETTLE);
    let mut byte = [0];
    let urgent = match socket::recv(end.wire.fd(), &mut byte, MsgFlags::MSG_OOB) {
        Ok(_) => String::from_utf8_lossy(&byte).into_owned(),
        Err(error) => format!("{error:?}"),
    };
    end.link.meet()?;
    Ok(format!("urgent {urgent}, in line {}", end.wire.text()))
}

fn takes_urgent_inline(mut end: End) -> Seen {
    end.wire.options().set_out_of_band_inline(true)?;
    end.link.meet()?;
    end.link.meet()?;
    wait::pause(SETTLE);
    end.link.meet()?;
    Ok(format!("in line {}", end.wire.text()))
}

/// The segments that fit between the pods, or those of whatever is at the other end of the socket.
fn segment_size(end: End) -> Seen {
    end.wire.pour(0, 1000)?;
    Ok(match end.wire.options().tcp_mss()? {
        0..=9000 => "of an Ethernet".to_owned(),
        _ => "of a loopback".to_owned(),
    })
}

/// Whether a kernel has TLS is its own affair: a socket between pods must get the answer that one on loopback gets.
fn asks_for_tls(end: End) -> Seen {
    let answer = |socket: &std::net::TcpStream| {
        let set = set_option(socket, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls");
        (set, option(socket, libc::IPPROTO_TCP, libc::TCP_ULP, 16))
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let other = std::net::TcpStream::connect(listener.local_addr()?)?;
    let _accepted = listener.accept()?;
    let same = answer(&end.wire.socket) == answer(&other);
    // Without keys the bytes stay as they are.
    end.wire.send(known(0, 1000)).map_err(Fault::Call)?;
    Ok(if same {
        "as on loopback"
    } else {
        "not as on loopback"
    }
    .to_owned())
}
