//! The client's socket: bytes that were read before come first, all are counted, and the end is in order when the last
//! answer was.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For the client to take the last answer and to close; bytes which it sends meanwhile are thrown away, as a reset would
/// take the answer away from it.
const DELAYED_CLOSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    /// Bytes that were read before, and how many of them were taken.
    before: (Vec<u8>, usize),
    counts: Rc<Counts>,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    read: Cell<u64>,
    written: Cell<u64>,
}

impl Counts {
    pub(super) fn read(&self) -> u64 {
        self.read.get()
    }

    pub(super) fn written(&self) -> u64 {
        self.written.get()
    }
}

impl Wire {
    pub(super) fn new(stream: TcpStream, before: Vec<u8>) -> Self {
        Self {
            stream,
            before: (before, 0),
            counts: Rc::default(),
        }
    }

    pub(super) fn counts(&self) -> Rc<Counts> {
        Rc::clone(&self.counts)
    }

    /// The last answer is written: let the client have it.
    pub(super) async fn close(mut self) {
        // It fails only for a socket that is gone.
        let _ = SockRef::from(&self.stream).set_linger(None);
        let _ = SockRef::from(&self.stream).shutdown(std::net::Shutdown::Write);
        let mut thrown_away = [0; 4096];
        let taken = async {
            while self.stream.read(&mut thrown_away).await.is_ok_and(|read| read > 0) {}
        };
        let _ = timeout(DELAYED_CLOSE, taken).await;
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let had = buffer.filled().len();
        let (bytes, taken) = &mut self.before;
        if *taken < bytes.len() {
            let length = buffer.remaining().min(bytes.len() - *taken);
            buffer.put_slice(&bytes[*taken..*taken + length]);
            *taken += length;
        } else {
            std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        }
        let read = (buffer.filled().len() - had) as u64;
        self.counts.read.set(self.counts.read() + read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.counts.written.set(self.counts.written() + written as u64);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        let written = std::task::ready!(written)?;
        self.counts.written.set(self.counts.written() + written as u64);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Left to [`Wire::close`].
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
