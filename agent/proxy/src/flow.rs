//! One connection, from accept to close.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use shunt_core::address::{ClientAddr, OriginalDst, canonical};
use shunt_core::bootstrap::Served;
use shunt_core::flow::{CloseReason, Direction};
use shunt_core::snapshot::{Enrolled, Snapshot};
use shunt_core::sockets::{
    ListenerSpec, OriginalDstError, OriginalDstSource, SocketSupply, Steering,
};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::account::Account;
use crate::admission::{Refused, admit_arriving, admit_leaving, recognise};
use crate::connect::ConnectError;
use crate::gateway::{self, Connection, OnePass, Place};
use crate::listener::Closing;
use crate::origin::{Dial, Dialled, Origin};
use crate::relay::{Early, Rules, Shortcut, relay};
use crate::rendezvous::Tuple;
use crate::worker::Local;

/// The whole path. Whoever returns early drops the sockets, which resets the client.
pub(crate) async fn serve<S: SocketSupply, O: OriginalDstSource>(
    local: Rc<Local<S, O>>,
    listener: Rc<ListenerSpec>,
    client: TcpStream,
    from: SocketAddr,
    closing: watch::Receiver<Closing>,
) {
    let snapshot = local.context.snapshot.load_full();
    let Some(workload) = snapshot.workloads.get(&listener.workload).map(Arc::clone) else {
        return;
    };
    let client_addr = ClientAddr(canonical(from));
    if prepare(&client).is_err() {
        return; // The client is gone already.
    }
    let original = original_dst(&local, &listener, &client);
    if let Ok(original) = &original
        && came_from_us(&local, &listener, client_addr, original).await
    {
        return; // Its outbound task goes on with it, and tells of it.
    }
    let mut account = Account::open(
        &workload,
        listener.direction,
        client_addr,
        Arc::clone(&local.context.counters),
        Arc::clone(&local.context.flows),
    );
    let recognised = recognise(&local, &snapshot, &workload, original, &mut account);
    let (reason, detail) = match recognised {
        Err(refused) => refused,
        Ok(original) => {
            let flow = Flow {
                local: &local,
                snapshot,
                workload: &workload,
                listener: &listener,
                client: client_addr.0,
                original,
                closing,
            };
            match listener.direction {
                Direction::Inbound => flow.arrive(client, &mut account).await,
                Direction::Outbound => flow.leave(client, &mut account).await,
            }
        }
    };
    account.ended(reason, detail);
}

/// Tells of a client for whom there was no descriptor.
pub(crate) fn refused<S: SocketSupply, O: OriginalDstSource>(
    local: &Local<S, O>,
    listener: &ListenerSpec,
    from: SocketAddr,
) {
    let counters = &local.context.counters;
    let snapshot = local.context.snapshot.load();
    if let Some(workload) = snapshot.workloads.get(&listener.workload) {
        let mut account = Account::open(
            workload,
            listener.direction,
            ClientAddr(canonical(from)),
            Arc::clone(counters),
            Arc::clone(&local.context.flows),
        );
        account.ended(CloseReason::Limit, Some("no descriptor left".into()));
    }
}

/// Dying in the middle must look like it to the client too.
pub(crate) fn prepare(client: &TcpStream) -> std::io::Result<()> {
    SockRef::from(client).set_linger(Some(std::time::Duration::ZERO))?;
    client.set_nodelay(true)
}

fn original_dst<S: SocketSupply, O: OriginalDstSource>(
    local: &Local<S, O>,
    listener: &ListenerSpec,
    client: &TcpStream,
) -> Result<OriginalDst, OriginalDstError> {
    use std::os::fd::AsFd;
    let own = client.local_addr().map_err(OriginalDstError::Lookup)?;
    local
        .context
        .originals
        .original_dst(listener, client.as_fd(), own)
}

/// Is this the far end of one of our own upstream sockets?
async fn came_from_us<S: SocketSupply, O: OriginalDstSource>(
    local: &Local<S, O>,
    listener: &ListenerSpec,
    from: ClientAddr,
    original: &OriginalDst,
) -> bool {
    if listener.direction != Direction::Inbound || listener.steering != Steering::Redirect {
        return false;
    }
    let tuple = Tuple {
        source: from.0,
        destination: original.addr,
    };
    local
        .context
        .rendezvous
        .arrive(tuple, local.count(listener.workload))
        .await
}

/// Another endpoint of a service is not tried: the application's own retry is balanced anew.
pub(crate) fn connect_failed(error: &ConnectError, to: SocketAddr, account: &Account) -> Refused {
    let reason = error.reason();
    if let ConnectError::Refused(_, detail) = error {
        return (reason, Some(detail.clone()));
    }
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    let endpoint = match account.dialled() {
        Some(dialled) if dialled != to => format!("endpoint {to}: "),
        _ => String::new(),
    };
    let cause = cause.unwrap_or_default();
    (reason, Some(format!("{endpoint}{error}{cause}")))
}

