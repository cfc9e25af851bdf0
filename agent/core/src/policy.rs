//! L4 policy: who may connect to whom. The first rule that matches decides; without one a connection is allowed.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::flow::Direction;
use crate::workload::PortRange;

/// An entry of `policy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    pub action: Action,
    /// As the chosen workloads see it: inbound rules are about who connects to them, outbound ones about whom they
    /// connect to.
    #[serde(with = "crate::flow::direction")]
    pub direction: Direction,
    /// Whose connections; `None`: every enrolled workload's.
    pub workload: Option<Selector>,
    /// The other end; `None`: anybody.
    pub peer: Option<Peer>,
    /// The server's ports; empty: any.
    pub ports: Vec<PortRange>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Allow,
    Deny,
}

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    /// A workload that is enrolled on this node: the one whose namespace or address it is.
    Workload(Selector),
    Cidr(IpNet),
}

/// Workloads for which everything that is given is true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector {
    pub name: Option<String>,
    pub namespace: Option<String>,
    pub labels: BTreeMap<String, String>,
}
