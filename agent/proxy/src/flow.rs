//! One connection, from accept to close.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use shunt_core::address::{ClientAddr, OriginalDst, canonical, to_kernel};
use shunt_core::flow::{CloseReason, Direction};
use shunt_core::rules::PolicyRules;
use shunt_core::snapshot::{Enrolled, Snapshot};
use shunt_core::sockets::{
    Family, ListenerSpec, OriginalDstError, OriginalDstSource, SocketRole, SocketSupply,
    SocketWant, Steering,
};
use shunt_core::workload::{Mode, WorkloadId};
use shunt_ebpf_common::decision::{Question, Verdict, decide};
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::account::Account;
use crate::admission::{Refused, admit};
use crate::connect::{self, ConnectError};
use crate::relay::{Rules, Shortcut, relay};
use crate::rendezvous::Tuple;
use crate::worker::{Counted, Local};

/// The whole path. Whoever returns early drops the sockets, which resets the client.
pub(crate) async fn serve<S: SocketSupply, O: OriginalDstSource>(
    local: Rc<Local<S, O>>,
    listener: Rc<ListenerSpec>,
    client: TcpStream,
    from: SocketAddr,
) {
    let snapshot = local.context.snapshot.load_full();
    let Some(workload) = snapshot.workloads.get(&listener.workload) else {
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
        workload,
        listener.direction,
        client_addr,
        Arc::clone(&local.context.counters),
        Arc::clone(&local.context.flows),
    );
    let (reason, detail) = match admit(
        &local,
        &snapshot,
        workload,
        &listener,
        original,
        &mut account,
    ) {
        Err(refused) => refused,
        Ok(destination) => {
            let flow = Flow {
                local: &local,
                snapshot: &snapshot,
                workload,
                client: client_addr,
                destination,
            };
            match flow.connect(listener.direction).await {
                Err(error) => connect_failed(&error, destination, &account),
                // Delivered into another workload, the flow keeps that one's return path alive too.
                Ok((upstream, _destination_holds)) => {
                    account.upstream(destination, upstream.local_addr().ok());
                    let rules = Rules {
                        timeouts: snapshot.timeouts,
                        splice_after: snapshot.splice_after,
                    };
                    // Only flows that the connect hook steered can be accelerated.
                    let hooked = listener.steering == Steering::ConnectHook;
                    let kernel = local.context.shortcuts.get().filter(|_| hooked);
                    let may_leave = flow.may_leave();
                    let shortcut = kernel.and_then(|kernel| {
                        let counting = &local.pools.counting;
                        Shortcut::begin(kernel.as_ref(), &client, &upstream, may_leave, counting)
                    });
                    let end = relay(
                        client,
                        upstream,
                        &local.pools,
                        &rules,
                        shortcut,
                        &mut account,
                    )
                    .await;
                    (end.reason, end.error.map(|error| error.to_string()))
                }
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
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    let endpoint = match account.dialled() {
        Some(dialled) if dialled != to => format!("endpoint {to}: "),
        _ => String::new(),
    };
    let cause = cause.unwrap_or_default();
    (reason, Some(format!("{endpoint}{error}{cause}")))
}

/// A flow that was admitted and is to be connected.
struct Flow<'a, S: SocketSupply, O: OriginalDstSource> {
    local: &'a Local<S, O>,
    snapshot: &'a Snapshot,
    workload: &'a Enrolled,
    client: ClientAddr,
    destination: SocketAddr,
}

impl<S: SocketSupply, O: OriginalDstSource> Flow<'_, S, O> {
    async fn connect(
        &self,
        direction: Direction,
    ) -> Result<(TcpStream, Option<Counted>), ConnectError> {
        let stream = match direction {
            Direction::Inbound => {
                let source = self.client.0.ip();
                self.deliver(self.workload.id, self.workload.transparent, source)
                    .await
            }
            Direction::Outbound => match self.expected_crossing() {
                Some(_) => return self.cross().await,
                None => {
                    self.upstream()
                        .await?
                        .connected(self.snapshot.timeouts.connect)
                        .await
                }
            },
        };
        stream.map(|stream| (stream, None))
    }

    /// May the two applications be left alone, as far as their workloads are concerned?
    fn may_leave(&self) -> bool {
        let server = self.snapshot.owner(self.destination.ip());
        self.workload.handoff && server.is_none_or(|server| server.handoff)
    }

    /// Is the destination, as far as we know, a workload whose rules will bring the connection back to us?
    fn expected_crossing(&self) -> Option<&Enrolled> {
        let owner = self.snapshot.owner(self.destination.ip())?;
        // A service's endpoint: what a workload sends itself stays in its namespace, and is not redirected.
        if owner.id == self.workload.id {
            return None;
        }
        let question = Question {
            direction: Direction::Inbound,
            // Any ordinary address: inbound rules look at ports only.
            address: to_kernel(self.destination.ip()),
            port: self.destination.port(),
            bound_to_device: false,
        };
        let captured = decide(
            &question,
            &PolicyRules {
                policy: &owner.inbound,
                own: &[],
            },
        ) == Verdict::Capture;
        (owner.mode == Mode::Iptables && captured && !owner.withdrawn.load(Relaxed))
            .then_some(owner)
    }

    /// From the workload's own namespace, with its own address.
    async fn upstream(&self) -> Result<connect::Begun, ConnectError> {
        let want = self.want(self.workload.id, SocketRole::Upstream);
        let supply = &self.local.context.supply;
        let source = self.client.0.ip();
        if source.is_loopback() || Family::of(self.client.0) != want.family {
            return connect::begin(supply, want, None, self.destination).await;
        }
        // The application chose a source address, or REDIRECT kept it.
        match connect::begin(supply, want, Some(source), self.destination).await {
            Err(ConnectError::Bind(_, error)) => {
                tracing::debug!(%source, %error, "cannot keep the application's source address");
                connect::begin(supply, want, None, self.destination).await
            }
            other => other,
        }
    }

    /// Connects across the node; if that leads back to ourselves, delivers directly instead.
    async fn cross(&self) -> Result<(TcpStream, Option<Counted>), ConnectError> {
        let intent = self.local.context.rendezvous.intend(self.destination);
        let begun = self.upstream().await?;
        let source = begun.local;
        let mut crossing = intent.cross(canonical(source));
        let held = match begun.connected(self.snapshot.timeouts.connect).await {
            Ok(stream) => match crossing.arrived().await {
                Some(held) => held,
                None => return Ok((stream, None)),
            },
            Err(error) => crossing.has_arrived().ok_or(error)?,
        };
        let there = held.workload();
        let transparent = self
            .snapshot
            .workloads
            .get(&there)
            .is_some_and(|workload| workload.transparent);
        let stream = self.deliver(there, transparent, source.ip()).await?;
        Ok((stream, Some(held)))
    }

    /// Inside the destination's namespace, with the client's address where that is possible.
    async fn deliver(
        &self,
        to: WorkloadId,
        transparent: bool,
        client: IpAddr,
    ) -> Result<TcpStream, ConnectError> {
        let want = self.want(to, SocketRole::Delivery);
        let supply = &self.local.context.supply;
        let longest = self.snapshot.timeouts.connect;
        let same_family = client.is_ipv4() == self.destination.is_ipv4();
        if transparent && same_family && client != self.destination.ip() {
            match connect::begin(supply, want, Some(client), self.destination).await {
                Ok(begun) => return begun.connected(longest).await,
                Err(error @ (ConnectError::Bind(..) | ConnectError::NoSocket(_))) => {
                    tracing::warn!(%client, %error, "delivering with the agent's own address");
                }
                Err(error) => return Err(error),
            }
        }
        connect::begin(supply, want, None, self.destination)
            .await?
            .connected(longest)
            .await
    }

    fn want(&self, workload: WorkloadId, role: SocketRole) -> SocketWant {
        SocketWant {
            workload,
            role,
            family: Family::of(self.destination),
        }
    }
}
