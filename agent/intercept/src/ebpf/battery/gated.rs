//! What may differ from TCP, as long as it is known: whoever decides which sockets are accelerated asks.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::ioctl_fionread;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use socket2::Socket;

use super::Answer;
use super::bytes::{Deadline, Ending, SHORT, expect, pattern, send_all, until, wait_for};
use super::scene::{Scene, told};
use crate::netns::set_int;

/// No reader of ours waits longer, whatever the kernel does.
const GUARD: Duration = Duration::from_secs(2);

/// A reader that waits while its own direction is ended.
pub(super) fn blocking_receive(scene: &Scene) -> Answer {
    let flow = scene.flow()?;
    accelerated(scene, &flow.far)?;
    blocks(&flow.near)?;
    let (told_id, id) = std::sync::mpsc::channel();
    let heard = thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let _ = told_id.send(rustix::thread::gettid());
            receive_blocking(&flow.near, 100, 0)
        });
        asleep(&id)?;
        told(flow.near.shutdown(Shutdown::Write))?;
        // The end reaches the other side, and its acknowledgement the reader.
        wait_for(&flow.far, PollFlags::POLLIN, Deadline::new())?;
        until(Deadline::after(SHORT), || reading.is_finished());
        send_all(&flow.far, b"x", 1, Deadline::new())?;
        joined(reading)
    })?;
    match heard {
        Ok(1) => Ok("it waits on while its own direction is ended".into()),
        other => Err(format!(
            "{} while its own direction is ended",
            shown(&other)
        )),
    }
}

pub(super) fn wait_all(scene: &Scene) -> Answer {
    let flow = scene.flow()?;
    accelerated(scene, &flow.near)?;
    blocks(&flow.far)?;
    let (told_id, id) = std::sync::mpsc::channel();
    let heard = thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let _ = told_id.send(rustix::thread::gettid());
            receive_blocking(&flow.far, 2000, libc::MSG_WAITALL)
        });
        asleep(&id)?;
        send_all(&flow.near, &pattern(1, 1000), 1000, Deadline::new())?;
        until(Deadline::after(SHORT), || reading.is_finished());
        send_all(&flow.near, &pattern(2, 1000), 1000, Deadline::new())?;
        joined(reading)
    })?;
    match heard {
        Ok(2000) => Ok("2000 bytes of two messages".into()),
        other => Err(format!("{} of the 2000 asked for", shown(&other))),
    }
}

pub(super) fn splice_out(scene: &Scene) -> Answer {
    let flow = scene.flow()?;
    accelerated(scene, &flow.near)?;
    let (out, into) = told(pipe_with(PipeFlags::CLOEXEC).map_err(Into::into))?;
    send_all(&flow.near, &pattern(1, 1000), 1000, Deadline::new())?;
    wait_for(&flow.far, PollFlags::POLLIN, Deadline::new())?;
    let moved = splice(&flow.far, None, &into, None, 2000, SpliceFlags::NONBLOCK);
    drop(out);
    match moved.map_err(io::Error::from) {
        Ok(1000) => Ok("it sees the 1000 bytes that wait".into()),
        other => Err(format!("{}, where 1000 bytes wait", shown(&other))),
    }
}

pub(super) fn bytes_waiting(scene: &Scene) -> Answer {
    let flow = scene.flow()?;
    accelerated(scene, &flow.near)?;
    send_all(&flow.near, &pattern(1, 1000), 1000, Deadline::new())?;
    wait_for(&flow.far, PollFlags::POLLIN, Deadline::new())?;
    match ioctl_fionread(&flow.far).map_err(io::Error::from) {
        Ok(1000) => Ok("1000 of 1000 bytes".into()),
        Ok(said) => Err(format!("{said}, where 1000 bytes wait")),
        Err(error) => Err(error.to_string()),
    }
}

pub(super) fn zero_copy(scene: &Scene) -> Answer {
    let flow = scene.flow()?;
    accelerated(scene, &flow.near)?;
    told(set_int(&flow.near, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1))?;
    let sent = pattern(1, 30_000);
    let taken = told(flow.near.send_with_flags(&sent, libc::MSG_ZEROCOPY))?;
    expect(&flow.far, &sent[..taken], &Ending::Open)?;
    // POLLERR, which need not be asked for: something is in the queue of errors.
    let mut fds = [PollFd::new(flow.near.as_fd(), PollFlags::empty())];
    let short = PollTimeout::try_from(SHORT).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, short) {
        Ok(0) => Err(format!(
            "not completed {} ms after they were read",
            SHORT.as_millis()
        )),
        Ok(_) => Ok(format!("completed after {taken} bytes")),
        Err(error) => Err(error.to_string()),
    }
}

/// Nothing that is asked here means anything of a plain connection.
fn accelerated(scene: &Scene, socket: &Socket) -> Result<(), String> {
    scene.end(socket).map(|_| ())
}

fn blocks(socket: &Socket) -> Result<(), String> {
    told(socket.set_nonblocking(false))?;
    told(socket.set_read_timeout(Some(GUARD)))
}

fn receive_blocking(socket: &Socket, most: usize, flags: i32) -> io::Result<usize> {
    let mut buffer = vec![std::mem::MaybeUninit::uninit(); most];
    loop {
        match socket.recv_with_flags(&mut buffer, flags) {
            // With a timeout set, the kernel does not resume a call that a signal broke off.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Waits until a thread sleeps, in the one call that it makes.
fn asleep(id: &std::sync::mpsc::Receiver<rustix::thread::Pid>) -> Result<(), String> {
    let deadline = Deadline::new();
    let id = id
        .recv_timeout(deadline.left())
        .map_err(|error| error.to_string())?;
    let stat = format!("/proc/self/task/{}/stat", id.as_raw_nonzero());
    let sleeps = || {
        let stat = fs::read_to_string(&stat).unwrap_or_default();
        // The state follows the name, which is in parentheses.
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('S'))
    };
    match until(deadline, sleeps) {
        true => Ok(()),
        false => Err("a reader does not wait".into()),
    }
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> Result<T, String> {
    thread.join().map_err(|_| "the reader failed".into())
}

fn shown(result: &io::Result<usize>) -> String {
    match result {
        Ok(bytes) => format!("{bytes} bytes"),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => "EAGAIN".into(),
        Err(error) => error.to_string(),
    }
}
