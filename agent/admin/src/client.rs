//! Asking a running agent.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;

#[derive(Debug, Error)]
pub enum ClientError {
    #[error("no agent is running: {0} is not there or nobody answers on it")]
    NotRunning(PathBuf),
    #[error("not allowed to ask the agent on {0}: only its owner (root) may")]
    NotAllowed(PathBuf),
    #[error("cannot connect to the agent on {0}")]
    Connect(PathBuf, #[source] io::Error),
    #[error("the request cannot be made")]
    Request(#[from] hyper::http::Error),
    #[error("the agent broke off")]
    Http(#[from] hyper::Error),
}

/// Sends one request and reads the whole answer.
///
/// # Errors
/// No agent answers; whatever it answers is no error here.
pub async fn request(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<String>,
) -> Result<(StatusCode, Bytes), ClientError> {
    let body = Full::new(Bytes::from(body.unwrap_or_default()));
    let response = send(socket, method, path, body).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, body))
}

/// Sends one request and waits for the answer to begin; it is carried on by a task.
pub(crate) async fn send<B>(
    socket: &Path,
    method: &str,
    path: &str,
    body: B,
) -> Result<Response<Incoming>, ClientError>
where
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(socket.to_owned())
            }
            io::ErrorKind::PermissionDenied => ClientError::NotAllowed(socket.to_owned()),
            _ => ClientError::Connect(socket.to_owned(), error),
        })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Whoever reads the answer hears how it ended.
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "shunt")
        .body(body)?;
    Ok(sender.send_request(request).await?)
}
