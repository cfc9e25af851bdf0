//! The agent's own side of a flow: a ready socket from the stock, bound if need be, connected.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use shunt_core::flow::CloseReason;
use shunt_core::sockets::{SocketSupply, SocketWant};
use socket2::{SockAddr, Socket, TcpKeepalive};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Keeps middleboxes and dead peers from holding a flow for ever: an idle upstream is probed after this long.
const KEEPALIVE: Duration = Duration::from_secs(60);

#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    #[error("no socket")]
    NoSocket(#[source] io::Error),
    #[error("cannot bind {0}")]
    Bind(IpAddr, #[source] io::Error),
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("no answer in {0:?}")]
    Timeout(Duration),
    /// It was not tried.
    #[error("{1}")]
    Refused(CloseReason, String),
}

impl ConnectError {
    /// Nobody listens there.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self, Self::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused)
    }

    pub(crate) fn reason(&self) -> CloseReason {
        match self {
            Self::Timeout(_) => CloseReason::ConnectTimeout,
            Self::Connect(_) => CloseReason::ConnectFailed,
            Self::NoSocket(_) | Self::Bind(..) => CloseReason::InternalError,
            Self::Refused(reason, _) => *reason,
        }
    }
}

/// A connection that was begun.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) stream: TcpStream,
    pub(crate) local: SocketAddr,
}

/// Takes a socket and begins to connect it. `source` is bound first.
pub(crate) async fn begin<S: SocketSupply>(
    supply: &S,
    want: SocketWant,
    source: Option<IpAddr>,
    destination: SocketAddr,
) -> Result<Begun, ConnectError> {
    let socket = Socket::from(supply.take(want).await.map_err(ConnectError::NoSocket)?);
    prepare(&socket).map_err(ConnectError::NoSocket)?;
    if let Some(ip) = source {
        let address = SockAddr::from(SocketAddr::new(ip, 0));
        socket
            .bind(&address)
            .map_err(|error| ConnectError::Bind(ip, error))?;
    }
    match socket.connect(&SockAddr::from(destination)) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(EINPROGRESS) => {}
        Err(error) => return Err(ConnectError::Connect(error)),
    }
    let local = socket.local_addr().ok().and_then(|addr| addr.as_socket());
    let stream = TcpStream::from_std(socket.into()).map_err(ConnectError::NoSocket)?;
    Ok(Begun {
        stream,
        local: local.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0))),
    })
}

/// From asm-generic/errno.h; std has no stable kind for it.
const EINPROGRESS: i32 = 115;

impl Begun {
    pub(crate) async fn connected(self, longest: Duration) -> Result<TcpStream, ConnectError> {
        let connected = async {
            self.stream.writable().await?;
            self.stream.take_error()?.map_or(Ok(()), Err)
        };
        match timeout(longest, connected).await {
            Ok(Ok(())) => Ok(self.stream),
            Ok(Err(error)) => Err(ConnectError::Connect(error)),
            Err(_) => Err(ConnectError::Timeout(longest)),
        }
    }
}

/// Dying in the middle must look like it: a reset, not an end. Cleared by the relay when both sides ended in order.
fn prepare(socket: &Socket) -> io::Result<()> {
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))
}
