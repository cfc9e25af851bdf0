//! Bodies on their way through: nothing is held but the frame that moves.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::pool::{Link, Upstreams};
use super::talk::Progress;

/// A request's, from the client to an upstream. Trailers stay behind, as in Envoy without `enable_trailers`.
#[derive(Debug)]
pub(super) struct RequestBody {
    inner: Option<Incoming>,
    progress: Rc<Progress>,
}

impl RequestBody {
    pub(super) fn new(inner: Incoming, progress: Rc<Progress>) -> Self {
        let inner = Some(inner).filter(|inner| !inner.is_end_stream());
        Self { inner, progress }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { inner, progress } = &mut *self;
        let Some(inner) = inner else {
            return Poll::Ready(None);
        };
        loop {
            let frame = ready!(Pin::new(&mut *inner).poll_frame(cx));
            let is_over = frame.is_none() || inner.is_end_stream();
            let is_data = !matches!(&frame, Some(Ok(frame)) if !frame.is_data());
            progress.talk().touch();
            if is_over {
                progress.end_request();
            }
            if is_data {
                return Poll::Ready(frame);
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Some(inner) => inner.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

/// A response's, to the client.
pub(super) enum ResponseBody {
    Local(Option<Bytes>),
    Upstream(Upstream),
}

/// From an upstream. When it has ended in order, its connection is there for others.
pub(super) struct Upstream {
    pub(super) inner: Incoming,
    pub(super) link: Option<Link>,
    pub(super) pool: Upstreams,
    pub(super) progress: Rc<Progress>,
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
            && self.progress.has_request_ended()
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
            match frame {
                None => {
                    body.settle();
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(BrokenOff::Upstream(error)))),
                Some(Ok(frame)) => {
                    if body.inner.is_end_stream() {
                        body.settle();
                    }
                    if frame.is_data() {
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
