//! L4 services: a name for addresses that nobody has, and the endpoints which serve them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use crate::sockets::Family;

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

impl Service {
    /// Where connections to its addresses of this family go.
    pub fn endpoints_of(&self, family: Family) -> impl Iterator<Item = SocketAddr> {
        let all = self.endpoints.iter().copied();
        all.filter(move |endpoint| Family::of(*endpoint) == family)
    }
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

/// The services in force, by address.
#[derive(Debug, Default)]
pub struct Services {
    by_address: HashMap<SocketAddr, Arc<Balanced>>,
    /// By name: a changed service goes on where it was.
    turns: HashMap<String, Turns>,
}

/// A service that hands out endpoints.
#[derive(Debug)]
pub struct Balanced {
    name: String,
    balance: Balance,
    v4: Vec<SocketAddr>,
    v6: Vec<SocketAddr>,
    turns: Turns,
}

/// How many connections asked so far, for each family. Shared by every worker, and with the table that came before.
#[derive(Clone, Debug, Default)]
struct Turns {
    v4: Arc<AtomicUsize>,
    v6: Arc<AtomicUsize>,
}

impl Services {
    /// In the place of `before`, whose turns go on.
    pub fn new(services: &[Service], before: &Self) -> Self {
        let mut table = Self::default();
        for service in services {
            let turns = before.turns.get(&service.name).cloned().unwrap_or_default();
            table.turns.insert(service.name.clone(), turns.clone());
            let balanced = Arc::new(Balanced {
                name: service.name.clone(),
                balance: service.balance,
                v4: service.endpoints_of(Family::V4).collect(),
                v6: service.endpoints_of(Family::V6).collect(),
                turns,
            });
            for address in &service.addresses {
                table.by_address.insert(*address, Arc::clone(&balanced));
            }
        }
        table
    }

    /// The service which has this address.
    pub fn at(&self, address: SocketAddr) -> Option<&Balanced> {
        self.by_address.get(&address).map(Arc::as_ref)
    }
}

impl Balanced {
    /// Why a connection to it goes nowhere, for people.
    pub fn nobody(&self) -> String {
        format!("service {} has no endpoint", self.name)
    }

    /// Where the next connection to an address of this family goes; `None`: there is no endpoint.
    pub fn choose(&self, family: Family) -> Option<SocketAddr> {
        let (endpoints, turns) = match family {
            Family::V4 => (&self.v4, &self.turns.v4),
            Family::V6 => (&self.v6, &self.turns.v6),
        };
        if endpoints.is_empty() {
            return None;
        }
        let at = match self.balance {
            Balance::Random => fastrand::usize(..endpoints.len()),
            Balance::RoundRobin => turns.fetch_add(1, Relaxed) % endpoints.len(),
        };
        Some(endpoints[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(endpoints: &[&str], balance: Balance) -> Service {
        let address = |text: &&str| text.parse().expect("an address");
        Service {
            name: "web".into(),
            addresses: ["10.96.0.1:80", "[fd00::1]:80"]
                .iter()
                .map(address)
                .collect(),
            endpoints: endpoints.iter().map(address).collect(),
            balance,
        }
    }

    fn next(table: &Services, address: &str) -> Option<String> {
        let address: SocketAddr = address.parse().expect("an address");
        let service = table.at(address).expect("a service");
        Some(service.choose(Family::of(address))?.to_string())
    }

    #[test]
    fn turns_go_round_for_each_family_and_on_in_a_new_table() {
        let both = ["10.0.0.1:1", "10.0.0.2:2", "[fd00::a]:3", "[fd00::b]:4"];
        let table = Services::new(&[service(&both, Balance::RoundRobin)], &Services::default());
        let v4 = || next(&table, "10.96.0.1:80").expect("an endpoint");
        let v6 = || next(&table, "[fd00::1]:80").expect("an endpoint");
        assert_eq!(
            [v4(), v6(), v4(), v4()],
            [both[0], both[2], both[1], both[0]]
        );
        let table = Services::new(&[service(&both, Balance::RoundRobin)], &table);
        assert_eq!(next(&table, "10.96.0.1:80").as_deref(), Some(both[1]));
        assert_eq!(next(&table, "[fd00::1]:80").as_deref(), Some(both[3]));
    }

    #[test]
    fn random_reaches_everybody_and_nobody_is_none() {
        let three = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"];
        let table = Services::new(&[service(&three, Balance::Random)], &Services::default());
        let reached: std::collections::BTreeSet<_> = (0..200)
            .filter_map(|_| next(&table, "10.96.0.1:80"))
            .collect();
        assert_eq!(reached.len(), 3);
        assert_eq!(next(&table, "[fd00::1]:80"), None);
        assert!(
            table
                .at("10.96.0.1:81".parse().expect("an address"))
                .is_none()
        );
    }
}
