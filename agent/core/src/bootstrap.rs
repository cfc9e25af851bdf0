//! What the proxy serves: listeners and clusters, as the agent understood them from Envoy's configuration. Everything in
//! here has been validated: the data path has nothing to refuse any more.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::http::HttpConnectionManager;
use crate::listener::{ChainMatch, Facts, Listener, NetworkFilter, TcpProxy, choose};
use crate::route::matching::RouteTable;
use crate::snapshot::Enrolled;

/// One configuration of the proxy, replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Names are unique, and so are addresses.
    pub listeners: Vec<Listener>,
    /// Names are unique; every cluster that a listener's filters name is here.
    pub clusters: Vec<Cluster>,
}

impl Bootstrap {
    pub fn is_empty(&self) -> bool {
        self.listeners.is_empty() && self.clusters.is_empty()
    }
}

/// A [`Bootstrap`] to be looked up in.
#[derive(Debug, Default)]
pub struct Tables {
    listeners: HashMap<SocketAddr, Arc<Served>>,
    clusters: HashMap<String, Arc<Cluster>>,
}

/// A listener that is served.
#[derive(Debug)]
pub struct Served {
    pub listener: Listener,
    /// Those of the listener, the default one last.
    chains: Vec<Arc<Chain>>,
    /// In whose name its connections are accounted for.
    pub account: Enrolled,
}

#[derive(Debug)]
pub enum Chain {
    Tcp(TcpProxy),
    Http(Box<HttpChain>),
}

#[derive(Debug)]
pub struct HttpChain {
    /// Without its routes.
    pub manager: HttpConnectionManager,
    pub routes: RouteTable,
}

impl Tables {
    pub fn new(bootstrap: Bootstrap) -> Self {
        let listeners = bootstrap.listeners.into_iter();
        let clusters = bootstrap.clusters.into_iter();
        Self {
            listeners: listeners
                .map(|listener| (listener.addr, Arc::new(Served::new(listener))))
                .collect(),
            clusters: clusters
                .map(|cluster| (cluster.name.clone(), Arc::new(cluster)))
                .collect(),
        }
    }

    /// The listener that is bound to this address.
    pub fn listener(&self, addr: SocketAddr) -> Option<&Arc<Served>> {
        self.listeners.get(&addr)
    }

    /// In the order of their addresses.
    pub fn listeners(&self) -> Vec<&Arc<Served>> {
        let mut all: Vec<_> = self.listeners.values().collect();
        all.sort_by_key(|served| served.listener.addr);
        all
    }

    /// In the order of their names.
    pub fn clusters(&self) -> Vec<&Arc<Cluster>> {
        let mut all: Vec<_> = self.clusters.values().collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)
    }
}

impl Served {
    fn new(listener: Listener) -> Self {
        let chains = listener.chains.iter().chain(&listener.default_chain);
        Self {
            chains: chains
                .map(|chain| Arc::new(Chain::new(chain.filter.clone())))
                .collect(),
            account: Enrolled::node(listener.name.clone()),
            listener,
        }
    }

    /// The chain that serves a connection; `None`: nobody does.
    pub fn chain(&self, facts: &Facts<'_>) -> Option<&Arc<Chain>> {
        let matches: Vec<&ChainMatch> = self
            .listener
            .chains
            .iter()
            .map(|chain| &chain.matches)
            .collect();
        let default = self.listener.default_chain.as_ref().map(|_| matches.len());
        self.chains.get(choose(&matches, facts).or(default)?)
    }
}

impl Chain {
    fn new(filter: NetworkFilter) -> Self {
        match filter {
            NetworkFilter::Tcp(tcp) => Self::Tcp(tcp),
            NetworkFilter::Http(mut manager) => {
                let routes = RouteTable::new(std::mem::take(&mut manager.routes));
                Self::Http(Box::new(HttpChain {
                    manager: *manager,
                    routes,
                }))
            }
        }
    }
}
