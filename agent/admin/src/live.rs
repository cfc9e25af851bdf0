//! An answer that is told as it comes: the server's end and the client's.

use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::StatusCode;
use hyper::body::{Body, Frame, Incoming};
use tokio::sync::mpsc;

use crate::client::{ClientError, send};

/// Bytes that are sent at once, if there are so many.
const BATCH: usize = 32 << 10;

/// The body.
pub(crate) struct Lines(pub(crate) mpsc::Receiver<Bytes>);

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(first) = ready!(self.0.poll_recv(cx)) else {
            return Poll::Ready(None);
        };
        let mut batch = BytesMut::from(first);
        while batch.len() < BATCH
            && let Ok(more) = self.0.try_recv()
        {
            batch.extend_from_slice(&more);
        }
        Poll::Ready(Some(Ok(Frame::data(batch.freeze()))))
    }
}

/// What an agent tells by and by. Dropping it ends the telling.
#[derive(Debug)]
pub struct Telling {
    pub status: StatusCode,
    body: Incoming,
    /// Came, and was not given out yet.
    rest: BytesMut,
}

impl Telling {
    /// Asks, and waits for the answer to begin.
    ///
    /// # Errors
    /// As of [`crate::client::request`].
    pub async fn begin(socket: &Path, path: &str) -> Result<Self, ClientError> {
        let response = send(socket, "GET", path, Empty::<Bytes>::new()).await?;
        let status = response.status();
        Ok(Self {
            status,
            body: response.into_body(),
            rest: BytesMut::new(),
        })
    }

    /// The next line, without its end. `None`: the agent has said everything. Cancel safe.
    ///
    /// # Errors
    /// The agent broke off.
    pub async fn line(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(end);
                self.rest.advance(1);
                return Ok(Some(line.freeze()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.rest.extend_from_slice(&data);
                    }
                }
            }
        }
    }

    /// Everything, of an answer that has an end.
    ///
    /// # Errors
    /// The agent broke off.
    pub async fn rest(self) -> Result<Bytes, ClientError> {
        Ok(self.body.collect().await?.to_bytes())
    }
}
