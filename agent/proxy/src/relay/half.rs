//! One direction of a relay.
//!
//! ```text
//!            read                       write
//!   source ───────► buffer of the worker ───────► sink      until `splice_after` bytes have moved
//!   source ───────► pipe of the worker ─────────► sink      from then on
//!           splice                      splice
//! ```
//! It takes again only when what it took before has been written, so the two ways cannot overtake each other, and
//! `WouldBlock` from a splice means one thing: the source is empty, or the sink is full.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use shunt_core::counters::AgentCounters;
use shunt_core::flow::DataPath;
use shunt_core::sockets::{Accelerator, SocketCookie};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::Pools;
use super::room::Room;
use super::turns::{Turn, Turns};
use crate::buffers::{Lease, Size};
use crate::pipes::{self, NoPipe};

/// Bytes at least between two attempts to get a pipe.
const ASK_AGAIN: u64 = 1 << 20;

/// See the head of this module.
pub(super) struct Half<'a> {
    read: ReadHalf<'a>,
    write: WriteHalf<'a>,
    load: Load,
    /// Of the next buffer.
    size: Size,
    state: State,
    pub(super) moved: u64,
    /// Splices when `moved` is more; `None`: never.
    splice_at: Option<u64>,
    splice_after: u64,
    spliced: bool,
    turn: Turn,
    way: Way<'a>,
    room: Room,
    /// The source had nothing more when it was asked last, and everything before that is written.
    drained: bool,
}

/// How bytes come to the agent's sockets and leave them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way<'a> {
    /// Splices after this many; `None`: never.
    Tcp { splice_after: Option<u64> },
    /// Through receive queues past TCP, which splice(2) does not see, and from which a short read does not mean that
    /// there is nothing more.
    Queues {
        accelerator: &'a dyn Accelerator,
        /// The application's socket from which bytes come; `None`: it is not known.
        source: Option<SocketCookie>,
    },
}

impl Way<'_> {
    /// The source has ended its direction: in order?
    fn end(self) -> io::Result<()> {
        match self {
            Self::Queues {
                accelerator,
                source: Some(cookie),
            } if accelerator.was_cut(cookie)? => Err(io::ErrorKind::ConnectionReset.into()),
            _ => Ok(()),
        }
    }

    /// What copying is called there.
    fn path(self) -> DataPath {
        match self {
            Self::Tcp { .. } => DataPath::Copy,
            Self::Queues { .. } => DataPath::Sockmap,
        }
    }
}

/// Bytes taken from the source and not written yet.
enum Load {
    Nothing,
    Buffer {
        lease: Lease,
        from: usize,
        to: usize,
    },
    Pipe(pipes::Lease),
    /// From before there was a relay; counted already.
    Early(Bytes),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Moving,
    Ending,
    Ended,
}

/// Where it failed.
pub(super) enum Side {
    Read(io::Error),
    Write(io::Error),
}

impl<'a> Half<'a> {
    pub(super) fn new(
        read: ReadHalf<'a>,
        write: WriteHalf<'a>,
        turns: &Turns,
        way: Way<'a>,
        early: Bytes,
    ) -> Self {
        let splice_after = match way {
            Way::Tcp { splice_after } => splice_after,
            Way::Queues { .. } => None,
        };
        Self {
            read,
            write,
            load: match early.is_empty() {
                true => Load::Nothing,
                false => Load::Early(early),
            },
            size: Size::default(),
            state: State::Moving,
            moved: 0,
            splice_at: splice_after,
            splice_after: splice_after.unwrap_or_default(),
            spliced: false,
            turn: turns.turn(),
            way,
            room: Room::default(),
            drained: false,
        }
    }

