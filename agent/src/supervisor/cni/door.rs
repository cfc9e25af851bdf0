//! Where the CNI plugin comes in. Everything about a visit is bounded: how long it may take to ask, how much it may say,
//! how many there are at once.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::stat::{Mode, umask};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use shunt_cni_protocol::{ProtocolError, Reply, Request, SOCKET, decode, encode, socket};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

/// Visitors at once; the others wait in the socket's queue.
const MAX_VISITORS: usize = 256;
const QUEUE: i32 = 1024;
/// For a visitor to ask, once he came in.
const ASKING_TIME: Duration = Duration::from_secs(5);
/// After a failed accept.
const PAUSE: Duration = Duration::from_millis(100);

/// Open as long as this lives.
#[derive(Debug)]
pub(in crate::supervisor) struct Door {
    path: PathBuf,
    visits: mpsc::Receiver<Visit>,
    keeper: JoinHandle<()>,
}

/// Somebody asks, and waits for the reply.
#[derive(Debug)]
pub(in crate::supervisor) struct Visit {
    pub(super) request: Request,
    /// The namespace that came with it.
    pub(super) netns: Option<OwnedFd>,
    pub(super) reply: oneshot::Sender<Reply>,
}

impl Door {
    /// Whoever holds the directory's lock may open it.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(in crate::supervisor) fn open(state_dir: &Path) -> Result<Self> {
        let path = state_dir.join(SOCKET);
        let listener = bind(&path).with_context(|| format!("cannot bind {}", path.display()))?;
        let (tell, visits) = mpsc::channel(MAX_VISITORS);
        let keeper = tokio::spawn(keep(listener, tell));
        Ok(Self {
            path,
            visits,
            keeper,
        })
    }

    /// Cancel safe.
    pub(in crate::supervisor) async fn next(&mut self) -> Visit {
        match self.visits.recv().await {
            Some(visit) => visit,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.keeper.abort();
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the plugin's socket");
        }
    }
}

/// Only its owner can connect. It is one of packets, which tokio's type does not mind.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = SocketAddrUnix::new(path).and_then(|at| rustix::net::bind(&socket, &at));
    umask(before);
    bound?;
    rustix::net::listen(&socket, QUEUE)?;
    UnixListener::from_std(StdListener::from(socket))
}

async fn keep(listener: UnixListener, tell: mpsc::Sender<Visit>) {
    let places = Arc::new(Semaphore::new(MAX_VISITORS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((visitor, _)) => {
                let tell = tell.clone();
                tokio::spawn(async move {
                    if let Err(error) = receive(visitor, tell).await {
                        tracing::warn!(%error, "a visit of the CNI plugin failed");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot let the CNI plugin in");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn receive(visitor: UnixStream, tell: mpsc::Sender<Visit>) -> io::Result<()> {
    let (packet, netns) = match socket::receive(&visitor) {
        // What has been said already is taken at once, so that visits are heard in their order.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let asked = visitor.async_io(Interest::READABLE, || socket::receive(&visitor));
            tokio::time::timeout(ASKING_TIME, asked).await??
        }
        said => said?,
    };
    if packet.is_empty() {
        return Ok(());
    }
    let reply = match decode(&packet) {
        Ok(request) => {
            let (reply, replied) = oneshot::channel();
            let visit = Visit {
                request,
                netns,
                reply,
            };
            if tell.send(visit).await.is_err() {
                return Ok(());
            }
            let left = visitor.async_io(Interest::READABLE, || socket::receive(&visitor));
            let replied = tokio::select! {
                replied = replied => replied,
                // He has nothing more to say: he does not wait any more.
                _ = left => return Ok(()),
            };
            // Not told: the agent is stopping, and its end is the reply.
            let Ok(reply) = replied else {
                return Ok(());
            };
            reply
        }
        Err(error) => Reply::Refused(misunderstood(&error)),
    };
    let packet = encode(&reply).map_err(io::Error::other)?;
    match socket::send(&visitor, &packet, None) {
        // It did not wait.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        sent => sent,
    }
}

fn misunderstood(error: &ProtocolError) -> String {
    match error {
        ProtocolError::Malformed(cause) => format!("{error}: {cause}"),
        _ => error.to_string(),
    }
}
