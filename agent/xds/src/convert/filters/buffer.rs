use shunt_core::http::filters::{Buffer, FilterKind, Override, RouteFilter};

use super::Known;
use crate::reader::Reader;

pub(super) const KNOWN: Known = Known {
    message: "envoy.extensions.filters.http.buffer.v3.Buffer",
    chain: |reader| buffer(reader).map(FilterKind::Buffer),
    own: "envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
    route,
};

fn buffer(reader: &Reader<'_>) -> Option<Buffer> {
    let bytes = reader.required("max_request_bytes", reader.u32("max_request_bytes"))?;
    if bytes == 0 {
        reader.fault("max_request_bytes", "must be at least 1");
    }
    Some(Buffer {
        max_bytes: bytes as usize,
    })
}

fn route(reader: &Reader<'_>) -> Option<Override> {
    if reader.has("disabled") {
        if !reader.is("disabled") {
            reader.fault("disabled", "must be true");
        }
        return Some(Override::Disabled);
    }
    let own = reader.required("buffer", reader.message("buffer"))?;
    let own = buffer(&own)?;
    Some(Override::Enabled(Some(RouteFilter::Buffer(own))))
}
