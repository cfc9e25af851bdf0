//! The socket itself. Sending never blocks: what the socket does not take waits in order.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

use super::{MAX_FDS, VERSION};

/// Larger than any message; a configuration of a thousand workloads is about 300 KB.
const MAX_MESSAGE: usize = 4 << 20;
/// Both ends ask for this much room (bytes; the kernel doubles it and caps it for the unprivileged).
const SOCKET_BUFFER: usize = 8 << 20;

/// One end: sends `Out`, receives `In`.
#[derive(Debug)]
pub struct Channel<Out, In> {
    socket: AsyncFd<OwnedFd>,
    waiting: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    buffer: Vec<u8>,
    next_number: u64,
    types: PhantomData<fn(Out) -> In>,
}

#[derive(Debug, Error)]
pub enum ChannelError {
    #[error("the other process is gone")]
    Closed,
    #[error("cannot use the channel to the other process")]
    Io(#[from] io::Error),
    #[error("a message was cut off by the kernel")]
    Truncated,
    #[error("the other process speaks version {theirs} of the protocol, this one {VERSION}")]
    Version { theirs: u32 },
    #[error("a message of the other process cannot be read")]
    Malformed(#[from] serde_json::Error),
}

#[derive(Serialize, Deserialize)]
struct Frame<Body> {
    version: u32,
    number: u64,
    body: Body,
}

#[derive(Deserialize)]
struct Envelope {
    version: u32,
}

/// A connected pair, closed on exec; the child gets its end as standard input.
///
/// # Errors
/// Descriptors ran out.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    for end in [&ours, &theirs] {
        // Privileged, so not capped; without the privilege the default must do.
        if rustix::net::sockopt::set_socket_send_buffer_size_force(end, SOCKET_BUFFER).is_err() {
            rustix::net::sockopt::set_socket_send_buffer_size(end, SOCKET_BUFFER)?;
        }
    }
    Ok((ours, theirs))
}

impl<Out: Serialize, In: DeserializeOwned> Channel<Out, In> {
    /// # Errors
    /// Not in a tokio runtime, or not a socket.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        #[expect(
            deprecated,
            reason = "an OwnedFd stays open as long as it is registered; the successor is unsafe"
        )]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self {
            socket,
            waiting: VecDeque::new(),
            buffer: vec![0; 64 << 10],
            next_number: 1,
            types: PhantomData,
        })
    }

    /// One that another supervisor has used; its next message has this number.
    ///
    /// # Errors
    /// As [`Channel::new`].
    pub fn go_on(socket: OwnedFd, next_number: u64) -> io::Result<Self> {
        Ok(Self {
            next_number,
            ..Self::new(socket)?
        })
    }

    /// For [`Channel::go_on`].
    pub fn parts(&self) -> (BorrowedFd<'_>, u64) {
        (self.socket.get_ref().as_fd(), self.next_number)
    }

    /// Queues a message; [`Channel::receive`] and this push the queue on. Returns the message's number.
    ///
    /// # Errors
    /// The message cannot be written as JSON, or the other process is gone.
    pub fn send(&mut self, body: &Out, fds: Vec<OwnedFd>) -> Result<u64, ChannelError> {
        let number = self.next_number;
        self.next_number += 1;
        let text = serde_json::to_vec(&Frame {
            version: VERSION,
            number,
            body,
        })?;
        self.waiting.push_back((text, fds));
        push(self.socket.get_ref(), &mut self.waiting)?;
        Ok(number)
    }

    /// Messages that the socket did not take yet.
    pub fn backlog(&self) -> usize {
        self.waiting.len()
    }

    /// The next message, its number and its descriptors. Sends what waits meanwhile. Cancel safe.
    ///
    /// # Errors
    /// See [`ChannelError`]; after any of them the channel is of no more use.
    pub async fn receive(&mut self) -> Result<(u64, In, Vec<OwnedFd>), ChannelError> {
        loop {
            push(self.socket.get_ref(), &mut self.waiting)?;
            match self.try_receive() {
                Ok((length, fds)) => {
                    let text = &self.buffer[..length];
                    let Envelope { version } = serde_json::from_slice(text)?;
                    if version != VERSION {
                        return Err(ChannelError::Version { theirs: version });
                    }
                    let frame: Frame<In> = serde_json::from_slice(text)?;
                    return Ok((frame.number, frame.body, fds));
                }
                Err(ChannelError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let wanted = if self.waiting.is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            let mut guard = self.socket.ready(wanted).await?;
            // Look again *after* taking the guard: only readiness older than the guard is cleared.
            if guard.ready().is_readable() && !readable(guard.get_inner().as_fd())? {
                guard.clear_ready_matching(Ready::READABLE);
            }
            if guard.ready().is_writable() {
                push(guard.get_inner(), &mut self.waiting)?;
                if !self.waiting.is_empty() {
                    guard.clear_ready_matching(Ready::WRITABLE);
                }
            }
        }
    }

    fn try_receive(&mut self) -> Result<(usize, Vec<OwnedFd>), ChannelError> {
        let socket = self.socket.get_ref();
        // Asked first, since a packet that does not fit is cut off.
        let peek = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
        let (_, length) = rustix::net::recv(socket, &mut [0_u8; 0][..], peek).map_err(failed)?;
        if length > MAX_MESSAGE {
            return Err(ChannelError::Truncated);
        }
        if length > self.buffer.len() {
            self.buffer.resize(length, 0);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let slices = &mut [IoSliceMut::new(&mut self.buffer)];
        let got = rustix::net::recvmsg(socket, slices, &mut control, flags).map_err(failed)?;
        let mut fds: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        if got.flags.contains(ReturnFlags::TRUNC) {
            return Err(ChannelError::Truncated);
        }
        if got.flags.contains(ReturnFlags::CTRUNC) {
            // This process has no descriptor left. The message counts as one that came with none: whoever reads it
            // misses them, and says so.
            fds.clear();
        }
        if got.bytes == 0 {
            return Err(ChannelError::Closed);
        }
        Ok((got.bytes, fds))
    }
}

/// Sends what waits, until the socket is full.
fn push(
    socket: &OwnedFd,
    waiting: &mut VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
) -> Result<(), ChannelError> {
    while let Some((text, fds)) = waiting.front() {
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&borrowed));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::sendmsg(socket, &[IoSlice::new(text)], &mut control, flags) {
            Ok(_) => {
                waiting.pop_front();
            }
            Err(rustix::io::Errno::AGAIN) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// The kernel tells a death once, to whichever call comes first: as a reset, where the dead had not read everything.
fn failed(error: rustix::io::Errno) -> ChannelError {
    match error {
        rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET => ChannelError::Closed,
        other => ChannelError::Io(other.into()),
    }
}

/// Is a message, or the end, waiting?
fn readable(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(socket, &mut [0_u8; 1][..], peek) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::AGAIN) => Ok(false),
        // Told now, and not again: the next call sees the end.
        Err(rustix::io::Errno::CONNRESET) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use shunt_core::workload::WorkloadId;

    use super::*;
    use crate::ipc::{ToSupervisor, ToWorker};

    #[tokio::test]
    async fn who_dies_with_messages_unread_is_dead_all_the_same() {
        let (ours, theirs) = pair().expect("a pair");
        let mut channel: Channel<ToSupervisor, ToWorker> = Channel::new(ours).expect("a channel");
        let drained = ToSupervisor::Drained { id: WorkloadId(1) };
        channel.send(&drained, Vec::new()).expect("sent");
        drop(theirs);
        let heard = channel.receive().await;
        assert!(matches!(heard, Err(ChannelError::Closed)), "{heard:?}");
    }
}
