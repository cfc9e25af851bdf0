use shunt_core::http::filters::{FilterKind, HealthCheck};

use super::super::matchers::header;
use super::Known;
use crate::reader::Reader;

pub(super) const KNOWN: Known = Known {
    message: "envoy.extensions.filters.http.health_check.v3.HealthCheck",
    chain: |reader| health_check(reader).map(FilterKind::HealthCheck),
    own: "",
    route: |_| None,
};

fn health_check(reader: &Reader<'_>) -> Option<HealthCheck> {
    let pass_through = reader.required("pass_through_mode", reader.bool("pass_through_mode"))?;
    let headers = reader.list("headers");
    Some(HealthCheck {
        headers: headers.iter().map(header).collect::<Option<_>>()?,
        pass_through,
    })
}
