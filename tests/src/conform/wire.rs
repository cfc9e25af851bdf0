//! A socket under test: bytes that are known, blocking or not.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::OnceLock;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{self, MsgFlags};
use socket2::SockRef;

use crate::load::pattern::PERIOD;

/// The known bytes repeat after so many: a prime, so that no loss or swap of blocks goes unseen.
const KNOWN: u64 = 1_048_573;
/// No single send is larger.
const PIECE: usize = 200_000;
/// What a non-blocking socket is waited for, in ms. Longer than a row may take: the row's own deadline says `hangs`.
const PATIENCE: u16 = 30_000;

/// See the head of this module.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) socket: TcpStream,
    pub(super) nonblocking: bool,
}

/// Random numbers that a seed repeats: xorshift64.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    /// A size of a send: most are small, some are larger than buffers.
    pub(super) fn size(&mut self) -> u64 {
        let sizes = [1, 7, 100, 1000, 1448, 9000, 65_536, PIECE as u64];
        sizes[self.below(sizes.len() as u64) as usize]
    }
}

/// The known bytes from the `from`-th of a stream on.
pub(super) fn known(from: u64, length: usize) -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| {
        let mut dice = Dice::new(PERIOD);
        let once: Vec<u8> = (0..KNOWN).map(|_| dice.below(256) as u8).collect();
        [&once[..], &once[..PIECE]].concat()
    });
    let at = (from % KNOWN) as usize;
    &bytes[at..at + length]
}

impl Wire {
    pub(super) fn new(socket: TcpStream, nonblocking: bool) -> io::Result<Self> {
        socket.set_nonblocking(nonblocking)?;
        socket.set_nodelay(true)?;
        Ok(Self {
            socket,
            nonblocking,
        })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    pub(super) fn options(&self) -> SockRef<'_> {
        SockRef::from(&self.socket)
    }

    /// One call, repeated only where a non-blocking program would wait and call again.
    pub(super) fn call<T>(
        &self,
        ready: PollFlags,
        mut call: impl FnMut() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        loop {
            match call() {
                Err(Errno::EAGAIN) if self.nonblocking => self.wait(ready),
                other => return other,
            }
        }
    }

    pub(super) fn wait(&self, ready: PollFlags) {
        let mut fds = [PollFd::new(self.socket.as_fd(), ready)];
        // Whoever waits calls again, and is told what there is.
        let _ = poll(&mut fds, PollTimeout::from(PATIENCE));
    }

    pub(super) fn recv_with(&self, buffer: &mut [u8], flags: MsgFlags) -> Result<usize, Errno> {
        self.call(PollFlags::POLLIN, || socket::recv(self.fd(), buffer, flags))
    }

    pub(super) fn send_with(&self, bytes: &[u8], flags: MsgFlags) -> Result<usize, Errno> {
        let flags = flags | MsgFlags::MSG_NOSIGNAL;
        self.call(PollFlags::POLLOUT, || socket::send(self.fd(), bytes, flags))
    }

    pub(super) fn recv(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.recv_with(buffer, MsgFlags::empty())
    }

    pub(super) fn send(&self, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            let sent = self.send_with(bytes, MsgFlags::empty())?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Sends known bytes, from one place of the stream to another.
    pub(super) fn pour(&self, from: u64, to: u64) -> Result<(), Errno> {
        let mut at = from;
        while at < to {
            let length = (to - at).min(PIECE as u64);
            self.send(known(at, length as usize))?;
            at += length;
        }
        Ok(())
    }

    /// Receives exactly this part of a stream; the text says what else came.
    pub(super) fn take(&self, from: u64, to: u64) -> Result<(), String> {
        let (mut at, mut buffer) = (from, vec![0; 65_536]);
        while at < to {
            let room = (to - at).min(buffer.len() as u64) as usize;
            match self.recv(&mut buffer[..room]) {
                Ok(0) => return Err(format!("{at} bytes, then end")),
                Ok(length) if buffer[..length] == *known(at, length) => at += length as u64,
                Ok(_) => return Err(format!("wrong bytes after {at}")),
                Err(error) => return Err(format!("{at} bytes, then {error:?}")),
            }
        }
        Ok(())
    }

    /// Reads known bytes until the stream ends, one way or another: `1000 bytes, then ECONNRESET`.
    pub(super) fn drink(&self) -> String {
        self.drink_from(0)
    }

    pub(super) fn drink_from(&self, from: u64) -> String {
        match self.take(from, u64::MAX) {
            Err(seen) => seen,
            Ok(()) => "more than there is".to_owned(),
        }
    }

    /// Reads whatever comes, as text.
    pub(super) fn text(&self) -> String {
        let (mut all, mut buffer) = (String::new(), [0; 4096]);
        loop {
            match self.recv(&mut buffer) {
                Ok(0) => return all,
                Ok(length) => all += &String::from_utf8_lossy(&buffer[..length]),
                Err(error) => return format!("{all} {error:?}"),
            }
        }
    }

    /// A reset, at once.
    pub(super) fn reset(self) -> Result<(), Errno> {
        let linger = Some(Duration::ZERO);
        self.options().set_linger(linger).map_err(errno)
    }

    /// What epoll says, once `wanted` is among it: `IN OUT RDHUP`.
    pub(super) fn events(&self, wanted: EpollFlags) -> Result<String, Errno> {
        let names = [
            (EpollFlags::EPOLLIN, "IN"),
            (EpollFlags::EPOLLOUT, "OUT"),
            (EpollFlags::EPOLLPRI, "PRI"),
            (EpollFlags::EPOLLRDHUP, "RDHUP"),
            (EpollFlags::EPOLLERR, "ERR"),
            (EpollFlags::EPOLLHUP, "HUP"),
        ];
        let all = names
            .iter()
            .fold(EpollFlags::empty(), |all, (flag, _)| all | *flag);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&self.socket, EpollEvent::new(all, 0))?;
        let mut seen = [EpollEvent::empty()];
        for _ in 0..300 {
            epoll.wait(&mut seen, PollTimeout::from(10_u8))?;
            if seen[0].events().contains(wanted) {
                break;
            }
            crate::wait::pause(Duration::from_millis(10));
        }
        let there = names
            .iter()
            .filter(|(flag, _)| seen[0].events().contains(*flag));
        Ok(there.map(|(_, name)| *name).collect::<Vec<_>>().join(" "))
    }
}

/// For what comes as an `io::Error`.
pub(super) fn errno(error: io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}
