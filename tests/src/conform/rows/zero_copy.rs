//! Ways to send and receive without copying: the kernel must not leave the stream's own path.

use std::io::{IoSliceMut, Read, Seek, Write};
use std::net::Shutdown;

use nix::fcntl::{SpliceFFlags, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::sendfile::sendfile;
use nix::sys::socket::{MsgFlags, recvmsg};
use nix::unistd::pipe;

use crate::conform::raw::set_option;
use crate::conform::row::Sockets::{Blocking, Both};
use crate::conform::row::{End, Fault, Row, Seen, pair};
use crate::conform::wire::{Wire, known};

pub(super) const ROWS: &[Row] = &[
    pair("sendfile", Both, sends_a_file, drinks),
    pair("splice-in", Both, splices_in, drinks),
    pair("splice-out", Both, pours, splices_out),
    pair("splice-through", Blocking, sends_and_hears, splices_back),
    pair("zerocopy", Both, sends_zerocopy, drinks),
];

const MANY: u64 = 300_000;
/// A pipe holds more.
const PIECE: usize = 10_000;

fn drinks(end: End) -> Seen {
    Ok(end.wire.drink())
}

fn pours(end: End) -> Seen {
    end.wire.pour(0, MANY)?;
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(end.wire.drink())
}

fn sends_a_file(end: End) -> Seen {
    let mut file = tempfile::tempfile()?;
    for piece in 0..MANY / PIECE as u64 {
        file.write_all(known(piece * PIECE as u64, PIECE))?;
    }
    file.rewind()?;
    let mut left = MANY as usize;
    while left > 0 {
        let send = || sendfile(&end.wire.socket, &file, None, left);
        match end.wire.call(PollFlags::POLLOUT, send)? {
            0 => return Ok(format!("{left} bytes left")),
            sent => left -= sent,
        }
    }
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(end.wire.drink())
}

fn splices_in(end: End) -> Seen {
    let (read, write) = pipe()?;
    let (mut write, flags) = (std::fs::File::from(write), SpliceFFlags::empty());
    for piece in 0..MANY / PIECE as u64 {
        write.write_all(known(piece * PIECE as u64, PIECE))?;
        let mut left = PIECE;
        while left > 0 {
            let give = || splice(&read, None, &end.wire.socket, None, left, flags);
            left -= end.wire.call(PollFlags::POLLOUT, give)?;
        }
    }
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(end.wire.drink())
}

/// One splice out of the socket; the bytes come from the pipe.
fn splice_out(wire: &Wire, at: u64) -> Result<usize, Fault> {
    let (read, write) = pipe()?;
    let flags = SpliceFFlags::empty();
    let take = || splice(&wire.socket, None, &write, None, PIECE, flags);
    let taken = wire.call(PollFlags::POLLIN, take)?;
    drop(write);
    let mut bytes = Vec::new();
    std::fs::File::from(read).read_to_end(&mut bytes)?;
    if bytes != known(at, taken) {
        return Err(Fault::Saw(format!("wrong bytes after {at}")));
    }
    Ok(taken)
}

fn splices_out(end: End) -> Seen {
    let mut at = 0;
    loop {
        match splice_out(&end.wire, at)? {
            0 => return Ok(format!("{at} bytes, then end")),
            taken => at += taken as u64,
        }
    }
}

fn sends_and_hears(end: End) -> Seen {
    end.wire.pour(0, 1000)?;
    end.wire.take(0, 1000)?;
    end.wire.pour(1000, 2000)?;
    end.wire.take(1000, 2000)?;
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(end.wire.drink_from(2000))
}

/// An echo that never sees its bytes, as proxies do it.
fn splices_back(end: End) -> Seen {
    let ((read, write), flags) = (pipe()?, SpliceFFlags::empty());
    let mut total = 0;
    loop {
        let mut held = splice(&end.wire.socket, None, &write, None, PIECE, flags)?;
        if held == 0 {
            return Ok(format!("{total} bytes, then end"));
        }
        total += held;
        while held > 0 {
            held -= splice(&read, None, &end.wire.socket, None, held, flags)?;
        }
    }
}

/// The bytes arrive, and the kernel says when it needs them no longer.
fn sends_zerocopy(end: End) -> Seen {
    set_option(
        &end.wire.socket,
        libc::SOL_SOCKET,
        libc::SO_ZEROCOPY,
        &1_i32.to_ne_bytes(),
    )?;
    let flags = MsgFlags::from_bits_retain(libc::MSG_ZEROCOPY);
    let mut at = 0;
    while at < MANY {
        at += end
            .wire
            .send_with(known(at, (MANY - at).min(100_000) as usize), flags)? as u64;
    }
    let mut fds = [PollFd::new(
        std::os::fd::AsFd::as_fd(&end.wire.socket),
        PollFlags::empty(),
    )];
    poll(&mut fds, PollTimeout::from(1000_u16))?;
    let (mut nothing, mut room) = ([0; 8], vec![0; 200]);
    let mut iov = [IoSliceMut::new(&mut nothing)];
    let told = recvmsg::<()>(
        end.wire.fd(),
        &mut iov,
        Some(&mut room),
        MsgFlags::MSG_ERRQUEUE,
    );
    let seen = if told.is_ok() {
        "completed"
    } else {
        "never completed"
    };
    end.wire.socket.shutdown(Shutdown::Write)?;
    Ok(format!("{seen}; {}", end.wire.drink()))
}
