//! Subsets of a cluster: the upstream sees by the host which endpoint was chosen.

use super::{Case, get};

pub(super) fn all() -> Vec<Case> {
    let asks = |name, path, headers| get(name, "asked.test", path, headers).on("SUBSETS");
    vec![
        asks("subsets: nothing is asked for", "/nothing", ""),
        asks("subsets: one key", "/two", "x-forwarded-host: before\n"),
        asks("subsets: a number is no text", "/number", ""),
        asks("subsets: a number", "/three", ""),
        asks("subsets: nobody, by the selector", "/four", ""),
        asks("subsets: two keys", "/both", ""),
        asks("subsets: nobody, and the default", "/both-none", ""),
        asks("subsets: keys of no selector", "/no-selector", ""),
        asks("subsets: another filter's metadata", "/other-filter", ""),
        asks("subsets: a structure", "/deep", ""),
        asks("subsets: the weighted cluster's own", "/weighted", ""),
        asks("subsets: the weighted cluster's host", "/weighted-host", ""),
        asks("subsets: by a header", "/by-header", "x-cluster: subsets\n"),
        asks("subsets: nobody, by the cluster", "/lonely", ""),
        asks("subsets: anybody", "/anybody", ""),
        asks("subsets: nobody is healthy", "/unhealthy", ""),
        asks("host: of an endpoint without a name", "/no-name", ""),
        asks("subsets: of a cluster without any", "/no-subsets", ""),
    ]
}
