//! A connection that is none of HTTP's any more: after `101`, or a `200` to CONNECT, bytes go both ways as in any TCP
//! connection.
//!
//! ```text
//!  HTTP: hyper <- Wire      Link -> hyper          '101' has gone to the client, hyper lets go of both sockets
//!  then: client ============ relay ============ upstream          and neither is ever HTTP's again
//! ```

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shunt_core::cluster::Held;
use shunt_core::config::Timeouts;
use shunt_core::flow::{CloseReason, DataPath};
use shunt_core::sockets::{OriginalDstSource, SocketSupply};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::books::Entry;
use super::link::{Alive, Link};
use super::talk::Progress;
use super::told_to_close;
use crate::account::{Account, Moved};
use crate::admission::Refused;
use crate::gateway::{Connection, OnePass, pass_on};
use crate::relay::{Early, Rules, relay};
use crate::worker::{Counted, Local};

pub(super) struct Tunnel {
    to: To,
    entry: Rc<Entry>,
    /// Zero: for ever.
    idle: Duration,
}

pub(super) enum To {
    /// An upstream that has changed its protocol, or with which none was spoken.
    Upstream(Upgraded, Kept),
    /// A listener of the far end, on this node.
    FarEnd(Box<OnePass>, Kept),
}

/// A socket that is none of HTTP's any more.
pub(super) struct Upgraded {
    pub(super) stream: TcpStream,
    /// What hyper had read beyond the response.
    pub(super) read: Bytes,
    /// What a connection holds as long as it lives.
    pub(super) alive: (Alive, Option<Counted>),
}

/// What counts as in use as long as there is the tunnel.
#[expect(dead_code, reason = "held, and dropped at the end")]
pub(super) enum Kept {
    /// Its request is under way, and nobody else's ever will be.
    Link(Box<Link>),
    Connection(Held, Held),
}

impl Tunnel {
    pub(super) fn new(to: To, progress: &Progress) -> Self {
        Self {
            to,
            entry: Rc::clone(progress.entry()),
            idle: progress.idle(),
        }
    }

    /// Until both sides have ended. `connection.read` is counted already.
    pub(super) async fn carry<S: SocketSupply, O: OriginalDstSource>(
        self,
        local: &Local<S, O>,
        connection: Connection,
        account: &mut Account,
    ) -> Refused {
        let Self { to, entry, idle } = self;
        entry.tunnels();
        entry.received(connection.read.len());
        account.count_also(Rc::clone(&entry) as Rc<dyn Moved>);
        let (upgraded, _kept) = match to {
            To::Upstream(upgraded, kept) => (upgraded, kept),
            To::FarEnd(pass, _kept) => {
                let ended = pass_on(local, *pass, connection, account).await;
                entry.tunnelled(ended.0, account.is_client_first());
                return ended;
            }
        };
        let snapshot = Arc::clone(&connection.snapshot);
        let Upgraded {
            stream,
            read,
            alive: _alive,
        } = upgraded;
        account.sent(DataPath::Copy, read.len() as u64);
        let early = Early {
            to_upstream: connection.read.into(),
            to_client: read,
        };
        let rules = Rules {
            timeouts: Timeouts {
                idle,
                ..snapshot.timeouts
            },
            splice_after: snapshot.splice_after,
        };
        let (client, mut closing) = (connection.client, connection.closing);
        // Nothing else makes it end: it has no next response.
        let drained = async {
            told_to_close(&mut closing).await;
            sleep(snapshot.timeouts.drain).await;
        };
        let ended = tokio::select! {
            end = relay(client, stream, early, &local.pools, &rules, None, account) => Some(end),
            () = drained => None,
        };
        let Some(end) = ended else {
            entry.tunnelled(CloseReason::Drained, false);
            return (CloseReason::Drained, None);
        };
        entry.tunnelled(end.reason, account.is_client_first());
        (end.reason, end.error.map(|error| error.to_string()))
    }
}
