//! One connection to a listener of the configuration: inspected, given to its filter chain.
//!
//! ```text
//!  bound    accept ----------------------.
//!                                        v
//!  virtual  flow: captured, recognised -> listen -> chain -> cluster -> endpoint -> upstream
//!                                        ^                                 '- a workload of this node, which has a listener
//!                                        '------------ one pass ------------- for it: its chain, here and now
//! ```

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use shunt_core::address::{ClientAddr, canonical};
use shunt_core::bootstrap::{Chain, Served, Tables};
use shunt_core::flow::{CloseReason, Direction};
use shunt_core::listener::Facts;
use shunt_core::snapshot::{Enrolled, Snapshot};
use shunt_core::sockets::{OriginalDstSource, SocketSupply};
use shunt_core::workload::WorkloadId;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::account::Account;
use crate::admission::{Refused, choose_endpoint, refuse_over_limit};
use crate::flow::prepare;
use crate::inspect::{Findings, inspect};
use crate::listener::Closing;
use crate::origin::{Origin, is_captured};
use crate::worker::Local;
use crate::{http, tcp_proxy};

/// A connection that a listener is to serve.
pub(crate) struct Connection {
    pub(crate) client: TcpStream,
    /// Bytes that the client has sent and that were read already.
    pub(crate) read: Vec<u8>,
    /// So many of them, the first, are accounted for.
    pub(crate) counted: usize,
    /// The client, or whom a PROXY header names.
    pub(crate) from: SocketAddr,
    /// Whose connection it is.
    pub(crate) direct_from: SocketAddr,
    /// Where it was made to: an address of this host, also where the listener is bound to all of them; of a captured one,
    /// where it was going.
    pub(crate) listener: SocketAddr,
    /// Of a captured one.
    pub(crate) original: Option<SocketAddr>,
    pub(crate) origin: Origin,
    pub(crate) place: Place,
    /// Of whoever's configuration it is.
    pub(crate) tables: Arc<Tables>,
    pub(crate) snapshot: Arc<Snapshot>,
    /// The listener is going away.
    pub(crate) closing: watch::Receiver<Closing>,
}

/// By what the listener of a connection is found, also in the next configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Bound(SocketAddr),
    Captured {
        workload: WorkloadId,
        direction: Direction,
        to: SocketAddr,
    },
}

impl Place {
    /// `None`: the workload is gone.
    pub(crate) fn tables<'s>(&self, snapshot: &'s Snapshot) -> Option<&'s Arc<Tables>> {
        match self {
            Self::Bound(_) => Some(&snapshot.proxy),
            Self::Captured { workload, .. } => {
                let workload = snapshot.workloads.get(workload)?;
                Some(snapshot.tables(workload))
            }
        }
    }

    pub(crate) fn listener<'t>(&self, tables: &'t Tables) -> Option<&'t Arc<Served>> {
        match self {
            Self::Bound(addr) => tables.listener(*addr),
            Self::Captured { direction, to, .. } => tables.capturing(*direction, *to),
        }
    }
}

/// To a listener that is bound: accepted, accounted for, served.
pub(crate) async fn serve<S: SocketSupply, O: OriginalDstSource>(
    local: Rc<Local<S, O>>,
    addr: SocketAddr,
    client: TcpStream,
    from: SocketAddr,
    closing: watch::Receiver<Closing>,
) {
    let snapshot = local.context.snapshot.load_full();
    let Some(served) = snapshot.proxy.listener(addr).map(Arc::clone) else {
        return;
    };
    if prepare(&client).is_err() {
        return; // The client is gone already.
    }
    let mut account = open(&local, &served, from);
    let from = canonical(from);
    let (reason, detail) = match refuse_over_limit(&local, &snapshot, &served.account) {
        Err(refused) => refused,
        Ok(()) => {
            let connection = Connection {
                listener: client.local_addr().map_or(addr, canonical),
                client,
                read: Vec::new(),
                counted: 0,
                from,
                direct_from: from,
                original: None,
                origin: Origin::Node,
                place: Place::Bound(addr),
                tables: Arc::clone(&snapshot.proxy),
                snapshot,
                closing,
            };
            listen(&local, &served, connection, &mut account).await
        }
    };
    account.ended(reason, detail);
}

/// Inspected, and given to the filter chain that is for it.
pub(crate) async fn listen<S: SocketSupply, O: OriginalDstSource>(
    local: &Local<S, O>,
    served: &Served,
    mut connection: Connection,
    account: &mut Account,
) -> Refused {
    if let Some(dialled) = connection.original
        && matches!(connection.origin, Origin::Outbound { .. })
    {
        // Clusters that go where the connection was going go to the service's endpoint.
        connection.original = choose_endpoint(&connection.snapshot, dialled).ok();
    }
    let chain = match choose(served, &mut connection).await {
        Ok(chain) => chain,
        Err(refused) => return refused,
    };
    match &*chain {
        Chain::Tcp(tcp) => tcp_proxy::serve(local, tcp, connection, account).await,
        Chain::Http(http) => http::serve(local, &chain, http, connection, account).await,
    }
}

