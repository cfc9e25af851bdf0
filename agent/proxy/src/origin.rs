//! From where, and in whose name, an upstream is connected to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use shunt_core::address::{canonical, to_kernel};
use shunt_core::flow::Direction;
use shunt_core::rules::PolicyRules;
use shunt_core::snapshot::{Enrolled, Snapshot};
use shunt_core::sockets::{Family, OriginalDstSource, SocketRole, SocketSupply, SocketWant};
use shunt_core::workload::{Mode, WorkloadId};
use shunt_ebpf_common::decision::{Question, Verdict, decide};
use tokio::net::TcpStream;

use crate::admission;
use crate::connect::{self, ConnectError, Terms};
use crate::worker::{Counted, Local};

/// Two connections of one origin to one endpoint are the same to everybody but their users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// The node, for what the agent serves in its own name.
    Node,
    /// The workload, from its namespace, with this address of its own where that can be had.
    Outbound {
        workload: WorkloadId,
        source: Option<IpAddr>,
    },
    /// The client, into the workload's namespace, with the client's address where that can be had.
    Inbound {
        workload: WorkloadId,
        client: IpAddr,
    },
}

impl Origin {
    /// `client`: the application's socket. What a connect hook steered comes from loopback.
    pub(crate) fn outbound(workload: WorkloadId, client: SocketAddr) -> Self {
        let ip = client.ip();
        let source = (!ip.is_loopback()).then_some(ip);
        Self::Outbound { workload, source }
    }

    /// Whose namespace it is.
    pub(crate) fn workload(self) -> WorkloadId {
        match self {
            Self::Node => WorkloadId::NODE,
            Self::Outbound { workload, .. } | Self::Inbound { workload, .. } => workload,
        }
    }
}

/// Connects for one origin.
pub(crate) struct Dial<'a, S: SocketSupply, O: OriginalDstSource> {
    pub(crate) local: &'a Local<S, O>,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) origin: Origin,
    /// Who moves its bytes knows TCP only.
    pub(crate) by_tcp: bool,
}

/// A connection, and what keeps its namespaces as they are.
pub(crate) struct Dialled {
    pub(crate) stream: TcpStream,
    /// Delivered into a workload, it keeps that one's return path alive.
    pub(crate) held: Option<Counted>,
}

impl From<TcpStream> for Dialled {
    fn from(stream: TcpStream) -> Self {
        Self { stream, held: None }
    }
}

