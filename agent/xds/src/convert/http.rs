//! The HTTP connection manager.

use std::time::Duration;

use shunt_core::http::{
    HttpConnectionManager, HttpLimits, HttpTimeouts, PathRules, RequestId, ServerHeader, StripPort,
    Upgrade,
};
use shunt_core::route::RouteConfiguration;

use super::{filters, local_reply, route, sources};
use crate::files::Kind;
use crate::reader::Reader;

/// Envoy's defaults.
const HEADER_KIB: u32 = 60;
const HEADERS: u32 = 100;
const IDLE: Duration = Duration::from_secs(3600);
const STREAM_IDLE: Duration = Duration::from_secs(300);
const DRAIN: Duration = Duration::from_secs(5);

pub(super) fn manager(reader: &Reader<'_>) -> Option<HttpConnectionManager> {
    let codec = reader.choice("codec_type");
    if !matches!(codec.as_str(), "AUTO" | "HTTP1") {
        reader.fault(
            "codec_type",
            format!("{codec} is not supported (AUTO, HTTP1)"),
        );
    }
    if reader.u32("xff_num_trusted_hops").unwrap_or_default() != 0 {
        reader.fault("xff_num_trusted_hops", "only 0 is supported");
    }
    let rds = reader.message("rds");
    let routes = match &rds {
        Some(rds) => by_rds(rds),
        None => match reader.required("route_config", reader.message("route_config")) {
            Some(routes) => {
                routes.note_routes();
                if !routes.files().are_clusters_known.get() {
                    not_validated(&routes);
                }
                route::configuration(&routes)
            }
            None => RouteConfiguration::default(),
        },
    };
    let (filters, suppress_envoy_headers) = filters::chain(reader);
    let http1 = reader.message("http_protocol_options");
    let http1 = http1.as_ref();
    let flag = |name| http1.is_some_and(|options| options.is(name));
    let key_format = http1.and_then(|options| options.message("header_key_format"));
    if let Some(http1) = http1
        && http1.bool("allow_absolute_url") == Some(false)
    {
        http1.fault("allow_absolute_url", "only true is supported");
    }
    let strip_any = reader.is("strip_any_host_port");
    let strip_matching = reader.is("strip_matching_host_port");
    if strip_any && strip_matching {
        reader.fault(
            "strip_any_host_port",
            "strip_matching_host_port is said too",
        );
    }
    Some(HttpConnectionManager {
        stat_prefix: Some(reader.text("stat_prefix"))
            .filter(|prefix| !prefix.is_empty())
            .unwrap_or_else(|| "http".to_owned()),
        server_name: Some(reader.text("server_name"))
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "envoy".to_owned()),
        server_header: match reader.choice("server_header_transformation").as_str() {
            "APPEND_IF_ABSENT" => ServerHeader::AppendIfAbsent,
            "PASS_THROUGH" => ServerHeader::PassThrough,
            _ => ServerHeader::Overwrite,
        },
        via: reader.text("via"),
        use_remote_address: reader.is("use_remote_address"),
        skip_xff_append: reader.is("skip_xff_append"),
        request_id: RequestId {
            generate: reader.bool("generate_request_id").unwrap_or(true),
            preserve_external: reader.is("preserve_external_request_id"),
            always_in_response: reader.is("always_set_request_id_in_response"),
        },
        limits: limits(reader),
        timeouts: timeouts(reader),
        accept_http_10: flag("accept_http_10"),
        default_host_for_http_10: http1
            .map(|options| options.text("default_host_for_http_10"))
            .unwrap_or_default(),
        proper_case: key_format.is_some_and(|format| format.has("proper_case_words")),
        paths: PathRules {
            normalize: reader.is("normalize_path"),
            merge_slashes: reader.is("merge_slashes"),
        },
        strip_host_port: match (strip_any, strip_matching) {
            (true, _) => StripPort::Any,
            (_, true) => StripPort::Matching,
            _ => StripPort::Never,
        },
        upgrades: upgrades(reader),
        passes_informational: reader.is("proxy_100_continue"),
        trailers: flag("enable_trailers"),
        suppress_envoy_headers,
        filters,
        local_replies: local_reply::replies(reader),
        routes,
        rds: rds.is_some(),
    })
}

/// Of a connection manager, or of a route.
pub(super) fn upgrades(reader: &Reader<'_>) -> Vec<Upgrade> {
    let mut upgrades: Vec<Upgrade> = Vec::new();
    for config in reader.list("upgrade_configs") {
        let name = config.text("upgrade_type");
        let is_known = upgrades
            .iter()
            .any(|known| known.name.eq_ignore_ascii_case(&name));
        if name.is_empty() {
            config.fault("upgrade_type", "is required");
        } else if name.eq_ignore_ascii_case("connect-udp") {
            config.fault("upgrade_type", format!("{name} is not supported"));
        } else if is_known {
            config.fault("upgrade_type", format!("{name} is said twice"));
        }
        upgrades.push(Upgrade {
            name,
            enabled: config.bool("enabled").unwrap_or(true),
        });
    }
    upgrades
}

/// None, as long as no file with them was right: every request is answered with 404 then.
fn by_rds(rds: &Reader<'_>) -> RouteConfiguration {
    let name = rds.text("route_config_name");
    if name.is_empty() {
        rds.fault("route_config_name", "is required");
    }
    let Some(source) = rds.required("config_source", rds.message("config_source")) else {
        return RouteConfiguration::default();
    };
    let found = sources::read(&source, Kind::Routes, &name, |readers| {
        sources::only(readers, "name", &name).map(|reader| {
            not_validated(&reader);
            route::configuration(&reader)
        })
    });
    found.flatten().unwrap_or_default()
}

/// A cluster that they name may come later, or never.
fn not_validated(routes: &Reader<'_>) {
    if routes.is("validate_clusters") {
        routes.fault("validate_clusters", "not supported for these routes");
    }
}

fn limits(reader: &Reader<'_>) -> HttpLimits {
    let common = reader.message("common_http_protocol_options");
    let common = |name| common.as_ref().and_then(|options| options.u32(name));
    let kib = reader.u32("max_request_headers_kb").unwrap_or(HEADER_KIB);
    if !(8..=8192).contains(&kib) {
        reader.fault("max_request_headers_kb", "from 8 to 8192 are supported");
    }
    let headers = common("max_headers_count").unwrap_or(HEADERS);
    // Hyper keeps room for so many while it reads a head, and more than 24,000 are no request to it but a panic.
    if !(1..=8192).contains(&headers) {
        let field = "common_http_protocol_options.max_headers_count";
        reader.fault(field, "from 1 to 8192 are supported");
    }
    HttpLimits {
        header_bytes: kib as usize * 1024,
        headers: headers as usize,
        requests_per_connection: common("max_requests_per_connection").unwrap_or_default(),
    }
}

fn timeouts(reader: &Reader<'_>) -> HttpTimeouts {
    let common = reader.message("common_http_protocol_options");
    let common = |name| common.as_ref().and_then(|options| options.duration(name));
    HttpTimeouts {
        idle: common("idle_timeout").unwrap_or(IDLE),
        stream_idle: reader
            .duration("stream_idle_timeout")
            .unwrap_or(STREAM_IDLE),
        request: reader.duration("request_timeout").unwrap_or_default(),
        request_headers: reader
            .duration("request_headers_timeout")
            .unwrap_or_default(),
        connection: common("max_connection_duration").unwrap_or_default(),
        drain: reader.duration("drain_timeout").unwrap_or(DRAIN),
    }
}
