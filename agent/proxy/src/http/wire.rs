//! The client's socket: bytes that were read before come first, all are counted, and the end is in order when the last
//! answer was.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Buf;
use hyper::body::{Body, Frame, SizeHint};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::books::Entry;
use super::pieces;
use super::talk::Talk;

/// For the client to take the last answer and to close; bytes which it sends meanwhile are thrown away, as a reset would
/// take the answer away from it.
const DELAYED_CLOSE: Duration = Duration::from_secs(1);

/// Bytes after which a client that sends without a pause gives way: to its own answer, to its limits and to others.
const AT_ONCE: usize = 256 << 10;

pub(super) struct Wire {
    stream: TcpStream,
    /// Read without a pause.
    at_once: usize,
    /// Bytes that were read before, and how many of them were taken.
    before: (Vec<u8>, usize),
    /// The client says nothing more.
    has_ended: bool,
    talk: Rc<Talk>,
    signature: Signature,
    /// Written in place of what hyper gave.
    instead: Vec<u8>,
}

/// What every reply of the proxy's own has.
#[derive(Debug)]
pub(super) struct Signature {
    /// Header lines.
    pub(super) lines: String,
    /// Names begin with upper case letters.
    pub(super) proper_case: bool,
}

impl Signature {
    /// A whole reply; `more` is a header line.
    fn reply(&self, line: &str, text: &str, more: &str) -> Vec<u8> {
        let (length, own) = (text.len(), &self.lines);
        let lines = format!(
            "content-length: {length}\r\ncontent-type: text/plain\r\n{own}{more}\r\nconnection: close\r\n"
        );
        let lines = match self.proper_case {
            true => lines.split_inclusive('\n').map(properly_all).collect(),
            false => lines,
        };
        format!("{line}\r\n{lines}\r\n{text}").into_bytes()
    }
}

/// `content-length: 1` as `Content-Length: 1`.
fn properly_all(line: &str) -> String {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    format!("{}:{value}", properly(name))
}

/// `content-length` as `Content-Length`.
pub(super) fn properly(name: &str) -> String {
    let mut begins = true;
    name.chars()
        .map(|letter| {
            let proper = if begins {
                letter.to_ascii_uppercase()
            } else {
                letter
            };
            begins = letter == '-';
            proper
        })
        .collect()
}

/// How hyper's own answers to what is no request begin: they have no body, and nobody is asked about them.
const HYPERS_OWN: [&[u8]; 2] = [
    b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n",
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n",
];

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A response's body, as long as which lives its answer has not ended.
pub(super) struct Answering<B: Body> {
    body: B,
    talk: Rc<Talk>,
    entry: Rc<Entry>,
}

impl<B: Body> Answering<B> {
    pub(super) fn new(body: B, talk: Rc<Talk>, entry: Rc<Entry>) -> Self {
        Self { body, talk, entry }
    }
}

impl<B: Body> Drop for Answering<B> {
    fn drop(&mut self) {
        // Nothing of it is asked for where there is nothing, or where the method has it that there is nothing.
        if self.body.is_end_stream() || self.entry.is_head_only() {
            self.entry.whole();
        }
        self.talk.answered();
    }
}

impl<B: Body + Unpin> Body for Answering<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => self.entry.whole(),
            Some(Ok(frame)) if frame.is_trailers() => self.entry.whole(),
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Buf::remaining);
                self.entry.sent(bytes);
            }
            Some(Err(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Wire {
    pub(super) fn new(
        stream: TcpStream,
        before: Vec<u8>,
        talk: Rc<Talk>,
        signature: Signature,
    ) -> Self {
        Self {
            stream,
            at_once: 0,
            before: (before, 0),
            has_ended: false,
            talk,
            signature,
            instead: Vec::new(),
        }
    }

    /// Has the client's end been read?
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// The same answer as Envoy words it.
    fn reword(&self, answer: &[u8]) -> Option<Vec<u8>> {
        if !self.talk.is_nobodys() {
            return None;
        }
        let beginning = HYPERS_OWN.into_iter().find(|own| answer.starts_with(own))?;
        let rest = std::str::from_utf8(&answer[beginning.len()..]).ok()?;
        let rest = rest
            .strip_suffix("\r\n\r\n")
            .filter(|rest| !rest.contains("\r\n\r\n"))?;
        let (line, _) = std::str::from_utf8(beginning).ok()?.split_once("\r\n")?;
        let text = line.splitn(3, ' ').nth(2)?;
        Some(self.signature.reply(line, text, rest))
    }

    /// Says this to a client whose request never came whole, and closes.
    pub(super) async fn answer(mut self, line: &str, text: &str) {
        let date = format!("date: {}", httpdate::fmt_http_date(SystemTime::now()));
        let reply = self.signature.reply(line, text, &date);
        // A client that takes nothing has its time to begin.
        if let Ok(Ok(())) = timeout(DELAYED_CLOSE, self.stream.write_all(&reply)).await {
            self.talk.wrote(reply.len());
        }
        self.close().await;
    }

    /// The socket, and bytes that were read from it and that nobody took.
    pub(super) fn into_stream(self) -> (TcpStream, Vec<u8>) {
        let (mut bytes, taken) = self.before;
        bytes.drain(..taken);
        (self.stream, bytes)
    }

    /// Bytes by which hyper tells the client to go on, where it is the upstream that does.
    fn swallow(&self, bytes: &[u8]) -> Option<usize> {
        let is_continue = bytes.starts_with(CONTINUE);
        (self.talk.leaves_continue() && is_continue).then_some(CONTINUE.len())
    }

    /// What goes before all that hyper writes.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.instead.extend(self.talk.interim());
        while !self.instead.is_empty() {
            let written =
                std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, &self.instead))?;
            self.instead.drain(..written);
            self.talk.wrote(written);
        }
        Poll::Ready(Ok(()))
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
        if self.at_once >= AT_ONCE {
            self.at_once = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let had = buffer.filled().len();
        let (bytes, taken) = &mut self.before;
        if *taken < bytes.len() {
            let length = buffer.remaining().min(bytes.len() - *taken);
            buffer.put_slice(&bytes[*taken..*taken + length]);
            *taken += length;
        } else {
            let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
            if read.is_pending() {
                self.at_once = 0;
            }
            std::task::ready!(read)?;
        }
        let read = buffer.filled().len() - had;
        self.at_once += read;
        self.has_ended |= read == 0 && buffer.remaining() > 0;
        self.talk.read(read);
        Poll::Ready(self.talk.gauge().read(read))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_instead(cx))?;
        if let Some(swallowed) = self.swallow(bytes) {
            return Poll::Ready(Ok(swallowed));
        }
        if let Some(instead) = self.reword(bytes) {
            self.instead = instead;
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.talk.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_instead(cx))?;
        if let Some(swallowed) = slices.first().and_then(|first| self.swallow(first)) {
            return Poll::Ready(Ok(swallowed));
        }
        if let [only] = slices
            && let Some(instead) = self.reword(only)
        {
            self.instead = instead;
            return Poll::Ready(Ok(only.len()));
        }
        let written = std::task::ready!(pieces::poll_write(&mut self.stream, cx, slices))?;
        self.talk.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_instead(cx))?;
        // Hyper asks for it when it has written all that it has.
        self.talk.flushed();
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Left to [`Wire::close`].
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
