//! May a connection go on, and where to? Asked once, before anything is connected.
//!
//! ```text
//!   original destination -- a loop? -- over a limit? --> service: its endpoint, or as it is --> policy --> destination
//! ```
//! A connection between two workloads of this node is judged whole where it comes in, at the client's side: nobody asks
//! again at the other.

use std::net::{IpAddr, SocketAddr};
use std::slice;
use std::sync::atomic::Ordering::Relaxed;

use shunt_core::address::OriginalDst;
use shunt_core::flow::{CloseReason, Direction};
use shunt_core::policy::Decision;
use shunt_core::snapshot::{Enrolled, Snapshot};
use shunt_core::sockets::{Family, OriginalDstError, OriginalDstSource, SocketSupply};
use shunt_core::workload::WorkloadName;

use crate::account::Account;
use crate::worker::Local;

/// Why a connection ends before it has begun, and the same for people.
pub(crate) type Refused = (CloseReason, Option<String>);

/// Where it was going, or why the connection is refused whatever becomes of it.
pub(crate) fn recognise<S: SocketSupply, O: OriginalDstSource>(
    local: &Local<S, O>,
    snapshot: &Snapshot,
    workload: &Enrolled,
    original: Result<OriginalDst, OriginalDstError>,
    account: &mut Account,
) -> Result<SocketAddr, Refused> {
    let original = original.map_err(|error| {
        let misses = &local.context.counters.original_dst_misses;
        misses.fetch_add(1, Relaxed);
        (CloseReason::OriginalDstMissing, Some(error.to_string()))
    })?;
    account.original_dst(original);
    refuse_loop(local, workload, original.addr)?;
    refuse_over_limit(local, snapshot, workload)?;
    Ok(original.addr)
}

/// By the rules of the workload where it arrives.
pub(crate) fn admit_arriving(
    snapshot: &Snapshot,
    workload: &Enrolled,
    original: SocketAddr,
    account: &mut Account,
) -> Result<(), Refused> {
    let client = account.client().0.ip();
    let peer = snapshot.owner(client);
    if let Some(peer) = peer {
        account.peer(peer.name.clone());
    }
    let decision = snapshot.policy.decide(
        Direction::Inbound,
        workload.identity(),
        peer.map(|peer| peer.identity()),
        client,
        original.port(),
    );
    match decision.is_denied() {
        true => Err(denied(Direction::Inbound, decision, &workload.name)),
        false => Ok(()),
    }
}

/// The destination, or why the connection is refused.
pub(crate) fn admit_leaving<S: SocketSupply, O: OriginalDstSource>(
    local: &Local<S, O>,
    snapshot: &Snapshot,
    workload: &Enrolled,
    original: SocketAddr,
    account: &mut Account,
) -> Result<SocketAddr, Refused> {
    let destination = choose_endpoint(snapshot, original)?;
    if destination != original {
        refuse_loop(local, workload, destination)?;
    }
    let peer = snapshot.owner(destination.ip());
    if let Some(peer) = peer {
        account.peer(peer.name.clone());
    }
    let client = account.client().0;
    // What the connect hook steered comes from loopback; which of its addresses it will use, routes decide later.
    let is_known = !client.ip().is_loopback() && Family::of(client) == Family::of(destination);
    refuse_denied(
        snapshot,
        workload,
        is_known.then_some(client.ip()),
        destination,
        peer.map(AsRef::as_ref),
    )?;
    if let Some(peer) = peer {
        account.count_at_peer(peer);
    }
    Ok(destination)
}

/// The endpoint of the service that was dialled, or what was dialled.
pub(crate) fn choose_endpoint(
    snapshot: &Snapshot,
    dialled: SocketAddr,
) -> Result<SocketAddr, Refused> {
    let Some(service) = snapshot.services.at(dialled) else {
        return Ok(dialled);
    };
    let nobody = || (CloseReason::ConnectFailed, Some(service.nobody()));
    service.choose(Family::of(dialled)).ok_or_else(nobody)
}

/// By the client's rules, and by those of the workload at the destination. `source`: the client's address, if it is
/// known.
pub(crate) fn refuse_denied(
    snapshot: &Snapshot,
    workload: &Enrolled,
    source: Option<IpAddr>,
    destination: SocketAddr,
    owner: Option<&Enrolled>,
) -> Result<(), Refused> {
    let addresses = match &source {
        Some(source) => slice::from_ref(source),
        None => &workload.addresses,
    };
    let judgement = snapshot.policy.judge(
        workload.identity(),
        addresses,
        destination,
        owner.map(Enrolled::identity),
    );
    match judgement.denied() {
        None => Ok(()),
        Some((way, decision)) => {
            let about = match (way, owner) {
                (Direction::Inbound, Some(owner)) => &owner.name,
                _ => &workload.name,
            };
            Err(denied(way, decision, about))
        }
    }
}

fn denied(way: Direction, decision: Decision, about: &WorkloadName) -> Refused {
    (CloseReason::PolicyDenied, Some(decision.denial(way, about)))
}

pub(crate) fn refuse_over_limit<S: SocketSupply, O: OriginalDstSource>(
    local: &Local<S, O>,
    snapshot: &Snapshot,
    workload: &Enrolled,
) -> Result<(), Refused> {
    let counters = &local.context.counters;
    let (limits, flows) = (&snapshot.limits, &workload.counters);
    let of_workload = flows.outbound.carried() + flows.inbound.carried();
    let limit = if counters.connections_active.load(Relaxed) > limits.connections {
        "limits.connections"
    } else if of_workload > limits.connections_per_workload {
        "limits.connections_per_workload"
    } else {
        return Ok(());
    };
    counters.connections_refused_by_limit.fetch_add(1, Relaxed);
    if let Some(unsaid) = local.limit_warnings.now() {
        tracing::warn!(workload = %workload.name, limit, unsaid, "connections are refused");
    }
    Err((CloseReason::Limit, Some(format!("{limit} reached"))))
}

/// Going on would connect the agent to itself.
pub(crate) fn refuse_loop<S: SocketSupply, O: OriginalDstSource>(
    local: &Local<S, O>,
    workload: &Enrolled,
    destination: SocketAddr,
) -> Result<(), Refused> {
    let ip = destination.ip();
    let ours = ip.is_loopback() || ip.is_unspecified() || workload.addresses.contains(&ip);
    if !ours || !local.listens_on(workload.id, destination.port()) {
        return Ok(());
    }
    let loops = &local.context.counters.loops_refused;
    loops.fetch_add(1, Relaxed);
    let detail = "the destination is the agent's own listener".to_owned();
    Err((CloseReason::Loop, Some(detail)))
}
