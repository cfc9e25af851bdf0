//! Upstream clusters: endpoints, and how one of them is chosen.

pub mod subsets;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::subsets::Subsets;
use crate::statistics::{ClusterCounts, PerWorker};

/// Of type STATIC: the endpoints are known; or ORIGINAL_DST.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    pub name: String,
    /// Those that may be chosen, in the order of the configuration; none: no healthy upstream.
    pub endpoints: Vec<Endpoint>,
    /// All that the configuration names, in its order: those too that are not chosen.
    #[serde(default)]
    pub members: Vec<Member>,
    pub balance: Balance,
    /// `None`: all endpoints are for all routes.
    pub subsets: Option<Subsets>,
    /// Connections go where they were going; there are no endpoints then.
    pub to_original: Option<ToOriginal>,
    pub connect_timeout: Duration,
    /// An idle upstream HTTP connection is closed after this; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Requests that one upstream HTTP connection carries; 0: any number.
    pub max_requests_per_connection: u32,
    /// An upstream HTTP connection that is older takes no more requests; `None`: as old as it likes.
    pub max_connection_duration: Option<Duration>,
    /// Responses' trailers are read, and requests' are written.
    pub trailers: bool,
    pub limits: ClusterLimits,
    #[serde(skip)]
    pub in_use: InUse,
    #[serde(skip)]
    pub counts: PerWorker<ClusterCounts>,
}

/// `circuit_breakers`: what all workers together may have of a cluster at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterLimits {
    /// Every worker may have one to each endpoint beyond it: nobody's requests wait for ever.
    pub connections: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
    /// Requests under way.
    pub requests: u32,
}

/// Envoy's.
impl Default for ClusterLimits {
    fn default() -> Self {
        Self {
            connections: 1024,
            pending: 1024,
            requests: 1024,
        }
    }
}

/// What there is of a cluster now, whatever becomes of its configuration. It is no part of what the cluster is: all are
/// equal, and copies count together.
#[derive(Clone, Debug, Default)]
pub struct InUse(Arc<[AtomicU32; 3]>);

impl PartialEq for InUse {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    Connection,
    Pending,
    Request,
}

/// Counts as in use until it is dropped.
#[derive(Debug)]
pub struct Held {
    of: InUse,
    what: Resource,
}

impl Cluster {
    /// With no endpoints, and no limit of time but one second to connect; for tests to begin with.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            endpoints: Vec::new(),
            members: Vec::new(),
            balance: Balance::RoundRobin,
            subsets: None,
            to_original: None,
            connect_timeout: Duration::from_secs(1),
            idle_timeout: None,
            max_requests_per_connection: 0,
            max_connection_duration: None,
            trailers: false,
            limits: ClusterLimits::default(),
            in_use: InUse::default(),
            counts: PerWorker::default(),
        }
    }

    /// One more, unless there are as many as there may be.
    pub fn hold(&self, what: Resource) -> Option<Held> {
        let most = match what {
            Resource::Connection => self.limits.connections,
            Resource::Pending => self.limits.pending,
            Resource::Request => self.limits.requests,
        };
        let one_more = |held| (held < most).then_some(held + 1);
        let held = self.in_use.0[what as usize].fetch_update(Relaxed, Relaxed, one_more);
        held.ok().map(|_| self.held(what))
    }

    /// One more in any case.
    pub fn hold_anyway(&self, what: Resource) -> Held {
        self.in_use.0[what as usize].fetch_add(1, Relaxed);
        self.held(what)
    }

    fn held(&self, what: Resource) -> Held {
        Held {
            of: self.in_use.clone(),
            what,
        }
    }

    /// Is a connection of one the same as of the other, whomever it is to?
    pub fn connects_as(&self, other: &Self) -> bool {
        // Every field is looked at, or left out on purpose.
        let Self {
            name,
            endpoints: _,
            members: _,
            balance,
            subsets: _,
            to_original,
            connect_timeout,
            idle_timeout,
            max_requests_per_connection,
            max_connection_duration,
            trailers,
            limits,
            in_use: _,
            counts: _,
        } = self;
        *name == other.name
            && *balance == other.balance
            && *to_original == other.to_original
            && *connect_timeout == other.connect_timeout
            && *idle_timeout == other.idle_timeout
            && *max_requests_per_connection == other.max_requests_per_connection
            && *max_connection_duration == other.max_connection_duration
            && *trailers == other.trailers
            && *limits == other.limits
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.0[self.what as usize].fetch_sub(1, Relaxed);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub addr: SocketAddr,
    /// For routes that rewrite the host to it; empty: none.
    pub hostname: String,
    /// At least 1.
    pub weight: u32,
}

/// An endpoint, and what is said of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub endpoint: Endpoint,
    pub health: Health,
}

/// `health_status`. All but the first are chosen only when too many of a cluster are not healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Or nothing is said.
    Healthy,
    /// Or said to be late in answering.
    Unhealthy,
    Draining,
}

/// Of clusters of type ORIGINAL_DST.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToOriginal {
    /// A request's header that names another destination, in lower case.
    pub header: Option<String>,
    /// In place of the destination's own port.
    pub port: Option<u16>,
}

impl ToOriginal {
    /// `dialled`: where the connection was going; `named`: what the request's header says.
    pub fn endpoint(
        &self,
        dialled: Option<SocketAddr>,
        named: Option<SocketAddr>,
    ) -> Option<SocketAddr> {
        let mut addr = named.or(dialled)?;
        if let Some(port) = self.port {
            addr.set_port(port);
        }
        Some(addr)
    }
}

/// `lb_policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    RoundRobin,
    Random,
}

/// Where a connection or a request goes: one cluster, or several by weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weighted<T> {
    /// Not empty; the weights' sum is at least 1 and fits a `u32`.
    choices: Vec<(u32, T)>,
}

impl<T> Weighted<T> {
    /// `None` when there is nothing to choose from.
    pub fn new(choices: Vec<(u32, T)>) -> Option<Self> {
        let total: u64 = choices.iter().map(|(weight, _)| u64::from(*weight)).sum();
        (total > 0 && u32::try_from(total).is_ok()).then_some(Self { choices })
    }

    pub fn only(choice: T) -> Self {
        Self {
            choices: vec![(1, choice)],
        }
    }

    /// The one that `random` falls on, each as often as its weight says.
    pub fn choose(&self, random: u64) -> &T {
        let total: u64 = self
            .choices
            .iter()
            .map(|(weight, _)| u64::from(*weight))
            .sum();
        let mut left = random % total.max(1);
        for (weight, choice) in &self.choices {
            match left.checked_sub(u64::from(*weight)) {
                Some(rest) => left = rest,
                None => return choice,
            }
        }
        &self.choices[0].1
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.choices.iter().map(|(_, choice)| choice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_chosen_as_often_as_its_weight_says() {
        let weighted = Weighted::new(vec![(1, 'a'), (0, 'b'), (3, 'c')]).expect("weights");
        let chosen: String = (0..8).map(|random| weighted.choose(random)).collect();
        assert_eq!(chosen, "acccaccc");
        assert!(Weighted::new(vec![(0, 'a')]).is_none());
        assert!(Weighted::<char>::new(Vec::new()).is_none());
        assert!(Weighted::new(vec![(u32::MAX, 'a'), (1, 'b')]).is_none());
    }
}
