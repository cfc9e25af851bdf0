//! Bodies on their way through: nothing is held but the frame that moves.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until};

use super::pool::{Link, Upstreams};

/// What is known of an exchange while it goes on.
#[derive(Debug)]
pub(super) struct Progress {
    request_ended: Cell<bool>,
    ended: Notify,
    /// When something moved last.
    moved: Cell<Instant>,
}

impl Progress {
    pub(super) fn new(request_ended: bool) -> Rc<Self> {
        Rc::new(Self {
            request_ended: Cell::new(request_ended),
            ended: Notify::new(),
            moved: Cell::new(Instant::now()),
        })
    }

    pub(super) fn has_request_ended(&self) -> bool {
        self.request_ended.get()
    }

    pub(super) async fn until_request_ended(&self) {
        while !self.has_request_ended() {
            self.ended.notified().await;
        }
    }

    pub(super) fn moved(&self) -> Instant {
        self.moved.get()
    }

    fn touch(&self) {
        self.moved.set(Instant::now());
    }

    fn end_request(&self) {
        self.request_ended.set(true);
        self.ended.notify_waiters();
        self.ended.notify_one();
    }
}

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
            progress.touch();
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
    /// The route's timeout counts until the response's end.
    pub(super) deadline: Option<Instant>,
    pub(super) stream_idle: Duration,
    pub(super) timer: Option<Pin<Box<Sleep>>>,
}

/// Why a response was broken off: the client sees a reset.
#[derive(Debug, thiserror::Error)]
pub(super) enum BrokenOff {
    #[error("the upstream broke off")]
    Upstream(#[source] hyper::Error),
    #[error("the response took too long")]
    Timeout,
}

impl Upstream {
    fn settle(&mut self) {
        if let Some(link) = self.link.take()
            && self.progress.has_request_ended()
        {
            self.pool.give_back(link);
        }
    }

    fn due(&self) -> Option<Instant> {
        let idle = (!self.stream_idle.is_zero()).then(|| self.progress.moved() + self.stream_idle);
        idle.into_iter().chain(self.deadline).min()
    }

    /// Ready when time is up. A timer is made only for a response that lets itself be waited for.
    fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(due) = self.due() else {
            return Poll::Pending;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(cx)
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
            let Poll::Ready(frame) = Pin::new(&mut body.inner).poll_frame(cx) else {
                ready!(body.poll_due(cx));
                return Poll::Ready(Some(Err(BrokenOff::Timeout)));
            };
            body.progress.touch();
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
