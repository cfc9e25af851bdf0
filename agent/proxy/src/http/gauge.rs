//! What a peer has sent without anything coming of it. Sizes of chunks, empty lines and interim responses are nobody's data
//! and would go on for as long as its time; by this they go on for so many bytes.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::pieces;

/// Bytes, beside what hyper has read ahead.
const MOST: usize = 64 << 10;

#[derive(Clone)]
pub(super) struct Gauge {
    bytes: Rc<Cell<usize>>,
    most: usize,
}

impl Gauge {
    /// `buffer`: bytes that hyper reads ahead at most.
    pub(super) fn new(buffer: usize) -> Self {
        Self {
            bytes: Rc::default(),
            most: buffer + MOST,
        }
    }

    /// Something has come of it.
    pub(super) fn reset(&self) {
        self.bytes.set(0);
    }

    /// # Errors
    /// Nothing has come of too much.
    pub(super) fn read(&self, bytes: usize) -> io::Result<()> {
        self.bytes.set(self.bytes.get() + bytes);
        match self.bytes.get() <= self.most {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "nothing comes of what is sent",
            )),
        }
    }
}

/// A socket of which this is asked.
pub(super) struct Gauged {
    pub(super) stream: TcpStream,
    pub(super) gauge: Gauge,
}

impl AsyncRead for Gauged {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let had = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        Poll::Ready(self.gauge.read(buffer.filled().len() - had))
    }
}

impl AsyncWrite for Gauged {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        pieces::poll_write(&mut self.stream, cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
