//! Of listeners, filter chains and clusters.

use super::{Row, honoured, no_effect, within};

pub(super) const ROWS: &[Row] = &[
    Row {
        message: "envoy.config.bootstrap.v3.Bootstrap",
        fields: &[
            honoured("static_resources"),
            honoured("dynamic_resources"),
            no_effect("node", "it names this proxy to a control plane"),
            no_effect(
                "admin",
                "the agent has an admin API of its own (`admin` in its own file)",
            ),
            no_effect(
                "stats_config",
                "statistics have the names that Envoy gives by default",
            ),
            no_effect("stats_sinks", "statistics are read from the admin API"),
            no_effect(
                "stats_flush_interval",
                "statistics are read from the admin API",
            ),
            no_effect(
                "stats_flush_on_admin",
                "statistics are read from the admin API",
            ),
            no_effect(
                "deferred_stat_options",
                "statistics are read from the admin API",
            ),
            no_effect(
                "enable_dispatcher_stats",
                "statistics are read from the admin API",
            ),
            no_effect("watchdogs", "the supervisor watches the workers"),
            no_effect(
                "application_log_config",
                "`log` in the agent's own file says it",
            ),
            no_effect("typed_dns_resolver_config", "no cluster is resolved by DNS"),
            no_effect("memory_allocator_manager", "it is about Envoy's own memory"),
        ],
    },
    Row {
        message: "envoy.config.bootstrap.v3.Bootstrap.StaticResources",
        fields: &[honoured("listeners"), honoured("clusters")],
    },
    Row {
        message: "envoy.config.bootstrap.v3.Bootstrap.DynamicResources",
        fields: &[honoured("lds_config"), honoured("cds_config")],
    },
    Row {
        message: "envoy.config.core.v3.ConfigSource",
        fields: &[
            honoured("path"),
            honoured("path_config_source"),
            within("resource_api_version", "V3"),
            no_effect("initial_fetch_timeout", "a file is there or is not"),
        ],
    },
    Row {
        message: "envoy.config.core.v3.PathConfigSource",
        fields: &[honoured("path"), honoured("watched_directory")],
    },
    Row {
        message: "envoy.config.core.v3.WatchedDirectory",
        fields: &[honoured("path")],
    },
    Row {
        message: "envoy.service.discovery.v3.DiscoveryResponse",
        fields: &[
            honoured("version_info"),
            honoured("resources"),
            no_effect("type_url", "every resource says its own type"),
            no_effect("nonce", "nobody is answered"),
            no_effect("canary", "nothing reads it"),
            no_effect("control_plane", "nothing reads it"),
        ],
    },
    Row {
        message: "envoy.config.listener.v3.Listener",
        fields: &[
            honoured("name"),
            honoured("address"),
            honoured("filter_chains"),
            honoured("default_filter_chain"),
            honoured("listener_filters"),
            honoured("listener_filters_timeout"),
            honoured("continue_on_listener_filters_timeout"),
            honoured("bind_to_port"),
            honoured("use_original_dst"),
            honoured("traffic_direction"),
            no_effect("stat_prefix", "of TCP there are the agent's own statistics"),
            no_effect("metadata", "nothing reads it"),
            no_effect("enable_reuse_port", "every worker has a socket of its own"),
            no_effect(
                "connection_balance_config",
                "the kernel spreads connections over the workers' sockets",
            ),
            no_effect(
                "per_connection_buffer_limit_bytes",
                "a connection holds one buffer of the proxy's",
            ),
            no_effect(
                "tcp_backlog_size",
                "the queue is as long as the host allows",
            ),
            no_effect("access_log", "the agent writes its own access log"),
        ],
    },
    Row {
        message: "envoy.config.listener.v3.ListenerFilter",
        fields: &[honoured("name"), honoured("typed_config")],
    },
    Row {
        message: "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
        fields: &[
            no_effect("enable_ja3_fingerprinting", "nothing reads it"),
            no_effect("initial_read_buffer_size", "the buffer is the proxy's own"),
        ],
    },
    Row {
        message: "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
        fields: &[],
    },
    Row {
        message: "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
        fields: &[],
    },
    Row {
        message: "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
        fields: &[
            honoured("allow_requests_without_proxy_protocol"),
            no_effect("stat_prefix", "statistics have names of their own"),
        ],
    },
    Row {
        message: "envoy.config.listener.v3.FilterChain",
        fields: &[
            honoured("name"),
            honoured("filter_chain_match"),
            honoured("filters"),
            within("transport_socket", "raw_buffer"),
            no_effect("metadata", "nothing reads it"),
        ],
    },
    Row {
        message: "envoy.config.listener.v3.FilterChainMatch",
        fields: &[
            honoured("destination_port"),
            honoured("prefix_ranges"),
            honoured("server_names"),
            honoured("transport_protocol"),
            honoured("application_protocols"),
            honoured("direct_source_prefix_ranges"),
            honoured("source_type"),
            honoured("source_prefix_ranges"),
            honoured("source_ports"),
        ],
    },
    Row {
        message: "envoy.config.listener.v3.Filter",
        fields: &[honoured("name"), honoured("typed_config")],
    },
    Row {
        message: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        fields: &[
            honoured("cluster"),
            honoured("weighted_clusters"),
            honoured("idle_timeout"),
            honoured("max_connect_attempts"),
            no_effect("stat_prefix", "of TCP there are the agent's own statistics"),
            no_effect("access_log", "the agent writes its own access log"),
        ],
    },
    Row {
        message: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster",
        fields: &[honoured("clusters")],
    },
    Row {
        message: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight",
        fields: &[honoured("name"), honoured("weight")],
    },
    Row {
        message: "envoy.config.cluster.v3.Cluster",
        fields: &[
            honoured("name"),
            within("type", "STATIC, EDS or ORIGINAL_DST"),
            honoured("eds_cluster_config"),
            honoured("connect_timeout"),
            within(
                "lb_policy",
                "ROUND_ROBIN or RANDOM; CLUSTER_PROVIDED where the type is ORIGINAL_DST",
            ),
            honoured("original_dst_lb_config"),
            honoured("load_assignment"),
            honoured("lb_subset_config"),
            honoured("common_http_protocol_options"),
            honoured("max_requests_per_connection"),
            honoured("circuit_breakers"),
            within(
                "typed_extension_protocol_options",
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            ),
            within("transport_socket", "raw_buffer"),
            no_effect(
                "alt_stat_name",
                "statistics are called after the cluster's name",
            ),
            no_effect("metadata", "nothing reads it"),
            no_effect("dns_lookup_family", "no cluster is resolved by DNS"),
            no_effect(
                "per_connection_buffer_limit_bytes",
                "a connection holds some 250 KiB that an HTTP client does not take, or one buffer of 16 KiB of TCP",
            ),
            no_effect("wait_for_warm_on_init", "a static cluster is always warm"),
            no_effect(
                "cleanup_interval",
                "of original destinations nothing is kept but idle connections, which have a timeout of their own",
            ),
            no_effect(
                "track_cluster_stats",
                "the statistics that there are, are always there",
            ),
            no_effect(
                "close_connections_on_host_health_failure",
                "nothing checks health",
            ),
            no_effect("ignore_health_on_host_removal", "nothing checks health"),
        ],
    },
    Row {
        message: "envoy.config.cluster.v3.Cluster.LbSubsetConfig",
        fields: &[
            honoured("fallback_policy"),
            honoured("default_subset"),
            honoured("subset_selectors"),
        ],
    },
    Row {
        message: "envoy.config.cluster.v3.Cluster.LbSubsetConfig.LbSubsetSelector",
        fields: &[
            honoured("keys"),
            within("fallback_policy", "all but KEYS_SUBSET"),
        ],
    },
    Row {
        message: "envoy.config.core.v3.Metadata",
        fields: &[
            honoured("filter_metadata"),
            no_effect("typed_filter_metadata", "nothing reads it"),
        ],
    },
    Row {
        message: "envoy.config.cluster.v3.CircuitBreakers",
        fields: &[within("thresholds", "of priority DEFAULT")],
    },
    Row {
        message: "envoy.config.cluster.v3.CircuitBreakers.Thresholds",
        fields: &[
            within("priority", "DEFAULT"),
            honoured("max_connections"),
            honoured("max_pending_requests"),
            honoured("max_requests"),
            no_effect("max_retries", "nothing is tried again"),
            no_effect("track_remaining", "statistics have names of their own"),
        ],
    },
    Row {
        message: "envoy.config.cluster.v3.Cluster.OriginalDstLbConfig",
        fields: &[
            honoured("use_http_header"),
            honoured("http_header_name"),
            honoured("upstream_port_override"),
        ],
    },
    Row {
        message: "envoy.config.cluster.v3.Cluster.EdsClusterConfig",
        fields: &[honoured("eds_config"), honoured("service_name")],
    },
    Row {
        message: "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        fields: &[
            honoured("common_http_protocol_options"),
            honoured("explicit_http_config"),
        ],
    },
    Row {
        message: "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig",
        fields: &[within(
            "http_protocol_options",
            "with enable_trailers alone",
        )],
    },
    Row {
        message: "envoy.config.core.v3.TransportSocket",
        fields: &[
            honoured("name"),
            within(
                "typed_config",
                "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
            ),
        ],
    },
    Row {
        message: "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
        fields: &[],
    },
    Row {
        message: "envoy.config.endpoint.v3.ClusterLoadAssignment",
        fields: &[honoured("cluster_name"), honoured("endpoints")],
    },
    Row {
        message: "envoy.config.endpoint.v3.LocalityLbEndpoints",
        fields: &[
            honoured("lb_endpoints"),
            within("priority", "must be 0"),
            no_effect("locality", "endpoints are chosen from all localities"),
            no_effect(
                "load_balancing_weight",
                "localities are not weighted, as in Envoy without locality_weighted_lb_config",
            ),
            no_effect("metadata", "nothing reads it"),
        ],
    },
    Row {
        message: "envoy.config.endpoint.v3.LbEndpoint",
        fields: &[
            honoured("endpoint"),
            within("health_status", "DEGRADED is not known"),
            honoured("load_balancing_weight"),
            honoured("metadata"),
        ],
    },
    Row {
        message: "envoy.config.endpoint.v3.Endpoint",
        fields: &[
            honoured("address"),
            honoured("hostname"),
            no_effect("health_check_config", "nothing checks health"),
        ],
    },
    Row {
        message: "envoy.config.core.v3.Address",
        fields: &[honoured("socket_address")],
    },
    Row {
        message: "envoy.config.core.v3.SocketAddress",
        fields: &[
            within("protocol", "TCP"),
            within("address", "an IP address"),
            honoured("port_value"),
        ],
    },
    Row {
        message: "envoy.config.core.v3.CidrRange",
        fields: &[honoured("address_prefix"), honoured("prefix_len")],
    },
];
