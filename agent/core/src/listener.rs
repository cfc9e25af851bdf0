//! Listeners: those that the agent binds for itself, and those that serve captured connections; and which filter chain
//! serves one.

mod captured;
mod choice;

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use self::captured::{ByDestination, Captured};
pub use self::choice::{Facts, choose};
use crate::cluster::Weighted;
use crate::flow::Direction;
use crate::http::HttpConnectionManager;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    pub name: String,
    /// Of those of one kind of [`Listener::serves`], no two have the same.
    pub addr: SocketAddr,
    pub serves: Serves,
    /// No two have the same match.
    pub chains: Vec<FilterChain>,
    /// Serves those whom no other chain does.
    pub default_chain: Option<FilterChain>,
    /// Listener filters: what is found out from the first bytes.
    pub inspect: Inspect,
    /// Before that: connections begin with a PROXY header.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// For the first bytes to come; zero: without end.
    pub inspect_timeout: Duration,
    /// When they do not come in time: serve the connection all the same, rather than close it.
    pub continue_on_timeout: bool,
}

impl Listener {
    /// What no two listeners have in common: which connections they are for.
    pub fn place(&self) -> (Serves, Option<SocketAddr>) {
        let addr = match self.serves {
            Serves::Rest(_) => None,
            Serves::Bound | Serves::Captured(_) => Some(self.addr),
        };
        (self.serves, addr)
    }
}

/// Which connections come to a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Serves {
    /// Those that are made to its address, which the agent binds.
    #[default]
    Bound,
    /// Of all workloads' captured connections those that were going to its address; or to its port, where the address is
    /// the unspecified one.
    Captured(#[serde(with = "crate::flow::direction")] Direction),
    /// Captured ones for which no other listener is. Its address says nothing.
    Rest(#[serde(with = "crate::flow::direction")] Direction),
}

/// The PROXY protocol's header, versions 1 and 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyProtocol {
    /// A connection may also begin without one.
    pub is_optional: bool,
}

/// What the first bytes are looked at for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspect {
    pub tls: bool,
    pub http: bool,
}

impl Inspect {
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FilterChain {
    pub name: String,
    pub matches: ChainMatch,
    pub filter: NetworkFilter,
}

/// Which connections a chain is for; what is empty says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainMatch {
    pub destination_port: Option<u16>,
    pub destinations: Vec<IpNet>,
    /// Lower case; `*.example.com` is any name below it.
    pub server_names: Vec<String>,
    /// `tls` or `raw_buffer`.
    pub transport_protocol: String,
    pub application_protocols: Vec<String>,
    pub direct_sources: Vec<IpNet>,
    pub source_type: SourceType,
    pub sources: Vec<IpNet>,
    pub source_ports: Vec<u16>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceType {
    #[default]
    Any,
    /// From an address of this host.
    Local,
    External,
}

/// The terminal filter of a chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkFilter {
    Tcp(TcpProxy),
    Http(Box<HttpConnectionManager>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TcpProxy {
    pub clusters: Weighted<String>,
    /// Zero: never.
    pub idle_timeout: Duration,
    /// At least 1.
    pub max_connect_attempts: u32,
}

impl NetworkFilter {
    /// Every cluster that it may choose.
    pub fn clusters(&self) -> Vec<&str> {
        match self {
            Self::Tcp(tcp) => tcp.clusters.iter().map(String::as_str).collect(),
            Self::Http(http) => http.routes.clusters(),
        }
    }
}