impl<S: SocketSupply, O: OriginalDstSource> Dial<'_, S, O> {
    /// Is this origin to have a connection there? Whoever takes a connection that is there already asks too.
    ///
    /// # Errors
    /// [`ConnectError::Refused`].
    pub(crate) fn judge(&self, endpoint: SocketAddr) -> Result<(), ConnectError> {
        let Some(workload) = self.snapshot.workloads.get(&self.origin.workload()) else {
            return Ok(());
        };
        let refused = |(reason, detail): admission::Refused| {
            ConnectError::Refused(reason, detail.unwrap_or_default())
        };
        admission::refuse_loop(self.local, workload, endpoint).map_err(refused)?;
        let Origin::Outbound { source, .. } = self.origin else {
            return Ok(());
        };
        let source = source.filter(|source| source.is_ipv4() == endpoint.is_ipv4());
        let owner = self.snapshot.owner(endpoint.ip()).map(AsRef::as_ref);
        admission::refuse_denied(self.snapshot, workload, source, endpoint, owner).map_err(refused)
    }

    /// Of the workload whose origin it is.
    pub(crate) fn is_withdrawn(&self) -> Option<Arc<AtomicBool>> {
        let workload = self.snapshot.workloads.get(&self.origin.workload())?;
        Some(Arc::clone(&workload.withdrawn))
    }

    pub(crate) async fn connect(
        &self,
        to: SocketAddr,
        longest: Duration,
    ) -> Result<Dialled, ConnectError> {
        match self.origin {
            Origin::Node => {
                let terms = self.terms(WorkloadId::NODE, SocketRole::Upstream, to);
                let begun = terms.begin(None, to).await?;
                begun.connected(longest).await.map(Into::into)
            }
            Origin::Inbound { workload, client } => {
                let held = Some(self.local.count(workload));
                let stream = self.deliver(workload, client, to, longest).await?;
                Ok(Dialled { stream, held })
            }
            Origin::Outbound { workload, source } => match self.expects_crossing(workload, to) {
                true => self.cross(workload, source, to, longest).await,
                false => {
                    let begun = self.upstream(workload, source, to).await?;
                    begun.connected(longest).await.map(Into::into)
                }
            },
        }
    }

    fn terms(&self, workload: WorkloadId, role: SocketRole, to: SocketAddr) -> Terms<'_, S> {
        Terms {
            supply: &self.local.context.supply,
            want: SocketWant {
                workload,
                role,
                family: Family::of(to),
            },
            by_tcp: self.by_tcp,
        }
    }

    /// Is the destination, as far as we know, a workload whose rules will bring the connection back to us?
    fn expects_crossing(&self, from: WorkloadId, to: SocketAddr) -> bool {
        let owner = self.snapshot.owner(to.ip());
        // A service's endpoint: what a workload sends itself stays in its namespace, and is not redirected.
        owner.is_some_and(|owner| {
            owner.id != from && owner.mode == Mode::Iptables && is_captured(owner, to)
        })
    }

    /// From the workload's own namespace, with its own address.
    async fn upstream(
        &self,
        workload: WorkloadId,
        source: Option<IpAddr>,
        to: SocketAddr,
    ) -> Result<connect::Begun, ConnectError> {
        let terms = self.terms(workload, SocketRole::Upstream, to);
        let Some(source) = source.filter(|source| source.is_ipv4() == to.is_ipv4()) else {
            return terms.begin(None, to).await;
        };
        // The application chose a source address, or REDIRECT kept it.
        match terms.begin(Some(source), to).await {
            Err(ConnectError::Bind(_, error)) => {
                tracing::debug!(%source, %error, "cannot keep the application's source address");
                terms.begin(None, to).await
            }
            other => other,
        }
    }

    /// Connects across the node; if that leads back to ourselves, delivers directly instead.
    async fn cross(
        &self,
        workload: WorkloadId,
        source: Option<IpAddr>,
        to: SocketAddr,
        longest: Duration,
    ) -> Result<Dialled, ConnectError> {
        let intent = self.local.context.rendezvous.intend(to);
        let begun = self.upstream(workload, source, to).await?;
        let source = begun.local;
        let mut crossing = intent.cross(canonical(source));
        let held = match begun.connected(longest).await {
            Ok(stream) => match crossing.arrived().await {
                Some(held) => held,
                None => return Ok(stream.into()),
            },
            Err(error) => crossing.has_arrived().ok_or(error)?,
        };
        let stream = self
            .deliver(held.workload(), source.ip(), to, longest)
            .await?;
        Ok(Dialled {
            stream,
            held: Some(held),
        })
    }

    /// Inside the destination's namespace, with the client's address where that is possible.
    async fn deliver(
        &self,
        into: WorkloadId,
        client: IpAddr,
        to: SocketAddr,
        longest: Duration,
    ) -> Result<TcpStream, ConnectError> {
        let terms = self.terms(into, SocketRole::Delivery, to);
        let workload = self.snapshot.workloads.get(&into);
        let transparent = workload.is_some_and(|workload| workload.transparent);
        // Nobody answers a stranger from loopback.
        let is_possible = client.is_ipv4() == to.is_ipv4() && !to.ip().is_loopback();
        if transparent && is_possible && client != to.ip() {
            match terms.begin(Some(client), to).await {
                Ok(begun) => return begun.connected(longest).await,
                Err(error @ (ConnectError::Bind(..) | ConnectError::NoSocket(_))) => {
                    tracing::warn!(%client, %error, "delivering with the agent's own address");
                }
                Err(error) => return Err(error),
            }
        }
        terms.begin(None, to).await?.connected(longest).await
    }
}

/// Do connections of others to this place in a workload come to the agent?
pub(crate) fn is_captured(owner: &Enrolled, to: SocketAddr) -> bool {
    let question = Question {
        direction: Direction::Inbound,
        // Any ordinary address: inbound rules look at ports only.
        address: to_kernel(to.ip()),
        port: to.port(),
        bound_to_device: false,
    };
    let rules = PolicyRules {
        policy: &owner.inbound,
        own: &[],
    };
    decide(&question, &rules) == Verdict::Capture && !owner.withdrawn.load(Relaxed)
}
