//! Listeners that the agent binds for itself, and which filter chain serves a connection.

mod choice;

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use self::choice::{Facts, choose};
use crate::cluster::Weighted;
use crate::http::HttpConnectionManager;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    pub name: String,
    pub addr: SocketAddr,
    /// No two have the same match.
    pub chains: Vec<FilterChain>,
    /// Serves those whom no other chain does.
    pub default_chain: Option<FilterChain>,
    /// Listener filters: what is found out from the first bytes.
    pub inspect: Inspect,
    /// For the first bytes to come; zero: without end.
    pub inspect_timeout: Duration,
    /// When they do not come in time: serve the connection all the same, rather than close it.
    pub continue_on_timeout: bool,
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
