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
    /// What every reply of ours has, as header lines.
    signature: String,
    /// Written in place of what hyper gave.
    instead: Vec<u8>,
}

/// How hyper's own answers to what is no request begin: they have no body, and nobody is asked about them.
const HYPERS_OWN: [&[u8]; 2] = [
    b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n",
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n",
];

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
    pub(super) fn new(stream: TcpStream, before: Vec<u8>, signature: String) -> Self {
        Self {
            stream,
            before: (before, 0),
            counts: Rc::default(),
            signature,
            instead: Vec::new(),
        }
    }

    /// The same answer as Envoy words it.
    fn reword(&self, answer: &[u8]) -> Option<Vec<u8>> {
        let beginning = HYPERS_OWN.into_iter().find(|own| answer.starts_with(own))?;
        let rest = std::str::from_utf8(&answer[beginning.len()..]).ok()?;
        let rest = rest
            .strip_suffix("\r\n\r\n")
            .filter(|rest| !rest.contains("\r\n\r\n"))?;
        let (line, _) = std::str::from_utf8(beginning).ok()?.split_once("\r\n")?;
        let text = line.splitn(3, ' ').nth(2)?;
        let length = text.len();
        let signature = &self.signature;
        let answer = format!(
            "{line}\r\ncontent-length: {length}\r\ncontent-type: text/plain\r\n{signature}{rest}\r\nconnection: close\r\n\r\n{text}"
        );
        Some(answer.into_bytes())
    }

    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.instead.is_empty() {
            let written =
                std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, &self.instead))?;
            self.instead.drain(..written);
            self.counts
                .written
                .set(self.counts.written() + written as u64);
        }
        Poll::Ready(Ok(()))
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
            while self
                .stream
                .read(&mut thrown_away)
                .await
                .is_ok_and(|read| read > 0)
            {}
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
        std::task::ready!(self.poll_instead(cx))?;
        if let Some(instead) = self.reword(bytes) {
            self.instead = instead;
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.counts
            .written
            .set(self.counts.written() + written as u64);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_instead(cx))?;
        if let [only] = slices
            && let Some(instead) = self.reword(only)
        {
            self.instead = instead;
            return Poll::Ready(Ok(only.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        let written = std::task::ready!(written)?;
        self.counts
            .written
            .set(self.counts.written() + written as u64);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_instead(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Left to [`Wire::close`].
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
