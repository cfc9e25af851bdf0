//! Which endpoint of a cluster: round robin with weights, or by chance. A worker has turns of its own.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use shunt_core::cluster::subsets::Metadata;
use shunt_core::cluster::{Balance, Cluster, Endpoint};
use shunt_core::snapshot::Snapshot;

/// A cluster, and which group of its endpoints.
type Among = (*const Cluster, usize);

/// Whose turn it is, in each group of a cluster's endpoints. Clusters are known by where they are in memory, which is theirs while they are kept here.
#[derive(Debug, Default)]
pub(crate) struct RoundRobin(RefCell<HashMap<Among, (Arc<Cluster>, Turns)>>);

/// One of a cluster's endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chosen<'c> {
    pub(crate) addr: SocketAddr,
    /// Empty: it has none.
    pub(crate) hostname: &'c str,
}

impl<'c> From<&'c Endpoint> for Chosen<'c> {
    fn from(endpoint: &'c Endpoint) -> Self {
        Self {
            addr: endpoint.addr,
            hostname: &endpoint.hostname,
        }
    }
}

/// Of a route that asks for no subset.
pub(crate) const ANY: &Metadata = &Metadata::new();

#[derive(Debug)]
enum Turns {
    /// All have the same weight: the next one.
    Equal(usize),
    /// Each is due again after the inverse of its weight: the earliest, and of several the first.
    Weighted(BinaryHeap<Reverse<(u128, usize)>>),
    /// By chance: the sums of the weights so far.
    Chance(Vec<u64>),
}

/// Of a [`Turns::Weighted`] clock, between two turns of an endpoint of weight 1.
const LAP: u128 = 1 << 64;

impl RoundRobin {
    /// `None`: the cluster has nobody like that. `dialled`: where the connection was going, for clusters that go there.
    pub(crate) fn choose<'c>(
        &self,
        cluster: &'c Arc<Cluster>,
        wanted: &Metadata,
        dialled: Option<SocketAddr>,
    ) -> Option<Chosen<'c>> {
        if let Some(original) = &cluster.to_original {
            let addr = original.endpoint(dialled, None)?;
            return Some(Chosen { addr, hostname: "" });
        }
        let group = cluster.group(wanted);
        match group.endpoints {
            [] => None,
            [only] => Some(only.into()),
            endpoints => {
                let mut all = self.0.borrow_mut();
                let key = (Arc::as_ptr(cluster), group.number);
                let (_, turns) = all.entry(key).or_insert_with(|| {
                    (Arc::clone(cluster), Turns::new(endpoints, cluster.balance))
                });
                endpoints.get(turns.next(endpoints)).map(Chosen::from)
            }
        }
    }

    /// Forgets the clusters that are not in force any more.
    pub(crate) fn follow(&self, snapshot: &Snapshot) {
        self.0.borrow_mut().retain(|_, (cluster, _)| {
            let now = snapshot.proxy.cluster(&cluster.name);
            now.is_some_and(|now| Arc::ptr_eq(now, cluster))
        });
    }
}

impl Turns {
    /// Workers begin in different places, or the first endpoint would get the first request of each.
    fn new(endpoints: &[Endpoint], balance: Balance) -> Self {
        let begin = fastrand::usize(..endpoints.len());
        let first = endpoints[0].weight;
        if balance == Balance::Random {
            let mut sum = 0;
            let sums = endpoints.iter().map(|endpoint| {
                sum += u64::from(endpoint.weight);
                sum
            });
            return Self::Chance(sums.collect());
        }
        if endpoints.iter().all(|endpoint| endpoint.weight == first) {
            return Self::Equal(begin);
        }
        let due = endpoints.iter().enumerate();
        let due = due.map(|(at, endpoint)| Reverse((lap(endpoint), at)));
        let mut turns = Self::Weighted(due.collect());
        (0..begin).for_each(|_| {
            turns.next(endpoints);
        });
        turns
    }

    fn next(&mut self, endpoints: &[Endpoint]) -> usize {
        match self {
            Self::Equal(next) => std::mem::replace(next, (*next + 1) % endpoints.len()),
            Self::Weighted(due) => {
                let Some(mut earliest) = due.peek_mut() else {
                    return 0;
                };
                let (_, at) = earliest.0;
                earliest.0.0 += lap(&endpoints[at]);
                at
            }
            Self::Chance(sums) => {
                let total = sums.last().copied().unwrap_or(1);
                let point = fastrand::u64(..total);
                sums.partition_point(|sum| *sum <= point)
            }
        }
    }
}

fn lap(endpoint: &Endpoint) -> u128 {
    LAP / u128::from(endpoint.weight.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(balance: Balance, weights: &[u32]) -> Arc<Cluster> {
        let endpoint = |(port, weight): (u16, &u32)| Endpoint {
            addr: SocketAddr::from(([10, 0, 0, 1], port)),
            weight: *weight,
            hostname: String::new(),
        };
        Arc::new(Cluster {
            endpoints: (1..).zip(weights).map(endpoint).collect(),
            balance,
            ..Cluster::named("c")
        })
    }

    fn counts(cluster: &Arc<Cluster>, turns: &RoundRobin, rounds: usize) -> Vec<usize> {
        let mut counts = vec![0; cluster.endpoints.len()];
        for _ in 0..rounds {
            let chosen = turns.choose(cluster, ANY, None).expect("an endpoint");
            counts[usize::from(chosen.addr.port()) - 1] += 1;
        }
        counts
    }

    #[test]
    fn everybody_has_as_many_turns_as_their_weight() {
        let turns = RoundRobin::default();
        let weighted = cluster(Balance::RoundRobin, &[5, 1, 1]);
        assert_eq!(counts(&weighted, &turns, 700), [500, 100, 100]);
        // The same name with others behind it begins anew.
        let equal = cluster(Balance::RoundRobin, &[1, 1]);
        assert_eq!(counts(&equal, &turns, 10), [5, 5]);
        assert_eq!(
            turns.choose(&cluster(Balance::RoundRobin, &[]), ANY, None),
            None
        );
        assert_eq!(turns.0.borrow().len(), 2);
        turns.follow(&Snapshot::default());
        assert!(turns.0.borrow().is_empty());
    }

    #[test]
    fn chance_follows_the_weights_too() {
        fastrand::seed(1);
        let found = counts(
            &cluster(Balance::Random, &[3, 1]),
            &RoundRobin::default(),
            4000,
        );
        assert!((2800..3200).contains(&found[0]), "{found:?}");
    }
}
