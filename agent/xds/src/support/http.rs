//! Of HTTP: the connection manager, its filters, routes.

use super::{Row, honoured, no_effect, within};

pub(super) const ROWS: &[Row] = &[
    Row {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        fields: &[
            within(
                "codec_type",
                "AUTO or HTTP1; HTTP/2 is not spoken yet, and who tries is refused",
            ),
            honoured("route_config"),
            honoured("rds"),
            honoured("http_filters"),
            honoured("common_http_protocol_options"),
            honoured("http_protocol_options"),
            honoured("server_name"),
            honoured("server_header_transformation"),
            honoured("max_request_headers_kb"),
            honoured("stream_idle_timeout"),
            honoured("request_timeout"),
            honoured("request_headers_timeout"),
            within(
                "drain_timeout",
                "after max_connection_duration; of listeners, `timeouts.drain` in the agent's own file says it",
            ),
            within(
                "use_remote_address",
                "a client on loopback is called by its own address, not by this host's",
            ),
            honoured("skip_xff_append"),
            honoured("via"),
            honoured("generate_request_id"),
            honoured("preserve_external_request_id"),
            honoured("always_set_request_id_in_response"),
            honoured("strip_matching_host_port"),
            honoured("strip_any_host_port"),
            within(
                "upgrade_configs",
                "any but CONNECT-UDP; filters of their own are refused",
            ),
            honoured("proxy_100_continue"),
            honoured("normalize_path"),
            honoured("merge_slashes"),
            within("xff_num_trusted_hops", "must be 0"),
            honoured("stat_prefix"),
            honoured("local_reply_config"),
            no_effect("http2_protocol_options", "HTTP/2 is not spoken yet"),
            no_effect("http3_protocol_options", "HTTP/3 is not spoken"),
            no_effect("access_log", "the agent writes its own access log"),
            no_effect("access_log_options", "the agent writes its own access log"),
            no_effect(
                "delayed_close_timeout",
                "a connection is closed once its last bytes are taken",
            ),
        ],
    },
    Row {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig",
        fields: &[honoured("upgrade_type"), honoured("enabled")],
    },
    Row {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.Rds",
        fields: &[honoured("config_source"), honoured("route_config_name")],
    },
    Row {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
        fields: &[
            honoured("name"),
            honoured("typed_config"),
            honoured("disabled"),
            no_effect(
                "is_optional",
                "what is not supported is refused all the same",
            ),
        ],
    },
    Row {
        message: "envoy.extensions.filters.http.router.v3.Router",
        fields: &[
            honoured("suppress_envoy_headers"),
            no_effect(
                "dynamic_stats",
                "the statistics that there are, are always there",
            ),
        ],
    },
    Row {
        message: "envoy.config.core.v3.HttpProtocolOptions",
        fields: &[
            honoured("idle_timeout"),
            honoured("max_connection_duration"),
            within("max_headers_count", "from 1 to 8192"),
            honoured("max_requests_per_connection"),
        ],
    },
    Row {
        message: "envoy.config.core.v3.Http1ProtocolOptions",
        fields: &[
            within(
                "enable_trailers",
                "trailers that the message's `trailer` header names, and of responses for clients that send `te: trailers`",
            ),
            honoured("accept_http_10"),
            honoured("default_host_for_http_10"),
            within("header_key_format", "proper_case_words"),
            within("allow_absolute_url", "true"),
        ],
    },
    Row {
        message: "envoy.config.core.v3.Http1ProtocolOptions.HeaderKeyFormat",
        fields: &[honoured("proper_case_words")],
    },
    Row {
        message: "envoy.config.core.v3.Http1ProtocolOptions.HeaderKeyFormat.ProperCaseWords",
        fields: &[],
    },
    Row {
        message: "envoy.config.route.v3.RouteConfiguration",
        fields: &[
            honoured("name"),
            honoured("virtual_hosts"),
            honoured("request_headers_to_add"),
            honoured("request_headers_to_remove"),
            honoured("response_headers_to_add"),
            honoured("response_headers_to_remove"),
            honoured("most_specific_header_mutations_wins"),
            honoured("typed_per_filter_config"),
            honoured("ignore_port_in_host_matching"),
            honoured("max_direct_response_body_size_bytes"),
            within(
                "validate_clusters",
                "true only of routes that stand in the bootstrap's own listeners, and without cds_config; they are always validated",
            ),
            no_effect("metadata", "nothing reads it"),
        ],
    },
    Row {
        message: "envoy.config.route.v3.VirtualHost",
        fields: &[
            honoured("name"),
            honoured("domains"),
            honoured("routes"),
            honoured("typed_per_filter_config"),
            honoured("require_tls"),
            honoured("request_headers_to_add"),
            honoured("request_headers_to_remove"),
            honoured("response_headers_to_add"),
            honoured("response_headers_to_remove"),
            no_effect("virtual_clusters", "they are about statistics"),
            no_effect("metadata", "nothing reads it"),
        ],
    },
    Row {
        message: "envoy.config.route.v3.Route",
        fields: &[
            honoured("name"),
            honoured("match"),
            honoured("route"),
            honoured("redirect"),
            honoured("typed_per_filter_config"),
            honoured("direct_response"),
            honoured("request_headers_to_add"),
            honoured("request_headers_to_remove"),
            honoured("response_headers_to_add"),
            honoured("response_headers_to_remove"),
            no_effect("stat_prefix", "there are no statistics of single routes"),
            no_effect("decorator", "nothing is traced"),
            no_effect("metadata", "nothing reads it"),
        ],
    },
    Row {
        message: "envoy.config.route.v3.RouteMatch",
        fields: &[
            honoured("prefix"),
            honoured("path"),
            honoured("safe_regex"),
            honoured("path_separated_prefix"),
            within("path_match_policy", "a URI template"),
            honoured("connect_matcher"),
            honoured("case_sensitive"),
            honoured("runtime_fraction"),
            honoured("headers"),
            honoured("query_parameters"),
        ],
    },
    Row {
        message: "envoy.config.route.v3.RouteMatch.ConnectMatcher",
        fields: &[],
    },
    Row {
        message: "envoy.config.core.v3.RuntimeFractionalPercent",
        fields: &[
            honoured("default_value"),
            no_effect("runtime_key", "there is no runtime: the default holds"),
        ],
    },
    Row {
        message: "envoy.type.v3.FractionalPercent",
        fields: &[honoured("numerator"), honoured("denominator")],
    },
    Row {
        message: "envoy.type.matcher.v3.RegexMatcher",
        fields: &[
            honoured("regex"),
            no_effect("google_re2", "there is one engine"),
        ],
    },
    Row {
        message: "envoy.type.matcher.v3.RegexMatchAndSubstitute",
        fields: &[honoured("pattern"), honoured("substitution")],
    },
    Row {
        message: "envoy.type.matcher.v3.StringMatcher",
        fields: &[
            honoured("exact"),
            honoured("prefix"),
            honoured("suffix"),
            honoured("contains"),
            honoured("safe_regex"),
            honoured("ignore_case"),
        ],
    },
    Row {
        message: "envoy.config.route.v3.HeaderMatcher",
        fields: &[
            honoured("name"),
            honoured("exact_match"),
            honoured("prefix_match"),
            honoured("suffix_match"),
            honoured("contains_match"),
            honoured("safe_regex_match"),
            honoured("range_match"),
            honoured("present_match"),
            honoured("string_match"),
            honoured("invert_match"),
            honoured("treat_missing_header_as_empty"),
        ],
    },
    Row {
        message: "envoy.type.v3.Int64Range",
        fields: &[honoured("start"), honoured("end")],
    },
    Row {
        message: "envoy.config.route.v3.QueryParameterMatcher",
        fields: &[
            honoured("name"),
            honoured("string_match"),
            honoured("present_match"),
        ],
    },
    Row {
        message: "envoy.config.route.v3.RouteAction",
        fields: &[
            honoured("cluster"),
            honoured("cluster_header"),
            honoured("weighted_clusters"),
            honoured("cluster_not_found_response_code"),
            honoured("prefix_rewrite"),
            honoured("regex_rewrite"),
            within("path_rewrite_policy", "a URI template"),
            honoured("host_rewrite_literal"),
            honoured("host_rewrite_header"),
            honoured("host_rewrite_path_regex"),
            honoured("auto_host_rewrite"),
            honoured("append_x_forwarded_host"),
            honoured("metadata_match"),
            honoured("timeout"),
            honoured("idle_timeout"),
            within("upgrade_configs", "any but CONNECT-UDP"),
            within("priority", "DEFAULT"),
        ],
    },
    Row {
        message: "envoy.config.route.v3.RouteAction.UpgradeConfig",
        fields: &[
            honoured("upgrade_type"),
            honoured("enabled"),
            honoured("connect_config"),
        ],
    },
    Row {
        message: "envoy.config.route.v3.RouteAction.UpgradeConfig.ConnectConfig",
        fields: &[],
    },
    Row {
        message: "envoy.config.route.v3.WeightedCluster",
        fields: &[
            honoured("clusters"),
            no_effect(
                "runtime_key_prefix",
                "there is no runtime: the weights hold",
            ),
        ],
    },
    Row {
        message: "envoy.config.route.v3.WeightedCluster.ClusterWeight",
        fields: &[
            honoured("name"),
            honoured("weight"),
            honoured("metadata_match"),
            honoured("typed_per_filter_config"),
            honoured("host_rewrite_literal"),
            honoured("request_headers_to_add"),
            honoured("request_headers_to_remove"),
            honoured("response_headers_to_add"),
            honoured("response_headers_to_remove"),
        ],
    },
    Row {
        message: "envoy.config.route.v3.RedirectAction",
        fields: &[
            honoured("https_redirect"),
            honoured("scheme_redirect"),
            honoured("host_redirect"),
            honoured("port_redirect"),
            honoured("path_redirect"),
            honoured("prefix_rewrite"),
            honoured("regex_rewrite"),
            honoured("response_code"),
            honoured("strip_query"),
        ],
    },
    Row {
        message: "envoy.config.route.v3.DirectResponseAction",
        fields: &[honoured("status"), honoured("body")],
    },
    Row {
        message: "envoy.config.core.v3.DataSource",
        fields: &[
            honoured("filename"),
            honoured("inline_bytes"),
            honoured("inline_string"),
        ],
    },
    Row {
        message: "envoy.config.core.v3.HeaderValueOption",
        fields: &[
            honoured("header"),
            honoured("append"),
            honoured("append_action"),
            honoured("keep_empty_value"),
        ],
    },
    Row {
        message: "envoy.config.core.v3.HeaderValue",
        fields: &[
            honoured("key"),
            within("value", "with the format strings that are listed below"),
        ],
    },
];
