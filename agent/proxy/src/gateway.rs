//! One connection to a listener of the proxy's own, from accept to close.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use shunt_core::address::{ClientAddr, canonical};
use shunt_core::bootstrap::{Chain, Served};
use shunt_core::flow::{CloseReason, Direction};
use shunt_core::listener::Facts;
use shunt_core::snapshot::Snapshot;
use shunt_core::sockets::{OriginalDstSource, SocketSupply};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::account::Account;
use crate::admission::{Refused, refuse_over_limit};
use crate::flow::prepare;
use crate::inspect::{Findings, inspect};
use crate::worker::Local;
use crate::{http, tcp_proxy};

/// Accepted, inspected, and given to the filter chain that is for it.
pub(crate) async fn serve<S: SocketSupply, O: OriginalDstSource>(
    local: Rc<Local<S, O>>,
    addr: SocketAddr,
    mut client: TcpStream,
    from: SocketAddr,
    closing: watch::Receiver<bool>,
) {
    let snapshot = local.context.snapshot.load_full();
    let Some(served) = snapshot.proxy.listener(addr).map(Arc::clone) else {
        return;
    };
    if prepare(&client).is_err() {
        return; // The client is gone already.
    }
    let mut account = open(&local, &served, from);
    let chosen = match refuse_over_limit(&local, &snapshot, &served.account) {
        Ok(()) => choose(&served, &mut client, from).await,
        Err(refused) => Err(refused),
    };
    let (reason, detail) = match chosen {
        Err(refused) => refused,
        Ok((chain, read)) => {
            let to = client.local_addr().map_or(addr, canonical);
            let connection = Connection {
                client,
                read,
                from: canonical(from),
                listener: to,
                bound: addr,
                snapshot,
                closing,
            };
            match &*chain {
                Chain::Tcp(tcp) => tcp_proxy::serve(&local, tcp, connection, &mut account).await,
                Chain::Http(http) => {
                    http::serve(&local, &chain, http, connection, &mut account).await
                }
            }
        }
    };
    account.ended(reason, detail);
}

/// A connection that a filter chain is to serve.
pub(crate) struct Connection {
    pub(crate) client: TcpStream,
    /// Bytes that the client has sent and that were read already.
    pub(crate) read: Vec<u8>,
    pub(crate) from: SocketAddr,
    /// Where it was made to: an address of this host, also where the listener is bound to all of them.
    pub(crate) listener: SocketAddr,
    /// The listener's address as it was configured.
    pub(crate) bound: SocketAddr,
    pub(crate) snapshot: Arc<Snapshot>,
    /// The listener is going away.
    pub(crate) closing: watch::Receiver<bool>,
}

async fn choose(
    served: &Served,
    client: &mut TcpStream,
    from: SocketAddr,
) -> Result<(Arc<Chain>, Vec<u8>), Refused> {
    let gone = |error: std::io::Error| (CloseReason::ClientReset, Some(error.to_string()));
    let findings = inspect(client, &served.listener).await.map_err(gone)?;
    let Some(Findings {
        read,
        is_tls,
        server_name,
        protocols,
    }) = findings
    else {
        let detail = "the first bytes did not come in time".to_owned();
        return Err((CloseReason::NoFilterChain, Some(detail)));
    };
    let facts = Facts {
        destination: canonical(client.local_addr().map_err(gone)?),
        source: canonical(from),
        server_name: server_name.as_deref(),
        is_tls,
        application_protocols: &protocols,
    };
    let nobody = || {
        (
            CloseReason::NoFilterChain,
            Some("no filter chain is for it".to_owned()),
        )
    };
    let chain = served.chain(&facts).ok_or_else(nobody)?;
    Ok((Arc::clone(chain), read))
}

/// Tells of a client for whom there was no descriptor.
pub(crate) fn refused<S: SocketSupply, O: OriginalDstSource>(
    local: &Local<S, O>,
    addr: SocketAddr,
    from: SocketAddr,
) {
    if let Some(served) = local.context.snapshot.load().proxy.listener(addr) {
        let detail = "no descriptor left".to_owned();
        open(local, served, from).ended(CloseReason::Limit, Some(detail));
    }
}

fn open<S: SocketSupply, O: OriginalDstSource>(
    local: &Local<S, O>,
    served: &Served,
    from: SocketAddr,
) -> Account {
    Account::open(
        &served.account,
        Direction::Inbound,
        ClientAddr(canonical(from)),
        Arc::clone(&local.context.counters),
        Arc::clone(&local.context.flows),
    )
}
