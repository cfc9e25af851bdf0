//! Subsets of a cluster's endpoints: those whose metadata say what a route asks for; Envoy's `lb_subset_config`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Cluster, Endpoint};

/// Of `envoy.lb`: values, as JSON, by key.
pub type Metadata = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subsets {
    /// Not empty.
    pub selectors: Vec<Selector>,
    /// Where no selector has the route's keys, or it asks for nothing.
    pub fallback: Fallback,
    /// Those that have all that the default asks for.
    pub default: Vec<Endpoint>,
    /// In order. No two ask for the same; none is empty.
    pub subsets: Vec<Subset>,
}

/// The keys by which there are subsets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Selector {
    /// In order.
    pub keys: Vec<String>,
    /// Where nobody has the values; `None`: the cluster's.
    pub fallback: Option<Fallback>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    Nobody,
    Anybody,
    Default,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subset {
    pub metadata: Metadata,
    pub endpoints: Vec<Endpoint>,
}

/// Endpoints that take turns.
#[derive(Clone, Copy, Debug)]
pub struct Group<'c> {
    /// Which of the cluster's groups.
    pub number: usize,
    pub endpoints: &'c [Endpoint],
}

const ALL: usize = 0;
const DEFAULT: usize = 1;
const FIRST_SUBSET: usize = 2;

impl Cluster {
    /// Those to choose from for a route that asks for this.
    pub fn group(&self, wanted: &Metadata) -> Group<'_> {
        let all = Group {
            number: ALL,
            endpoints: &self.endpoints,
        };
        let Some(known) = &self.subsets else {
            return all;
        };
        let by_keys = |selector: &&Selector| selector.keys.iter().eq(wanted.keys());
        let selector = known.selectors.iter().find(by_keys);
        if selector.is_some()
            && let Ok(at) = known.subsets.binary_search_by(|of| of.metadata.cmp(wanted))
        {
            return Group {
                number: FIRST_SUBSET + at,
                endpoints: &known.subsets[at].endpoints,
            };
        }
        let own = selector.and_then(|selector| selector.fallback);
        match own.unwrap_or(known.fallback) {
            Fallback::Anybody => all,
            Fallback::Default => Group {
                number: DEFAULT,
                endpoints: &known.default,
            },
            Fallback::Nobody => Group {
                number: DEFAULT,
                endpoints: &[],
            },
        }
    }

    /// Is this an endpoint that may be chosen?
    pub fn has(&self, addr: std::net::SocketAddr) -> bool {
        let subsets = self.subsets.iter();
        let more = subsets.flat_map(|known| {
            let subsets = known.subsets.iter();
            let of_subsets = subsets.flat_map(|subset| &subset.endpoints);
            known.default.iter().chain(of_subsets)
        });
        let mut all = self.endpoints.iter().chain(more);
        all.any(|endpoint| endpoint.addr == addr)
    }
}