/// A flow whose destination is known.
struct Flow<'a, S: SocketSupply, O: OriginalDstSource> {
    local: &'a Local<S, O>,
    snapshot: Arc<Snapshot>,
    workload: &'a Enrolled,
    listener: &'a ListenerSpec,
    client: SocketAddr,
    original: SocketAddr,
    closing: watch::Receiver<Closing>,
}

impl<S: SocketSupply, O: OriginalDstSource> Flow<'_, S, O> {
    async fn arrive(self, client: TcpStream, account: &mut Account) -> Refused {
        if let Err(refused) = admit_arriving(&self.snapshot, self.workload, self.original, account)
        {
            return refused;
        }
        let origin = Origin::Inbound {
            workload: self.workload.id,
            client: self.client.ip(),
        };
        let tables = self.snapshot.tables(self.workload);
        match tables.capturing(Direction::Inbound, self.original) {
            Some(served) => self.listened(served, client, origin, account).await,
            None => self.pass(client, origin, self.original, account).await,
        }
    }

    async fn leave(self, client: TcpStream, account: &mut Account) -> Refused {
        let origin = Origin::outbound(self.workload.id, self.client);
        let tables = self.snapshot.tables(self.workload);
        if let Some(served) = tables.capturing(Direction::Outbound, self.original) {
            return self.listened(served, client, origin, account).await;
        }
        let admitted = admit_leaving(
            self.local,
            &self.snapshot,
            self.workload,
            self.original,
            account,
        );
        let destination = match admitted {
            Ok(destination) => destination,
            Err(refused) => return refused,
        };
        match OnePass::to(&self.snapshot, origin, self.client, destination) {
            Some(pass) => {
                let connection = self.connection(client, origin);
                Box::pin(gateway::pass_on(self.local, pass, connection, account)).await
            }
            None => self.pass(client, origin, destination, account).await,
        }
    }

    /// A listener of the configuration is for it.
    async fn listened(
        &self,
        served: &Served,
        client: TcpStream,
        origin: Origin,
        account: &mut Account,
    ) -> Refused {
        let connection = self.connection(client, origin);
        // Boxed: what is only passed on must not have the room for it in its memory.
        Box::pin(gateway::listen(self.local, served, connection, account)).await
    }

    fn connection(&self, client: TcpStream, origin: Origin) -> Connection {
        let from = match self.listener.direction {
            Direction::Inbound => self.client,
            Direction::Outbound => gateway::own_address(self.workload, self.client, self.original),
        };
        Connection {
            client,
            read: Vec::new(),
            counted: 0,
            from,
            direct_from: from,
            listener: self.original,
            original: Some(self.original),
            origin,
            place: Place::Captured {
                workload: self.workload.id,
                direction: self.listener.direction,
                to: self.original,
            },
            tables: Arc::clone(self.snapshot.tables(self.workload)),
            snapshot: Arc::clone(&self.snapshot),
            closing: self.closing.clone(),
        }
    }

    /// Bytes both ways, and nothing else.
    async fn pass(
        &self,
        client: TcpStream,
        origin: Origin,
        destination: SocketAddr,
        account: &mut Account,
    ) -> Refused {
        let dial = Dial {
            local: self.local,
            snapshot: &self.snapshot,
            origin,
            by_tcp: false,
        };
        let longest = self.snapshot.timeouts.connect;
        let Dialled {
            stream: upstream,
            held: _held,
        } = match dial.connect(destination, longest).await {
            Ok(dialled) => dialled,
            Err(error) => return connect_failed(&error, destination, account),
        };
        account.upstream(destination, upstream.local_addr().ok());
        let rules = Rules {
            timeouts: self.snapshot.timeouts,
            splice_after: self.snapshot.splice_after,
        };
        // Only flows that the connect hook steered can be accelerated.
        let hooked = self.listener.steering == Steering::ConnectHook;
        let kernel = self.local.context.shortcuts.get().filter(|_| hooked);
        let may_leave = self.may_leave(destination);
        let shortcut = kernel.and_then(|kernel| {
            let counting = &self.local.pools.counting;
            Shortcut::begin(kernel.as_ref(), &client, &upstream, may_leave, counting)
        });
        let pools = &self.local.pools;
        let end = relay(
            client,
            upstream,
            Early::default(),
            pools,
            &rules,
            shortcut,
            account,
        )
        .await;
        (end.reason, end.error.map(|error| error.to_string()))
    }

    /// May the two applications be left alone, as far as their workloads are concerned?
    fn may_leave(&self, destination: SocketAddr) -> bool {
        let server = self.snapshot.owner(destination.ip());
        self.workload.handoff && server.is_none_or(|server| server.handoff)
    }
}
