//! What the proxy serves: listeners and clusters, as the agent understood them from Envoy's configuration. Everything in
//! here has been validated: the data path has nothing to refuse any more.

use std::collections::{BTreeMap, HashMap};
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
use crate::statistics::{Classes, ListenerCounts, ManagerCounts, PerWorker};

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
    /// By `stat_prefix`.
    managers: BTreeMap<String, PerWorker<ManagerCounts>>,
}

/// A listener that is served.
#[derive(Debug)]
pub struct Served {
    pub listener: Listener,
    /// Those of the listener, the default one last.
    chains: Vec<Arc<Chain>>,
    /// In whose name its connections are accounted for.
    pub account: Enrolled,
    pub counts: PerWorker<ListenerCounts>,
    pub requests: Arc<Requests>,
}

/// A listener's requests by cluster and status.
#[derive(Debug, Default)]
pub struct Requests {
    /// In the order of their names.
    clusters: Vec<(String, PerWorker<Classes>)>,
    /// Of clusters that no route names, and answered here.
    others: PerWorker<Classes>,
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
    pub counts: PerWorker<ManagerCounts>,
    pub listener_counts: PerWorker<ListenerCounts>,
    pub requests: Arc<Requests>,
}

impl Tables {
    /// What is as it was `before` is the same thing, and what is counted goes on being counted.
    pub fn new(bootstrap: Bootstrap, before: &Self) -> Self {
        let mut tables = Self::default();
        for mut cluster in bootstrap.clusters {
            let name = cluster.name.clone();
            let cluster = match before.clusters.get(&name) {
                Some(known) if **known == cluster => Arc::clone(known),
                known => {
                    if let Some(known) = known {
                        cluster.counts = known.counts.clone();
                        // Live connections and requests count on.
                        cluster.in_use = known.in_use.clone();
                    }
                    Arc::new(cluster)
                }
            };
            tables.clusters.insert(name, cluster);
        }
        let named: HashMap<&str, &Arc<Served>> = before
            .listeners
            .iter()
            .map(|served| (served.listener.name.as_str(), served))
            .collect();
        for listener in bootstrap.listeners {
            let known = before.known(&listener);
            let served = match known.filter(|known| known.listener == listener) {
                Some(same) => Arc::clone(same),
                None => {
                    let counted = named.get(listener.name.as_str());
                    let managers = &mut tables.managers;
                    let served = Served::new(
                        listener,
                        known.map(|known| &**known),
                        counted.map(|served| &***served),
                        &mut |prefix: &str| {
                            let counts = || before.managers.get(prefix).cloned();
                            let counts = || counts().unwrap_or_default();
                            let entry = managers.entry(prefix.to_owned());
                            entry.or_insert_with(counts).clone()
                        },
                    );
                    Arc::new(served)
                }
            };
            // Of chains that are as they were nobody has asked.
            for chain in &served.chains {
                if let Chain::Http(chain) = &**chain {
                    let prefix = chain.manager.stat_prefix.clone();
                    let counts = tables.managers.entry(prefix);
                    counts.or_insert_with(|| chain.counts.clone());
                }
            }
            tables.listeners.push(served);
        }
        tables.listeners.sort_by_key(|served| served.listener.addr);
        let all = &tables.listeners;
        let bound = all
            .iter()
            .filter(|served| served.listener.serves == Serves::Bound);
        tables.bound = bound
            .map(|served| (served.listener.addr, Arc::clone(served)))
            .collect();
        tables.captured = sorted(
            all.iter()
                .map(|served| (&served.listener, Arc::clone(served))),
        );
        tables
    }

    /// Which is for the same connections.
    fn known(&self, listener: &Listener) -> Option<&Arc<Served>> {
        match listener.serves {
            Serves::Bound => self.bound.get(&listener.addr),
            Serves::Captured(way) => self.captured.of(way).at(listener.addr),
            Serves::Rest(way) => self.captured.of(way).rest(),
        }
    }

    /// Numbers of connection managers, by `stat_prefix`.
    pub fn managers(&self) -> impl Iterator<Item = (&str, &PerWorker<ManagerCounts>)> {
        let managers = self.managers.iter();
        managers.map(|(prefix, counts)| (prefix.as_str(), counts))
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
    /// `before`: what was served at the same address; `counted`: what has the same name.
    fn new(
        listener: Listener,
        before: Option<&Self>,
        counted: Option<&Self>,
        managers: &mut dyn FnMut(&str) -> PerWorker<ManagerCounts>,
    ) -> Self {
        let same = |chain: &FilterChain| {
            let before = before.filter(|before| before.listener.name == listener.name)?;
            let at = before.filter_chains().position(|known| known == chain)?;
            Some(Arc::clone(&before.chains[at]))
        };
        let account = counted.map(|counted| counted.account.clone());
        let counts = counted.map_or_else(PerWorker::default, |counted| counted.counts.clone());
        let all = || listener.chains.iter().chain(&listener.default_chain);
        let named = all().flat_map(|chain| match &chain.filter {
            NetworkFilter::Http(_) => chain.filter.clusters(),
            NetworkFilter::Tcp(_) => Vec::new(),
        });
        let requests = Requests::new(named, counted.map(|counted| &*counted.requests));
        let requests = Arc::new(requests);
        let chains = all().map(|chain| {
            same(chain).unwrap_or_else(|| {
                let FilterChain {
                    name,
                    matches,
                    filter,
                } = chain.clone();
                Arc::new(match filter {
                    NetworkFilter::Tcp(tcp) => Chain::Tcp(tcp),
                    NetworkFilter::Http(mut manager) => Chain::Http(Box::new(HttpChain {
                        name,
                        matches,
                        routes: RouteTable::new(std::mem::take(&mut manager.routes)),
                        counts: managers(&manager.stat_prefix),
                        listener_counts: counts.clone(),
                        requests: Arc::clone(&requests),
                        manager: *manager,
                    })),
                })
            })
        });
        Self {
            chains: chains.collect(),
            account: account.unwrap_or_else(|| Enrolled::node(listener.name.clone())),
            counts: counts.clone(),
            requests,
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

impl Requests {
    fn new<'a>(clusters: impl Iterator<Item = &'a str>, before: Option<&Self>) -> Self {
        let mut names: Vec<&str> = clusters.collect();
        names.sort_unstable();
        names.dedup();
        let known = |name: &str| {
            let before = before?;
            let (_, classes) = before.clusters.get(before.place(name))?;
            Some(classes.clone())
        };
        let all = names
            .into_iter()
            .map(|name| (name.to_owned(), known(name).unwrap_or_default()));
        Self {
            clusters: all.collect(),
            others: before
                .map(|before| before.others.clone())
                .unwrap_or_default(),
        }
    }

    /// Where requests of this cluster count, for [`Requests::at`].
    pub fn place(&self, cluster: &str) -> usize {
        let found = self
            .clusters
            .binary_search_by(|(name, _)| name.as_str().cmp(cluster));
        found.unwrap_or(Self::NOWHERE)
    }

    /// The place of requests that no cluster was chosen for.
    pub const NOWHERE: usize = usize::MAX;

    pub fn at(&self, place: usize) -> &PerWorker<Classes> {
        let found = self.clusters.get(place);
        found.map_or(&self.others, |(_, classes)| classes)
    }

    /// By cluster; what no route's cluster answered comes without a name.
    pub fn all(&self) -> impl Iterator<Item = (&str, &PerWorker<Classes>)> {
        let named = self
            .clusters
            .iter()
            .map(|(name, classes)| (name.as_str(), classes));
        named.chain(std::iter::once(("", &self.others)))
    }
}

#[cfg(test)]
mod tests;
