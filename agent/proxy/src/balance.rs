//! Which endpoint of a cluster: round robin with weights, or by chance. A worker has turns of its own.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;

use shunt_core::cluster::{Balance, Cluster, Endpoint};

/// Whose turn it is, by cluster.
#[derive(Debug, Default)]
pub(crate) struct RoundRobin(RefCell<HashMap<String, Turns>>);

#[derive(Debug)]
struct Turns {
    endpoints: Vec<Endpoint>,
    /// Smooth weighted round robin: each turn everybody gains their weight, and the richest pays what all have gained.
    credit: Vec<i64>,
}

impl RoundRobin {
    /// `None`: the cluster has nobody. `dialled`: where the connection was going, for clusters that go there.
    pub(crate) fn choose(
        &self,
        cluster: &Cluster,
        dialled: Option<SocketAddr>,
    ) -> Option<SocketAddr> {
        if let Some(original) = &cluster.to_original {
            return original.endpoint(dialled, None);
        }
        match (cluster.endpoints.as_slice(), cluster.balance) {
            ([], _) => None,
            ([only], _) => Some(only.addr),
            (endpoints, Balance::Random) => {
                let total: u64 = endpoints
                    .iter()
                    .map(|endpoint| u64::from(endpoint.weight))
                    .sum();
                let mut left = fastrand::u64(..total);
                let chosen = endpoints.iter().find(|endpoint| {
                    let weight = u64::from(endpoint.weight);
                    let found = left < weight;
                    left = left.saturating_sub(weight);
                    found
                });
                chosen.map(|endpoint| endpoint.addr)
            }
            (endpoints, Balance::RoundRobin) => {
                let mut all = self.0.borrow_mut();
                match all.get_mut(&cluster.name) {
                    Some(turns) if turns.endpoints == endpoints => turns.next(),
                    _ => {
                        let turns = Turns::new(endpoints);
                        all.entry(cluster.name.clone())
                            .insert_entry(turns)
                            .get_mut()
                            .next()
                    }
                }
            }
        }
    }
}

impl Turns {
    /// Workers begin in different places, or the first endpoint would get the first request of each.
    fn new(endpoints: &[Endpoint]) -> Self {
        let mut turns = Self {
            endpoints: endpoints.to_vec(),
            credit: vec![0; endpoints.len()],
        };
        for _ in 0..fastrand::usize(..endpoints.len()) {
            turns.next();
        }
        turns
    }

    fn next(&mut self) -> Option<SocketAddr> {
        let mut total = 0;
        let mut best = 0;
        for (at, endpoint) in self.endpoints.iter().enumerate() {
            self.credit[at] += i64::from(endpoint.weight);
            total += i64::from(endpoint.weight);
            if self.credit[at] > self.credit[best] {
                best = at;
            }
        }
        self.credit[best] -= total;
        self.endpoints.get(best).map(|endpoint| endpoint.addr)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn cluster(balance: Balance, weights: &[u32]) -> Cluster {
        let endpoint = |(port, weight): (u16, &u32)| Endpoint {
            addr: SocketAddr::from(([10, 0, 0, 1], port)),
            weight: *weight,
        };
        Cluster {
            name: "c".into(),
            endpoints: (1..).zip(weights).map(endpoint).collect(),
            balance,
            to_original: None,
            connect_timeout: Duration::from_secs(1),
            idle_timeout: None,
            max_requests_per_connection: 0,
            counts: Default::default(),
        }
    }

    fn counts(cluster: &Cluster, turns: &RoundRobin, rounds: usize) -> Vec<usize> {
        let mut counts = vec![0; cluster.endpoints.len()];
        for _ in 0..rounds {
            let chosen = turns.choose(cluster, None).expect("an endpoint");
            counts[usize::from(chosen.port()) - 1] += 1;
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
        assert_eq!(turns.choose(&cluster(Balance::RoundRobin, &[]), None), None);
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
