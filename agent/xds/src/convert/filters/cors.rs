use shunt_core::http::filters::{CorsPolicy, FilterKind, Override, RouteFilter};

use super::super::matchers::{millionths, string};
use super::super::values::is_line;
use super::Known;
use crate::reader::Reader;

pub(super) const KNOWN: Known = Known {
    message: "envoy.extensions.filters.http.cors.v3.Cors",
    chain: |_| Some(FilterKind::Cors),
    own: "envoy.extensions.filters.http.cors.v3.CorsPolicy",
    route: |reader| Some(Override::Enabled(Some(RouteFilter::Cors(policy(reader))))),
};

fn policy(reader: &Reader<'_>) -> CorsPolicy {
    let text = |name: &str| {
        let text = reader.text(name);
        if !is_line(&text) {
            reader.fault(name, "a header's value is one line");
        }
        Some(text).filter(|text| !text.is_empty())
    };
    let origins = reader.list("allow_origin_string_match");
    let share = reader.message("filter_enabled");
    CorsPolicy {
        origins: origins.iter().filter_map(string).collect(),
        methods: text("allow_methods"),
        headers: text("allow_headers"),
        exposed: text("expose_headers"),
        max_age: text("max_age"),
        credentials: reader.bool("allow_credentials"),
        private_network: reader.bool("allow_private_network_access"),
        forward_not_matching: reader.bool("forward_not_matching_preflights"),
        enabled: share.and_then(|share| millionths(&share)),
    }
}
