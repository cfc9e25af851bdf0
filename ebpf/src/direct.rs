//! Connections that need no proxy: what the maps can say is decided when the application connects, and its own socket
//! goes to the destination. No life of the agent is needed for it.

use shunt_ebpf_common::decision::{Address, Direction};
use shunt_ebpf_common::maps::{Destination, Workload};
use shunt_ebpf_common::policy::Peer;

use crate::maps::{ADDRESSES, WORKLOADS};
use crate::policy::{self, Decision};
use crate::rules::{acceleration, has_inbound_listener, has_outbound_listener};
use crate::services::{self, Chosen};

/// Where a direct connection goes.
pub struct Route {
    pub upstream: Destination,
    /// The workload there; 0: none of this node's.
    pub peer: u32,
}

/// A connection that is not to be.
pub struct Refusal {
    /// As far as it is known.
    pub upstream: Destination,
    pub peer: u32,
    /// The rule that denies it, and whether it is about connections of the client or to the server; `None`: its service
    /// has no endpoint.
    pub rule: Option<(u32, Direction)>,
}

pub enum Way {
    /// The connection is the agent's, and so is every decision about it.
    Agent,
    Direct(Route),
    Refused(Refusal),
}

#[inline(always)]
pub fn way(workload: &Workload, destination: Destination) -> Way {
    if !may_leave(workload, &destination) {
        return Way::Agent;
    }
    let upstream = match services::choose(&destination) {
        Chosen::NoService => destination,
        Chosen::Endpoint(endpoint) => endpoint,
        Chosen::Nobody => {
            return Way::Refused(Refusal {
                upstream: destination,
                peer: 0,
                rule: None,
            });
        }
    };
    let server = match server(&upstream.address) {
        Server::Elsewhere => None,
        // It is steered by rules that bring the connection to the agent anyhow.
        Server::NotHooked => return Way::Agent,
        Server::Hooked(server) if may_arrive(server, upstream.port) => Some(server),
        Server::Hooked(_) => return Way::Agent,
    };
    let route = Route {
        upstream,
        peer: server.map_or(0, |server| server.id),
    };
    match decide(workload, server, &route) {
        Decision::Unknown => Way::Agent,
        Decision::Allowed => Way::Direct(route),
        Decision::Denied(rule, direction) => Way::Refused(Refusal {
            upstream,
            peer: route.peer,
            rule: Some((rule, direction)),
        }),
    }
}

/// By the client's outbound rules, then by the inbound ones of a server of this node.
#[inline(always)]
fn decide(client: &Workload, server: Option<&Workload>, route: &Route) -> Decision {
    let port = route.upstream.port;
    let address = route.upstream.address;
    if client.policy[Direction::Outbound as usize] != 0 {
        let peer = Peer {
            workload: route.peer,
            address,
        };
        match policy::decide(client, Direction::Outbound, &peer, true, port) {
            Decision::Allowed => {}
            other => return other,
        }
    }
    let Some(server) = server else {
        return Decision::Allowed;
    };
    if server.policy[Direction::Inbound as usize] == 0 {
        return Decision::Allowed;
    }
    let (source, several) = if address.is_v4() {
        (Address::v4(client.source_v4), Workload::SEVERAL_V4)
    } else {
        (Address(client.source_v6), Workload::SEVERAL_V6)
    };
    let peer = Peer {
        workload: client.id,
        address: source,
    };
    let is_sure = client.flags & several == 0;
    policy::decide(server, Direction::Inbound, &peer, is_sure, port)
}

enum Server {
    /// Not enrolled on this node.
    Elsewhere,
    /// Enrolled, in another mode than ours.
    NotHooked,
    Hooked(&'static Workload),
}

#[inline(always)]
fn server(address: &Address) -> Server {
    // SAFETY: the agent replaces an entry as a whole, and the kernel frees the old one when no program uses it.
    unsafe {
        match ADDRESSES.get(address) {
            None => Server::Elsewhere,
            Some(owner) => WORKLOADS
                .get(owner)
                .map_or(Server::NotHooked, Server::Hooked),
        }
    }
}

/// May a connection of this workload go there directly, as far as its own end is concerned?
#[inline(always)]
fn may_leave(workload: &Workload, to: &Destination) -> bool {
    acceleration(workload, to.port) & Workload::DIRECT != 0 && !has_outbound_listener(workload, to)
}

/// The same of the other end.
#[inline(always)]
fn may_arrive(workload: &Workload, port: u16) -> bool {
    acceleration(workload, port) & Workload::DIRECT != 0 && !has_inbound_listener(workload, port)
}
