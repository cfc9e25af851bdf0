//! Bodies on their way through: nothing is held but the frame that moves.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::link::Link;
use super::pool::Upstreams;
use super::talk::Progress;

/// A request's, from the client to an upstream.
pub(super) struct RequestBody {
    source: Source,
    progress: Rc<Progress>,
    /// Both ends have `enable_trailers`; otherwise trailers stay behind.
    trailers: bool,
}

enum Source {
    Nothing,
    Client(Incoming),
    /// A filter wanted all of it.
    Held(Option<Bytes>),
}

/// Why a body is not held.
pub(super) enum NotHeld {
    TooLarge,
    BrokenOff,
}

impl RequestBody {
    pub(super) fn new(inner: Incoming, progress: Rc<Progress>) -> Self {
        let source = match inner.is_end_stream() {
            true => Source::Nothing,
            false => Source::Client(inner),
        };
        Self {
            source,
            progress,
            trailers: false,
        }
    }

    pub(super) fn pass_trailers(&mut self) {
        self.trailers = true;
    }

    /// Takes all of it, up to so many bytes. Says how many there are.
    pub(super) async fn hold(&mut self, most: usize) -> Result<usize, NotHeld> {
        // In one piece: of many small ones each would hold a part of the read buffer.
        let mut held = BytesMut::new();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut *self).poll_frame(cx)).await {
            if let Ok(data) = frame.map_err(|_| NotHeld::BrokenOff)?.into_data() {
                if held.len() + data.len() > most {
                    return Err(NotHeld::TooLarge);
                }
                held.extend_from_slice(&data);
            }
        }
        let bytes = held.len();
        self.source = Source::Held(Some(held.freeze()).filter(|held| !held.is_empty()));
        Ok(bytes)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self {
            source,
            progress,
            trailers,
        } = &mut *self;
        let inner = match source {
            Source::Nothing => return Poll::Ready(None),
            Source::Held(held) => return Poll::Ready(held.take().map(Frame::data).map(Ok)),
            Source::Client(inner) => inner,
        };
        loop {
            let frame = ready!(Pin::new(&mut *inner).poll_frame(cx));
            let ends = matches!(&frame, Some(Ok(frame)) if frame.is_trailers());
            let is_over = frame.is_none() || ends || inner.is_end_stream();
            let is_data = !matches!(&frame, Some(Ok(frame)) if !frame.is_data());
            progress.talk().touch();
            progress.talk().gauge().reset();
            if is_over {
                progress.end_request();
            }
            if let Some(Ok(frame)) = &frame
                && let Some(data) = frame.data_ref()
            {
                progress.entry().received(data.len());
            }
            if is_data || ends && *trailers {
                return Poll::Ready(frame);
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Nothing => true,
            Source::Client(inner) => inner.is_end_stream(),
            Source::Held(held) => held.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Nothing => SizeHint::with_exact(0),
            Source::Client(inner) => inner.size_hint(),
            Source::Held(held) => {
                SizeHint::with_exact(held.as_ref().map_or(0, |held| held.len() as u64))
            }
        }
    }
}

/// A response's, to the client.
pub(super) enum ResponseBody {
    Local(Option<Bytes>),
    Upstream(Box<Upstream>),
}

/// From an upstream. When it has ended in order, its connection is there for others.
pub(super) struct Upstream {
    pub(super) inner: Incoming,
    pub(super) link: Option<Link>,
    pub(super) pool: Upstreams,
    pub(super) progress: Rc<Progress>,
    /// As of a request's.
    pub(super) trailers: bool,
}

/// Why a response was broken off: the client sees a reset.
#[derive(Debug, thiserror::Error)]
pub(super) enum BrokenOff {
    #[error("the upstream broke off")]
    Upstream(#[source] hyper::Error),
}

impl Upstream {
    fn settle(&mut self) {
        if let Some(link) = self.link.take()
            && self.progress.is_whole()
        {
            self.pool.give_back(link);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let body = match &mut *self {
            Self::Local(bytes) => return Poll::Ready(bytes.take().map(Frame::data).map(Ok)),
            Self::Upstream(body) => body,
        };
        loop {
            let frame = ready!(Pin::new(&mut body.inner).poll_frame(cx));
            body.progress.talk().touch();
            if let Some(link) = &body.link {
                link.goes_on();
            }
            match frame {
                None => {
                    body.settle();
                    return Poll::Ready(None);
                }
                Some(Err(error)) => {
                    body.progress.entry().broken_off();
                    return Poll::Ready(Some(Err(BrokenOff::Upstream(error))));
                }
                Some(Ok(frame)) => {
                    if frame.is_trailers() || body.inner.is_end_stream() {
                        body.settle();
                    }
                    if frame.is_data() || frame.is_trailers() && body.trailers {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Local(bytes) => bytes.is_none(),
            Self::Upstream(body) => body.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Local(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Upstream(body) => body.inner.size_hint(),
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if self.inner.is_end_stream() {
            self.settle();
        }
    }
}
