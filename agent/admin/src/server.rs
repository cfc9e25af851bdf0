//! The server. Everything about a request is bounded: its size, its time, how many there are at once.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::call::{Answer, Body, Call, parse};
use crate::live::Lines;

const MAX_BODY: usize = 64 << 10;
const MAX_HEADERS: usize = 16 << 10;
/// Connections at once.
const MAX_CONNECTIONS: usize = 64;
/// For a client to send its headers, and again its body: a slow one cannot keep a place.
const READ_TIME: Duration = Duration::from_secs(10);
/// For an answer to be found: enrolling a workload takes its time, but is not waited for without end.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// For a whole connection, so that a client which does not read its answer loses its place too. Answers without end have
/// no such bound: whoever gives them bounds how many there are.
const MAX_TIME: Duration = Duration::from_secs(60);
/// After a failed accept.
const PAUSE: Duration = Duration::from_millis(100);

/// Whoever knows the answers. One thread; futures need not be `Send`.
pub trait AdminApi: 'static {
    fn answer(&self, call: Call) -> impl Future<Output = Answer>;
}

/// Where requests come from.
#[derive(Debug)]
pub enum Listener {
    /// Only its owner can connect: everything is allowed.
    Unix(UnixListener),
    /// Anybody on the host can: reading what the data plane knows is allowed.
    Tcp(TcpListener),
}

/// Answers for ever. Must run inside a `LocalSet`.
pub async fn serve(listener: Listener, api: Rc<impl AdminApi>) {
    let places = std::sync::Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Whoever does not get a place waits in the queue of the socket.
        let Ok(place) = std::sync::Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let api = Rc::clone(&api);
        let accepted = match &listener {
            Listener::Unix(unix) => unix.accept().await.map(|(stream, _)| {
                tokio::task::spawn_local(async move {
                    connection(stream, api, true).await;
                    drop(place);
                });
            }),
            Listener::Tcp(tcp) => tcp.accept().await.map(|(stream, _)| {
                tokio::task::spawn_local(async move {
                    connection(stream, api, false).await;
                    drop(place);
                });
            }),
        };
        if let Err(error) = accepted {
            tracing::warn!(%error, "cannot accept an admin connection");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    api: Rc<impl AdminApi>,
    trusted: bool,
) {
    let is_live = Cell::new(false);
    let service = service_fn(|request| {
        let (api, is_live) = (Rc::clone(&api), &is_live);
        async move {
            let answer = respond(request, &*api, trusted).await;
            let mut response = Response::new(match answer.body {
                Body::Whole(bytes) => Either::Left(Full::new(bytes)),
                Body::Live(lines) => {
                    is_live.set(true);
                    Either::Right(Lines(lines))
                }
            });
            *response.status_mut() = answer.status;
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
            Ok::<_, Infallible>(response)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIME)
        .max_buf_size(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let served = match tokio::time::timeout(MAX_TIME, &mut served).await {
        Err(_) if is_live.get() => Ok(served.await),
        ended => ended,
    };
    match served {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an admin connection failed"),
        Err(_) => tracing::debug!("an admin connection took too long"),
    }
}

async fn respond(request: Request<Incoming>, api: &impl AdminApi, trusted: bool) -> Answer {
    let (head, body) = request.into_parts();
    if !trusted && head.method != Method::GET {
        let text = "only GET is allowed over TCP; use the unix socket\n";
        return Answer::text(StatusCode::FORBIDDEN, text);
    }
    let body = Limited::new(body, MAX_BODY).collect();
    let body = match tokio::time::timeout(READ_TIME, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return Answer::text(StatusCode::PAYLOAD_TOO_LARGE, "at most 64 KiB\n");
        }
        Ok(Err(_)) => return Answer::text(StatusCode::BAD_REQUEST, "the body broke off\n"),
        Err(_) => return Answer::text(StatusCode::REQUEST_TIMEOUT, "the body took too long\n"),
    };
    let Ok(body) = String::from_utf8(body.into()) else {
        return Answer::text(StatusCode::BAD_REQUEST, "the body is not UTF-8\n");
    };
    let call = match parse(&head.method, head.uri.path(), head.uri.query(), body) {
        Ok(call) => call,
        Err(answer) => return answer,
    };
    if let Some(why) = call.only_for_the_owner().filter(|_| !trusted) {
        let text = format!("this is answered on the unix socket only: {why}\n");
        return Answer::text(StatusCode::FORBIDDEN, text);
    }
    let answer = tokio::time::timeout(ANSWER_TIME, api.answer(call)).await;
    answer.unwrap_or_else(|_| {
        let text = "no answer within 30 s; what was asked for may still happen\n";
        Answer::text(StatusCode::GATEWAY_TIMEOUT, text)
    })
}

#[cfg(test)]
mod tests;
