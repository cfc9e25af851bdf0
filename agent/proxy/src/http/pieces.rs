//! Writing several pieces at once.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

/// So many bytes, a head and a short body, are copied into one piece: `send` of it costs less than `writev`.
const FEW: usize = 2 << 10;

pub(super) fn poll_write(
    stream: &mut TcpStream,
    cx: &mut Context<'_>,
    pieces: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let stream = Pin::new(stream);
    if let [only] = pieces {
        return stream.poll_write(cx, only);
    }
    let mut one = [0; FEW];
    let mut length = 0;
    for piece in pieces {
        let Some(place) = one.get_mut(length..length + piece.len()) else {
            return stream.poll_write_vectored(cx, pieces);
        };
        place.copy_from_slice(piece);
        length += piece.len();
    }
    stream.poll_write(cx, &one[..length])
}
