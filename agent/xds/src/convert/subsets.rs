//! Subsets of a cluster's endpoints, and what routes ask of them: `lb_subset_config`, `metadata_match`.

use std::collections::BTreeMap;

use shunt_core::cluster::subsets::{Fallback, Metadata, Selector, Subset, Subsets};

use super::cluster::{Found, chosen};
use crate::reader::Reader;

/// The filter whose metadata are those of endpoints.
const OF_BALANCING: &str = "envoy.lb";

/// What stands in a field of type `Metadata`.
pub(super) fn metadata(reader: &Reader<'_>, name: &str) -> Metadata {
    let metadata = reader.message(name);
    let all = metadata.map(|metadata| {
        let by_filter = metadata.map("filter_metadata").into_iter();
        let of_balancing = by_filter.filter(|(filter, _)| filter == OF_BALANCING);
        let values = of_balancing.map(|(_, values)| entries(values.as_free()));
        values.flatten().collect()
    });
    all.unwrap_or_default()
}

fn entries(values: Option<serde_json::Value>) -> Metadata {
    match values {
        Some(serde_json::Value::Object(values)) => {
            let values = values.into_iter();
            values
                .map(|(key, value)| (key, value.to_string()))
                .collect()
        }
        _ => Metadata::new(),
    }
}

/// `None`: the cluster has none.
pub(super) fn subsets(cluster: &Reader<'_>, found: &[Found]) -> Option<Subsets> {
    let config = cluster.message("lb_subset_config")?;
    let selectors: Vec<Selector> = config
        .list("subset_selectors")
        .iter()
        .map(|selector| {
            let mut keys = selector.texts("keys");
            if keys.is_empty() {
                selector.fault("keys", "is required");
            }
            keys.sort();
            keys.dedup();
            Selector {
                keys,
                fallback: fallback(selector),
            }
        })
        .collect();
    let default = entries(config.free("default_subset"));
    let has_all = |found: &&Found| {
        let mut wanted = default.iter();
        wanted.all(|(key, value)| found.metadata.get(key) == Some(value))
    };
    let mut groups: BTreeMap<Metadata, Vec<&Found>> = BTreeMap::new();
    for endpoint in found {
        for selector in &selectors {
            let of_key = |key: &String| Some((key.clone(), endpoint.metadata.get(key)?.clone()));
            // Only who has all of the keys.
            let own: Option<Metadata> = selector.keys.iter().map(of_key).collect();
            if let Some(own) = own {
                groups.entry(own).or_default().push(endpoint);
            }
        }
    }
    // Without selectors there are no subsets, whatever else is said.
    (!selectors.is_empty()).then(|| Subsets {
        fallback: fallback(&config).unwrap_or(Fallback::Nobody),
        default: chosen(found.iter().filter(has_all)),
        subsets: groups
            .into_iter()
            .map(|(metadata, of)| (metadata, chosen(of.into_iter())))
            .filter(|(_, endpoints)| !endpoints.is_empty())
            .map(|(metadata, endpoints)| Subset {
                metadata,
                endpoints,
            })
            .collect(),
        selectors,
    })
}

fn fallback(reader: &Reader<'_>) -> Option<Fallback> {
    match reader.choice("fallback_policy").as_str() {
        "NO_FALLBACK" => Some(Fallback::Nobody),
        "ANY_ENDPOINT" => Some(Fallback::Anybody),
        "DEFAULT_SUBSET" => Some(Fallback::Default),
        "NOT_DEFINED" => None,
        other => {
            reader.fault("fallback_policy", format!("{other} is not supported"));
            None
        }
    }
}
