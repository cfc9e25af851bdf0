//! Connections that need no proxy: what the maps can say is decided when the application connects, and its own socket
//! goes to the destination. No life of the agent is needed for it.

use shunt_ebpf_common::decision::Address;
use shunt_ebpf_common::maps::{Destination, Workload};

use crate::maps::{ADDRESSES, WORKLOADS};
use crate::rules::acceleration;

/// Where a direct connection goes.
pub struct Route {
    pub upstream: Destination,
    /// The workload there; 0: none of this node's.
    pub peer: u32,
}

/// `None`: this connection is the agent's.
#[inline(always)]
pub fn route(workload: &Workload, destination: Destination) -> Option<Route> {
    let port = destination.port;
    if !is_allowed(workload, port) {
        return None;
    }
    let peer = match server(&destination.address) {
        Server::Elsewhere => 0,
        // It is steered by rules that bring the connection to the agent anyhow.
        Server::NotHooked => return None,
        Server::Hooked(server) if is_allowed(server, port) => server.id,
        Server::Hooked(_) => return None,
    };
    Some(Route {
        upstream: destination,
        peer,
    })
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

#[inline(always)]
fn is_allowed(workload: &Workload, port: u16) -> bool {
    acceleration(workload, port) & Workload::DIRECT != 0
}
