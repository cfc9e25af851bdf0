//! The agent's own side of a flow: a ready socket from the stock, bound if need be, connected.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use shunt_core::flow::CloseReason;
use shunt_core::sockets::{SocketSupply, SocketWant};
use shunt_ebpf_common::maps::BY_TCP_PRIORITY;
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

/// Which socket a connection is made with.
pub(crate) struct Terms<'a, S> {
    pub(crate) supply: &'a S,
    pub(crate) want: SocketWant,
    /// See [`BY_TCP_PRIORITY`].
    pub(crate) by_tcp: bool,
}

impl<S: SocketSupply> Terms<'_, S> {
    /// Takes a socket and begins to connect it. `source` is bound first.
    pub(crate) async fn begin(
        &self,
        source: Option<IpAddr>,
        destination: SocketAddr,
    ) -> Result<Begun, ConnectError> {
        let socket = self.supply.take(self.want).await;
        let socket = Socket::from(socket.map_err(ConnectError::NoSocket)?);
        self.prepare(&socket).map_err(ConnectError::NoSocket)?;
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

    /// Dying in the middle must look like it: a reset, not an end. Cleared by the relay when both sides ended in order.
    fn prepare(&self, socket: &Socket) -> io::Result<()> {
        if self.by_tcp {
            let priority = BY_TCP_PRIORITY.cast_signed();
            setsockopt(socket, sockopt::Priority, &priority)?;
        }
        socket.set_linger(Some(Duration::ZERO))?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))
    }
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
