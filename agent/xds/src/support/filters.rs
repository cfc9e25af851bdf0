//! Of HTTP filters, and of the proxy's own replies.

use super::{Row, honoured, no_effect, within};

pub(super) const ROWS: &[Row] = &[
    Row {
        message: "envoy.config.route.v3.FilterConfig",
        fields: &[
            honoured("config"),
            honoured("disabled"),
            no_effect(
                "is_optional",
                "what is not supported is refused all the same",
            ),
        ],
    },
    Row {
        message: "envoy.extensions.filters.http.cors.v3.Cors",
        fields: &[],
    },
    Row {
        message: "envoy.extensions.filters.http.cors.v3.CorsPolicy",
        fields: &[
            honoured("allow_origin_string_match"),
            honoured("allow_methods"),
            honoured("allow_headers"),
            honoured("expose_headers"),
            honoured("max_age"),
            honoured("allow_credentials"),
            honoured("filter_enabled"),
            honoured("allow_private_network_access"),
            honoured("forward_not_matching_preflights"),
        ],
    },
    Row {
        message: "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        fields: &[
            honoured("mutations"),
            honoured("most_specific_header_mutations_wins"),
        ],
    },
    Row {
        message: "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute",
        fields: &[honoured("mutations")],
    },
    Row {
        message: "envoy.extensions.filters.http.header_mutation.v3.Mutations",
        fields: &[
            honoured("request_mutations"),
            honoured("response_mutations"),
        ],
    },
    Row {
        message: "envoy.config.common.mutation_rules.v3.HeaderMutation",
        fields: &[
            within("remove", "neither host nor what begins with `:`"),
            honoured("append"),
        ],
    },
    Row {
        message: "envoy.extensions.filters.http.buffer.v3.Buffer",
        fields: &[honoured("max_request_bytes")],
    },
    Row {
        message: "envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
        fields: &[honoured("disabled"), honoured("buffer")],
    },
    Row {
        message: "envoy.extensions.filters.http.health_check.v3.HealthCheck",
        fields: &[honoured("pass_through_mode"), honoured("headers")],
    },
    Row {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.LocalReplyConfig",
        fields: &[honoured("mappers"), honoured("body_format")],
    },
    Row {
        message: "envoy.extensions.filters.network.http_connection_manager.v3.ResponseMapper",
        fields: &[
            honoured("filter"),
            honoured("status_code"),
            honoured("body"),
            honoured("body_format_override"),
            honoured("headers_to_add"),
        ],
    },
    Row {
        message: "envoy.config.core.v3.SubstitutionFormatString",
        fields: &[
            honoured("text_format"),
            honoured("text_format_source"),
            honoured("json_format"),
            honoured("content_type"),
        ],
    },
    Row {
        message: "envoy.config.accesslog.v3.AccessLogFilter",
        fields: &[
            honoured("status_code_filter"),
            honoured("duration_filter"),
            honoured("and_filter"),
            honoured("or_filter"),
            honoured("header_filter"),
            honoured("response_flag_filter"),
        ],
    },
    Row {
        message: "envoy.config.accesslog.v3.StatusCodeFilter",
        fields: &[honoured("comparison")],
    },
    Row {
        message: "envoy.config.accesslog.v3.DurationFilter",
        fields: &[honoured("comparison")],
    },
    Row {
        message: "envoy.config.accesslog.v3.ComparisonFilter",
        fields: &[honoured("op"), honoured("value")],
    },
    Row {
        message: "envoy.config.core.v3.RuntimeUInt32",
        fields: &[
            honoured("default_value"),
            no_effect("runtime_key", "there is no runtime: the default holds"),
        ],
    },
    Row {
        message: "envoy.config.accesslog.v3.AndFilter",
        fields: &[honoured("filters")],
    },
    Row {
        message: "envoy.config.accesslog.v3.OrFilter",
        fields: &[honoured("filters")],
    },
    Row {
        message: "envoy.config.accesslog.v3.HeaderFilter",
        fields: &[honoured("header")],
    },
    Row {
        message: "envoy.config.accesslog.v3.ResponseFlagFilter",
        fields: &[honoured("flags")],
    },
    Row {
        message: "envoy.config.core.v3.TypedExtensionConfig",
        fields: &[honoured("name"), honoured("typed_config")],
    },
    Row {
        message: "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
        fields: &[honoured("path_template")],
    },
    Row {
        message: "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig",
        fields: &[honoured("path_template_rewrite")],
    },
];
