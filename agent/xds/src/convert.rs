//! From messages to the agent's own types. What is wrong is noted where it stands, and the rest is looked at all the
//! same: what comes out counts only when there was no fault.

mod cluster;
mod filters;
mod http;
mod listener;
mod local_reply;
mod matchers;
mod route;
mod sources;
mod subsets;
mod values;

use std::collections::HashSet;

use shunt_core::bootstrap::Bootstrap;
use shunt_core::cluster::Cluster;
use shunt_core::listener::{Listener, NetworkFilter};

use crate::files::Kind;
use crate::reader::Reader;

/// With what the files hold that it names. Names and addresses of the bootstrap itself are nobody else's.
pub(crate) fn bootstrap(root: &Reader<'_>) -> Bootstrap {
    let resources = root.message("static_resources");
    let list = |name| resources.as_ref().map(|resources| resources.list(name));
    let dynamic = root.message("dynamic_resources");
    let source = |name| dynamic.as_ref().and_then(|dynamic| dynamic.message(name));

    let mut clusters = clusters(&list("clusters").unwrap_or_default(), &[]);
    let cds = source("cds_config");
    if let Some(cds) = &cds {
        let found = sources::read(cds, Kind::Clusters, "", |readers| {
            self::clusters(readers, &clusters)
        });
        clusters.extend(found.unwrap_or_default());
    }

    let are_known = &root.files().are_clusters_known;
    are_known.set(cds.is_none());
    let readers = list("listeners").unwrap_or_default();
    let mut listeners = listeners(&readers, &[]);
    if cds.is_none() {
        for (reader, listener) in readers.iter().zip(&listeners) {
            if let Some(listener) = listener {
                find_clusters(reader, listener, &clusters);
            }
        }
    }
    are_known.set(false);
    if let Some(lds) = source("lds_config") {
        let found = sources::read(&lds, Kind::Listeners, "", |readers| {
            self::listeners(readers, &listeners)
        });
        listeners.extend(found.unwrap_or_default());
    }
    Bootstrap {
        listeners: listeners.into_iter().flatten().collect(),
        clusters,
    }
}

/// Beside those that are there already.
fn clusters(readers: &[Reader<'_>], there: &[Cluster]) -> Vec<Cluster> {
    unique(readers, |reader| reader.text("name"), "name");
    let found: Vec<_> = readers.iter().filter_map(cluster::cluster).collect();
    for (reader, cluster) in readers.iter().zip(&found) {
        if there.iter().any(|known| known.name == cluster.name) {
            reader.fault("name", "the bootstrap has a cluster of that name");
        }
    }
    found
}

/// Beside those that are there already. One for each reader.
fn listeners(readers: &[Reader<'_>], there: &[Option<Listener>]) -> Vec<Option<Listener>> {
    unique(readers, |reader| reader.text("name"), "name");
    let found: Vec<_> = readers.iter().map(listener::listener).collect();
    let there: Vec<&Listener> = there.iter().flatten().collect();
    let mut addresses: HashSet<_> = there.iter().map(|known| known.place()).collect();
    for (reader, listener) in readers.iter().zip(&found) {
        let Some(listener) = listener else { continue };
        if there.iter().any(|known| known.name == listener.name) {
            reader.fault("name", "the bootstrap has a listener of that name");
        }
        if !addresses.insert(listener.place()) {
            let (_, addr) = listener.place();
            let which = addr.map_or("the rest".to_owned(), |addr| addr.to_string());
            reader.fault("address", format!("another listener has {which}"));
        }
    }
    found
}

/// Whoever names a cluster here names one that is there.
fn find_clusters(reader: &Reader<'_>, listener: &Listener, clusters: &[Cluster]) {
    let chains = listener.chains.iter().chain(&listener.default_chain);
    let mut missing: Vec<&str> = chains
        .filter(|chain| !matches!(&chain.filter, NetworkFilter::Http(http) if http.rds))
        .flat_map(|chain| chain.filter.clusters())
        .filter(|name| !clusters.iter().any(|cluster| cluster.name == *name))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    for name in missing {
        reader.fault("", format!("there is no cluster `{name}`"));
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
