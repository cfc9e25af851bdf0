//! L4 services: a name for addresses that nobody has, and the endpoints which serve them.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// An entry of `services`. Every enrolled workload sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Unique.
    pub name: String,
    /// What applications connect to. No other service has any of them.
    pub addresses: Vec<SocketAddr>,
    /// Where connections go, those of the address's family. Without any they are refused.
    pub endpoints: Vec<SocketAddr>,
    pub balance: Balance,
}

/// Which endpoint the next connection gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// One after the other, whichever workload asks.
    #[default]
    RoundRobin,
    /// Any, with equal chances.
    Random,
}
