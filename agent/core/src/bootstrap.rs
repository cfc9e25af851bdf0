//! What the proxy serves: listeners and clusters, as the agent understood them from Envoy's configuration. Everything in
//! here has been validated: the data path has nothing to refuse any more.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::flow::Direction;
use crate::http::HttpConnectionManager;
use crate::listener::{
    Captured, ChainMatch, Facts, FilterChain, Listener, NetworkFilter, Serves, TcpProxy, choose,
};
use crate::route::matching::RouteTable;
use crate::snapshot::Enrolled;

/// One configuration of the proxy, replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Names are unique, and so are addresses of each kind.
    pub listeners: Vec<Listener>,
    /// Names are unique; every cluster that a listener's filters name is here.
    pub clusters: Vec<Cluster>,
}

impl Bootstrap {
    pub fn is_empty(&self) -> bool {
        self.listeners.is_empty() && self.clusters.is_empty()
    }

    /// Those that the agent binds.
    pub fn bound(&self) -> impl Iterator<Item = &Listener> {
        let all = self.listeners.iter();
        all.filter(|listener| listener.serves == Serves::Bound)
    }

    /// The names of those that serve captured connections.
    pub fn captured(&self) -> Captured<String> {
        let all = self.listeners.iter();
        sorted(all.map(|listener| (listener, listener.name.clone())))
    }
}

fn sorted<'a, T>(all: impl Iterator<Item = (&'a Listener, T)>) -> Captured<T> {
    let mut captured = Captured::default();
    for (listener, value) in all {
        match listener.serves {
            Serves::Bound => {}
            Serves::Captured(way) => captured.of_mut(way).insert(listener.addr, value),
            Serves::Rest(way) => captured.of_mut(way).set_rest(value),
        }
    }
    captured
}

/// A [`Bootstrap`] to be looked up in.
#[derive(Debug, Default)]
pub struct Tables {
    listeners: Vec<Arc<Served>>,
    bound: HashMap<SocketAddr, Arc<Served>>,
    captured: Captured<Arc<Served>>,
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
    name: String,
    matches: ChainMatch,
    /// Without its routes.
    pub manager: HttpConnectionManager,
    pub routes: RouteTable,
}

impl Tables {
    /// What is as it was `before` is the same thing.
    pub fn new(bootstrap: Bootstrap, before: &Self) -> Self {
        let listener = |listener: Listener| {
            let known = before.known(&listener);
            let same = known.filter(|known| known.listener == listener);
            let served = same.map(Arc::clone);
            served.unwrap_or_else(|| Arc::new(Served::new(listener, known.map(|known| &**known))))
        };
        let cluster = |cluster: Cluster| {
            let known = before.clusters.get(&cluster.name);
            let same = known.filter(|known| ***known == cluster);
            (
                cluster.name.clone(),
                same.map_or_else(|| Arc::new(cluster), Arc::clone),
            )
        };
        let mut listeners: Vec<_> = bootstrap.listeners.into_iter().map(listener).collect();
        listeners.sort_by_key(|served| served.listener.addr);
        let bound = listeners
            .iter()
            .filter(|served| served.listener.serves == Serves::Bound);
        let captured = listeners
            .iter()
            .map(|served| (&served.listener, Arc::clone(served)));
        Self {
            bound: bound
                .map(|served| (served.listener.addr, Arc::clone(served)))
                .collect(),
            captured: sorted(captured),
            clusters: bootstrap.clusters.into_iter().map(cluster).collect(),
            listeners,
        }
    }

    /// Which is for the same connections.
    fn known(&self, listener: &Listener) -> Option<&Arc<Served>> {
        match listener.serves {
            Serves::Bound => self.bound.get(&listener.addr),
            Serves::Captured(way) => self.captured.of(way).at(listener.addr),
            Serves::Rest(way) => self.captured.of(way).rest(),
        }
    }

    /// The listener that is bound to this address.
    pub fn listener(&self, addr: SocketAddr) -> Option<&Arc<Served>> {
        self.bound.get(&addr)
    }

    /// The listener that serves a captured connection which was going there.
    pub fn capturing(&self, direction: Direction, to: SocketAddr) -> Option<&Arc<Served>> {
        self.captured.of(direction).find(to)
    }

    /// In the order of their addresses.
    pub fn listeners(&self) -> &[Arc<Served>] {
        &self.listeners
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
    /// `before`: what was served at the same address.
    fn new(listener: Listener, before: Option<&Self>) -> Self {
        let known = before.filter(|before| before.listener.name == listener.name);
        let account = known.map(|known| known.account.clone());
        let same = |chain: &FilterChain| {
            let before = before?;
            let at = before.filter_chains().position(|known| known == chain)?;
            Some(Arc::clone(&before.chains[at]))
        };
        let chains = listener.chains.iter().chain(&listener.default_chain);
        let chains =
            chains.map(|chain| same(chain).unwrap_or_else(|| Arc::new(Chain::new(chain.clone()))));
        Self {
            chains: chains.collect(),
            account: account.unwrap_or_else(|| Enrolled::node(listener.name.clone())),
            listener,
        }
    }

    fn filter_chains(&self) -> impl Iterator<Item = &FilterChain> {
        self.listener
            .chains
            .iter()
            .chain(&self.listener.default_chain)
    }

    /// What serves the requests of a connection that was given to `chain` by a listener in this one's place: the same, or
    /// one that differs in its routes alone. `None`: it is gone, or has changed otherwise.
    pub fn successor(&self, chain: &Arc<Chain>) -> Option<&Arc<Chain>> {
        let is_it = |known: &&Arc<Chain>| match (&***known, &**chain) {
            _ if Arc::ptr_eq(known, chain) => true,
            (Chain::Http(known), Chain::Http(chain)) => {
                known.name == chain.name
                    && known.matches == chain.matches
                    && known.manager == chain.manager
            }
            _ => false,
        };
        self.chains.iter().find(is_it)
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
    fn new(chain: FilterChain) -> Self {
        let FilterChain {
            name,
            matches,
            filter,
        } = chain;
        match filter {
            NetworkFilter::Tcp(tcp) => Self::Tcp(tcp),
            NetworkFilter::Http(mut manager) => {
                let routes = RouteTable::new(std::mem::take(&mut manager.routes));
                Self::Http(Box::new(HttpChain {
                    name,
                    matches,
                    manager: *manager,
                    routes,
                }))
            }
        }
    }
}
