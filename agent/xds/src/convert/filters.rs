//! HTTP filters: the chain of a connection manager, and what routes say of it.

mod buffer;
mod cors;
mod header_mutation;
mod health_check;

use std::collections::HashSet;

use shunt_core::http::filters::{FilterKind, HttpFilter, Override, PerFilter};

use crate::reader::Reader;

const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const FILTER_CONFIG: &str = "envoy.config.route.v3.FilterConfig";

/// A filter that there is; the router, which ends every chain, is none of them.
struct Known {
    message: &'static str,
    chain: fn(&Reader<'_>) -> Option<FilterKind>,
    /// The message of which routes make theirs, if they may.
    own: &'static str,
    route: fn(&Reader<'_>) -> Option<Override>,
}

static KNOWN: [Known; 4] = [
    cors::KNOWN,
    header_mutation::KNOWN,
    buffer::KNOWN,
    health_check::KNOWN,
];

/// The filters before the router. Does the router say nothing in `x-envoy-` headers?
pub(super) fn chain(reader: &Reader<'_>) -> (Vec<HttpFilter>, bool) {
    let filters = reader.list("http_filters");
    let mut found = Vec::new();
    let mut names = HashSet::new();
    let mut router = None;
    for (at, filter) in filters.iter().enumerate() {
        let inner = filter.message("typed_config");
        let Some(inner) = inner.and_then(|any| any.unpacked()) else {
            filter.fault("typed_config", "is required");
            continue;
        };
        let name = filter.text("name");
        if name.is_empty() {
            filter.fault("name", "is required");
        } else if !names.insert(name.clone()) {
            filter.fault("name", format!("`{name}` is there twice"));
        }
        let is_last = at + 1 == filters.len();
        if inner.type_name() == ROUTER {
            if !is_last {
                filter.fault("", "the router must be the last filter");
            }
            if filter.is("disabled") {
                filter.fault("disabled", "the router cannot be");
            }
            router = Some(inner.is("suppress_envoy_headers"));
            continue;
        }
        match KNOWN
            .iter()
            .find(|known| known.message == inner.type_name())
        {
            Some(known) => found.extend((known.chain)(&inner).map(|kind| HttpFilter {
                name,
                disabled: filter.is("disabled"),
                kind,
            })),
            // The table has said more of what it does not have.
            None => filter.fault("typed_config", "is no HTTP filter that is supported"),
        }
    }
    if router.is_none() {
        reader.fault("http_filters", "the router is required, as the last filter");
    }
    (found, router.unwrap_or_default())
}

/// `typed_per_filter_config` of whatever may have it.
pub(super) fn per_filter(reader: &Reader<'_>) -> PerFilter {
    let map = reader.map("typed_per_filter_config");
    let mut said: PerFilter = map
        .iter()
        .filter_map(|(name, any)| Some((name.clone(), one(any)?)))
        .collect();
    said.sort_by(|(one, _), (other, _)| one.cmp(other));
    said
}

fn one(any: &Reader<'_>) -> Option<Override> {
    let inner = any.required("", any.unpacked())?;
    if inner.type_name() == FILTER_CONFIG {
        if inner.is("disabled") {
            return Some(Override::Disabled);
        }
        return match inner.message("config") {
            Some(config) => one(&config),
            None => Some(Override::Enabled(None)),
        };
    }
    let known = KNOWN.iter().find(|known| known.own == inner.type_name());
    if known.is_none() {
        any.fault("", "is nothing that a route says of a supported filter");
    }
    (known?.route)(&inner)
}
