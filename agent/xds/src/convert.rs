//! From messages to the agent's own types. What is wrong is noted where it stands, and the rest is looked at all the
//! same: what comes out counts only when there was no fault.

mod cluster;
mod http;
mod listener;
mod matchers;
mod route;
mod values;

use std::collections::HashSet;

use shunt_core::bootstrap::Bootstrap;

use crate::reader::Reader;

pub(crate) fn bootstrap(root: &Reader<'_>) -> Bootstrap {
    let Some(resources) = root.message("static_resources") else {
        return Bootstrap::default();
    };
    let clusters: Vec<_> = resources
        .list("clusters")
        .iter()
        .filter_map(cluster::cluster)
        .collect();
    let readers = resources.list("listeners");
    let listeners: Vec<_> = readers
        .iter()
        .filter_map(|reader| Some((reader, listener::listener(reader)?)))
        .collect();
    unique(
        &resources.list("clusters"),
        |reader| reader.text("name"),
        "name",
    );
    unique(&readers, |reader| reader.text("name"), "name");
    let mut addresses = HashSet::new();
    for (reader, listener) in &listeners {
        if !addresses.insert(listener.place()) {
            let (_, addr) = listener.place();
            let which = addr.map_or("the rest".to_owned(), |addr| addr.to_string());
            reader.fault("address", format!("another listener has {which}"));
        }
        let chains = listener.chains.iter().chain(&listener.default_chain);
        let mut missing: Vec<&str> = chains
            .flat_map(|chain| chain.filter.clusters())
            .filter(|name| !clusters.iter().any(|cluster| cluster.name == *name))
            .collect();
        missing.sort_unstable();
        missing.dedup();
        for name in missing {
            reader.fault("", format!("there is no cluster `{name}`"));
        }
    }
    Bootstrap {
        listeners: listeners
            .into_iter()
            .map(|(_, listener)| listener)
            .collect(),
        clusters,
    }
}

/// Nothing is told twice of what is empty: that is a fault of its own where it matters.
fn unique(readers: &[Reader<'_>], key: impl Fn(&Reader<'_>) -> String, field: &str) {
    let mut seen = HashSet::new();
    for reader in readers {
        let key = key(reader);
        if !key.is_empty() && !seen.insert(key.clone()) {
            reader.fault(field, format!("`{key}` is there twice"));
        }
    }
}