async fn choose(served: &Served, connection: &mut Connection) -> Result<Arc<Chain>, Refused> {
    let read = std::mem::take(&mut connection.read);
    let inspected = inspect(&mut connection.client, &served.listener, read).await;
    let findings = inspected.map_err(|error| {
        let reason = match error.kind() {
            std::io::ErrorKind::InvalidData => CloseReason::NoFilterChain,
            _ => CloseReason::ClientReset,
        };
        (reason, Some(error.to_string()))
    })?;
    let Some(Findings {
        read,
        header,
        proxied,
        is_tls,
        server_name,
        protocols,
    }) = findings
    else {
        let detail = "the first bytes did not come in time".to_owned();
        return Err((CloseReason::NoFilterChain, Some(detail)));
    };
    connection.read = read;
    connection.counted = connection.counted.saturating_sub(header);
    if let Some(proxied) = proxied {
        connection.from = canonical(proxied.source);
        connection.listener = canonical(proxied.destination);
    }
    let facts = Facts {
        destination: connection.listener,
        source: connection.from,
        direct_source: connection.direct_from,
        server_name: server_name.as_deref(),
        is_tls,
        application_protocols: &protocols,
    };
    let chain = served.chain(&facts).map(Arc::clone);
    chain.ok_or_else(|| {
        let listener = &served.listener.name;
        let detail = format!("no filter chain of listener `{listener}` is for it");
        (CloseReason::NoFilterChain, Some(detail))
    })
}

/// The rest of the way of a connection to a workload of this node, whose inbound listener serves it in this process.
pub(crate) struct OnePass {
    pub(crate) served: Arc<Served>,
    pub(crate) server: Arc<Enrolled>,
    pub(crate) tables: Arc<Tables>,
    pub(crate) origin: Origin,
    /// As the server sees it.
    pub(crate) client: SocketAddr,
    pub(crate) to: SocketAddr,
}

impl OnePass {
    /// `None`: the connection leaves as others do.
    pub(crate) fn to(
        snapshot: &Snapshot,
        origin: Origin,
        client: SocketAddr,
        to: SocketAddr,
    ) -> Option<Self> {
        let Origin::Outbound { workload, .. } = origin else {
            return None;
        };
        let server = snapshot.owner(to.ip())?;
        if server.id == workload || !is_captured(server, to) {
            return None;
        }
        let tables = snapshot.tables(server);
        let served = tables.capturing(Direction::Inbound, to)?;
        let client = match snapshot.workloads.get(&workload) {
            Some(workload) => own_address(workload, client, to),
            None => client,
        };
        Some(Self {
            served: Arc::clone(served),
            origin: Origin::Inbound {
                workload: server.id,
                client: client.ip(),
            },
            server: Arc::clone(server),
            tables: Arc::clone(tables),
            client,
            to,
        })
    }

    /// The filter chain, where nothing can be asked of first bytes: they are plain HTTP/1.1.
    pub(crate) fn chain(&self) -> Option<&Arc<Chain>> {
        let header = self.served.listener.proxy_protocol;
        if header.is_some_and(|header| !header.is_optional) {
            return None; // There is none, and elsewhere such a connection is closed.
        }
        let protocols = match self.served.listener.inspect.http {
            true => vec!["http/1.1".to_owned()],
            false => Vec::new(),
        };
        self.served.chain(&Facts {
            destination: self.to,
            source: self.client,
            direct_source: self.client,
            server_name: None,
            is_tls: false,
            application_protocols: &protocols,
        })
    }
}

/// The address that a workload's connection has there: a connect hook has made it loopback.
pub(crate) fn own_address(workload: &Enrolled, client: SocketAddr, to: SocketAddr) -> SocketAddr {
    if !client.ip().is_loopback() && client.is_ipv4() == to.is_ipv4() {
        return client;
    }
    let mut own = workload.addresses.iter();
    let own = own.find(|ip| ip.is_ipv4() == to.is_ipv4());
    own.map_or(client, |ip| SocketAddr::new(*ip, client.port()))
}

/// Gives a connection, as far as it has been read, to the listener at its other end.
pub(crate) fn pass_on<'a, S: SocketSupply, O: OriginalDstSource>(
    local: &'a Local<S, O>,
    pass: OnePass,
    connection: Connection,
    account: &'a mut Account,
) -> Pin<Box<dyn Future<Output = Refused> + 'a>> {
    Box::pin(async move {
        account.peer(pass.server.name.clone());
        account.count_at_peer(&pass.server);
        let connection = Connection {
            from: pass.client,
            direct_from: pass.client,
            listener: pass.to,
            original: Some(pass.to),
            origin: pass.origin,
            place: Place::Captured {
                workload: pass.server.id,
                direction: Direction::Inbound,
                to: pass.to,
            },
            tables: pass.tables,
            ..connection
        };
        listen(local, &pass.served, connection, account).await
    })
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
