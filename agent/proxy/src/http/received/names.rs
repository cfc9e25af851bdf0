//! Headers that Envoy knows by name.

/// What only a proxy inside the mesh may say; from anybody else it is taken away.
pub(super) const INTERNAL: [&str; 14] = [
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-internal",
    "x-envoy-ip-tags",
    "x-envoy-max-retries",
    "x-envoy-original-url",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
];

/// The same where the peer is the client, at the edge.
pub(super) const EDGE: [&str; 5] = [
    "x-envoy-decorator-operation",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-original-path",
];

/// Several lines of these are one for upstreams, with commas between the values.
pub(super) const ONE_LINE: [&str; 11] = [
    "accept",
    "accept-encoding",
    "authorization",
    "cache-control",
    "content-type",
    "origin",
    "user-agent",
    "via",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-request-id",
];