    /// Ready when this direction has ended in order. Moves a turn's bytes at most.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        pools: &Pools,
        agent: &AgentCounters,
        count: impl FnMut(DataPath, u64),
    ) -> Poll<Result<(), Side>> {
        let turn = ready!(self.turn.poll_begin(cx));
        let before = self.moved;
        let polled = self.poll_turn(cx, pools, agent, count, before + turn);
        let moved = self.moved - before;
        let used_up = polled.is_pending() && moved >= turn;
        self.turn.end(cx, moved, used_up);
        polled
    }

    fn poll_turn(
        &mut self,
        cx: &mut Context<'_>,
        pools: &Pools,
        agent: &AgentCounters,
        mut count: impl FnMut(DataPath, u64),
        turn_ends: u64,
    ) -> Poll<Result<(), Side>> {
        loop {
            if !matches!(self.load, Load::Nothing) {
                let (path, written) = ready!(self.poll_write(cx)).map_err(Side::Write)?;
                self.moved += written;
                if let Some(path) = path {
                    count(path, written);
                }
                if self.moved >= turn_ends {
                    return Poll::Pending;
                }
                continue;
            }
            match self.state {
                State::Moving => {
                    let left = turn_ends - self.moved;
                    let taken = self.poll_take(cx, pools, agent, left);
                    self.drained = taken.is_pending();
                    if ready!(taken).map_err(Side::Read)? == 0 {
                        self.way.end().map_err(Side::Read)?;
                        self.state = State::Ending;
                    }
                }
                State::Ending => {
                    match ready!(Pin::new(&mut self.write).poll_shutdown(cx)) {
                        // The other side is already closed: its own direction says how.
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                        other => other.map_err(Side::Write)?,
                    }
                    self.state = State::Ended;
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    pub(super) fn sink(&self) -> &TcpStream {
        self.write.as_ref()
    }

    /// Has it nothing in its hands, and its source nothing more?
    pub(super) fn is_drained(&self) -> bool {
        self.drained
    }

    /// Has it bytes that its sink does not take?
    pub(super) fn is_stalled(&self) -> bool {
        !matches!(self.load, Load::Nothing)
    }

    /// Is it stalled, and its source gone, in order or not?
    pub(super) fn is_orphaned(&self, cx: &mut Context<'_>) -> bool {
        let source: &TcpStream = self.read.as_ref();
        let ready = pin!(source.ready(Interest::READABLE)).poll(cx);
        self.is_stalled() && matches!(ready, Poll::Ready(Ok(ready)) if ready.is_read_closed())
    }

    /// Writes some of the load, and says how; `None`: it is counted already.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Option<DataPath>, u64)>> {
        let copying = Some(self.way.path());
        let (path, written, empty) = match &mut self.load {
            Load::Nothing => (copying, 0, true),
            Load::Buffer { lease, from, to } => {
                let mut bytes = &lease.bytes()[*from..*to];
                if let Way::Queues { accelerator, .. } = self.way {
                    let room = ready!(self.room.poll(cx, accelerator, self.write.as_ref()));
                    let most = usize::try_from(room).unwrap_or(usize::MAX);
                    bytes = &bytes[..bytes.len().min(most)];
                }
                let written = ready!(Pin::new(&mut self.write).poll_write(cx, bytes))?;
                *from += written;
                (copying, written, from == to)
            }
            Load::Pipe(pipe) => {
                let sink: &TcpStream = self.write.as_ref();
                let written = loop {
                    ready!(sink.poll_write_ready(cx))?;
                    match sink.try_io(Interest::WRITABLE, || pipe.give(sink)) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        other => break other?,
                    }
                };
                (Some(DataPath::Splice), written, pipe.held() == 0)
            }
            Load::Early(bytes) => {
                let written = ready!(Pin::new(&mut self.write).poll_write(cx, bytes))?;
                bytes.advance(written);
                (None, written, bytes.is_empty())
            }
        };
        if empty {
            self.load = Load::Nothing;
        } else if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        Poll::Ready(Ok((path, written as u64)))
    }

    /// Takes what the source has, by splicing `most` bytes of it; 0 is its end. Pending gives buffer and pipe back.
    fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        pools: &Pools,
        agent: &AgentCounters,
        most: u64,
    ) -> Poll<io::Result<usize>> {
        if self.splice_at.is_some_and(|at| self.moved >= at) {
            match ready!(self.poll_splice(cx, pools, most))? {
                Ok(taken) => {
                    if !std::mem::replace(&mut self.spliced, true) {
                        agent.splice_begun.fetch_add(1, Relaxed);
                    }
                    return Poll::Ready(Ok(taken));
                }
                Err(no_pipe) => {
                    let counter = match no_pipe {
                        NoPipe::AllInUse => &agent.splice_pipes_in_use,
                        NoPipe::Refused => &agent.splice_pipe_refused,
                    };
                    counter.fetch_add(1, Relaxed);
                    self.splice_at = Some(self.moved + self.splice_after.max(ASK_AGAIN));
                }
            }
        }
        let mut lease = pools.buffers.lease(self.size);
        let to = match self.way {
            Way::Tcp { .. } => {
                let mut buffer = ReadBuf::new(lease.bytes());
                ready!(Pin::new(&mut self.read).poll_read(cx, &mut buffer))?;
                buffer.filled().len()
            }
            Way::Queues { .. } => ready!(self.poll_receive(cx, lease.bytes()))?,
        };
        if to == lease.bytes().len() {
            self.size.grow();
        }
        if to > 0 {
            self.load = Load::Buffer { lease, from: 0, to };
        }
        Poll::Ready(Ok(to))
    }

    /// Reads until the kernel says that there is nothing: tokio takes a short read for that, but behind the last bytes
    /// of the queue there may be some that came by TCP, announced long ago.
    fn poll_receive(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let source: &TcpStream = self.read.as_ref();
        loop {
            ready!(source.poll_read_ready(cx))?;
            let read = || Ok(rustix::io::read(source, &mut *into)?);
            match source.try_io(Interest::READABLE, read) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
        }
    }

    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        pools: &Pools,
        most: u64,
    ) -> Poll<io::Result<Result<usize, NoPipe>>> {
        let source: &TcpStream = self.read.as_ref();
        loop {
            ready!(source.poll_read_ready(cx))?;
            let mut pipe = match pools.pipes.lease() {
                Ok(pipe) => pipe,
                Err(no_pipe) => return Poll::Ready(Ok(Err(no_pipe))),
            };
            let mut load = Load::Nothing;
            let taken = source.try_io(Interest::READABLE, || match pipe.take(source, most) {
                // splice stops for ever at urgent data, which reading skips: only reading knows that there is nothing.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut lease = pools.buffers.lease(Size::default());
                    let to = rustix::io::read(source, lease.bytes())?;
                    load = Load::Buffer { lease, from: 0, to };
                    Ok(to)
                }
                taken => taken,
            });
            match taken {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Poll::Ready(Err(error)),
                Ok(0) => return Poll::Ready(Ok(Ok(0))),
                Ok(taken) => {
                    if pipe.held() > 0 {
                        load = Load::Pipe(pipe);
                    }
                    self.load = load;
                    return Poll::Ready(Ok(Ok(taken)));
                }
            }
        }
    }
}
