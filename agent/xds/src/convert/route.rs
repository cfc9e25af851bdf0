//! Route configurations.

use std::collections::HashSet;
use std::time::Duration;

use shunt_core::cluster::Weighted;
use shunt_core::cluster::subsets::Metadata;
use shunt_core::route::template::Template;
use shunt_core::route::{
    Action, ClusterChoice, DirectResponse, Forward, HostRewrite, Mutations, PathMatch, Redirect,
    RedirectPath, Rewrite, Route, RouteConfiguration, RouteMatch, Target, VirtualHost,
};

use super::filters::per_filter;
use super::http::upgrades;
use super::matchers::{route_match, substitution, template};
use super::subsets::metadata;
use super::unique;
use super::values::{data, is_token, mutations, status};
use crate::reader::Reader;

const TEMPLATE_REWRITE: &str =
    "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig";
/// Envoy's.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes; Envoy's.
const MAX_DIRECT_BODY: u32 = 4096;

pub(super) fn configuration(reader: &Reader<'_>) -> RouteConfiguration {
    let limit = reader.u32("max_direct_response_body_size_bytes");
    let limit = limit.unwrap_or(MAX_DIRECT_BODY) as usize;
    let hosts = reader.list("virtual_hosts");
    unique(&hosts, |host| host.text("name"), "name");
    let virtual_hosts: Vec<_> = hosts.iter().map(|host| virtual_host(host, limit)).collect();
    let mut domains = HashSet::new();
    for (host, reader) in virtual_hosts.iter().zip(&hosts) {
        for domain in &host.domains {
            if !domains.insert(domain) {
                reader.fault("domains", format!("`{domain}` is there twice"));
            }
        }
    }
    RouteConfiguration {
        name: reader.text("name"),
        virtual_hosts,
        ignore_port: reader.is("ignore_port_in_host_matching"),
        mutations: mutations(reader),
        filters: per_filter(reader),
        most_specific_wins: reader.is("most_specific_header_mutations_wins"),
    }
}

fn virtual_host(reader: &Reader<'_>, limit: usize) -> VirtualHost {
    let name = reader.text("name");
    if name.is_empty() {
        reader.fault("name", "is required");
    }
    let domains = reader.texts("domains");
    if domains.is_empty() {
        reader.fault("domains", "is required");
    }
    for domain in &domains {
        let inner = domain
            .strip_prefix('*')
            .or_else(|| domain.strip_suffix('*'));
        if domain.is_empty() || inner.unwrap_or(domain).contains('*') {
            reader.fault(
                "domains",
                format!("`{domain}` has a `*` that is neither first nor last"),
            );
        }
    }
    let require_tls = match reader.choice("require_tls").as_str() {
        "NONE" => false,
        "ALL" => true,
        other => {
            reader.fault(
                "require_tls",
                format!("{other} is not supported (NONE, ALL)"),
            );
            false
        }
    };
    let routes = reader.list("routes");
    VirtualHost {
        name,
        domains: domains
            .iter()
            .map(|domain| domain.to_ascii_lowercase())
            .collect(),
        require_tls,
        routes: routes
            .iter()
            .filter_map(|reader| route(reader, limit))
            .collect(),
        mutations: mutations(reader),
        filters: per_filter(reader),
    }
}

fn route(reader: &Reader<'_>, limit: usize) -> Option<Route> {
    let matches = reader.required("match", reader.message("match"));
    let matches = matches.and_then(|matches| route_match(&matches));
    let action = if let Some(forward) = reader.message("route") {
        let template = reader.message("match").and_then(|matches| {
            matches
                .message("path_match_policy")
                .map(|policy| self::template(&policy))
        });
        self::forward(&forward, template.flatten().as_ref())
            .map(Box::new)
            .map(Action::Forward)
    } else if let Some(redirect) = reader.message("redirect") {
        Some(Action::Redirect(Box::new(self::redirect(&redirect))))
    } else if let Some(response) = reader.message("direct_response") {
        Some(Action::Respond(direct_response(&response, limit)))
    } else {
        reader.fault("", "says no action (route, redirect, direct_response)");
        None
    };
    let (matches, action) = (matches?, action?);
    check_rewrite(reader, &matches, &action);
    Some(Route {
        name: reader.text("name"),
        matches,
        action,
        mutations: mutations(reader),
        filters: per_filter(reader),
    })
}

/// A rewritten prefix that is no path would send upstreams what is no request.
fn check_rewrite(reader: &Reader<'_>, matches: &RouteMatch, action: &Action) {
    if let (Action::Forward(forward), PathMatch::Regex(_)) = (action, &matches.path)
        && matches!(forward.rewrite, Some(Rewrite::Prefix(_)))
    {
        reader.fault(
            "route.prefix_rewrite",
            "replaces the whole path where safe_regex matches: say regex_rewrite",
        );
    }
}

fn forward(reader: &Reader<'_>, matched: Option<&Template>) -> Option<Forward> {
    let not_found = reader.choice("cluster_not_found_response_code");
    let metadata = metadata(reader, "metadata_match");
    if reader.choice("priority") != "DEFAULT" {
        reader.fault("priority", "only DEFAULT is supported");
    }
    Some(Forward {
        target: target(reader, &metadata)?,
        metadata,
        cluster_not_found: match not_found.as_str() {
            "NOT_FOUND" => 404,
            "INTERNAL_SERVER_ERROR" => 500,
            _ => 503,
        },
        rewrite: rewrite(reader).or_else(|| template_rewrite(reader, matched)),
        host: host_rewrite(reader),
        host_of_endpoint: reader.is("auto_host_rewrite"),
        append_x_forwarded_host: reader.is("append_x_forwarded_host"),
        timeout: reader.duration("timeout").unwrap_or(TIMEOUT),
        idle_timeout: reader.duration("idle_timeout"),
        upgrades: upgrades(reader),
        terminates_connect: terminates_connect(reader),
    })
}

fn terminates_connect(reader: &Reader<'_>) -> bool {
    let mut terminates = false;
    for config in reader.list("upgrade_configs") {
        if config.message("connect_config").is_some() {
            let name = config.text("upgrade_type");
            if !name.eq_ignore_ascii_case("connect") {
                let message = format!("is for upgrades of type CONNECT, and this is {name}");
                config.fault("connect_config", message);
            }
            terminates |= config.bool("enabled").unwrap_or(true);
        }
    }
    terminates
}

fn target(reader: &Reader<'_>, wanted: &Metadata) -> Option<Target> {
    if reader.has("cluster_header") {
        let name = reader.text("cluster_header");
        if !is_token(name.trim_start_matches(':')) {
            reader.fault("cluster_header", format!("`{name}` is no header name"));
        }
        return Some(Target::Header(name.to_ascii_lowercase()));
    }
    if let Some(weighted) = reader.message("weighted_clusters") {
        let choices = weighted.list("clusters");
        let choices = choices.iter().map(|choice| {
            let cluster = ClusterChoice {
                name: choice.text("name"),
                mutations: mutations(choice),
                filters: per_filter(choice),
                host: Some(choice.text("host_rewrite_literal")).filter(|host| !host.is_empty()),
                metadata: {
                    let mut both = wanted.clone();
                    both.extend(metadata(choice, "metadata_match"));
                    both
                },
            };
            (choice.u32("weight").unwrap_or_default(), cluster)
        });
        let clusters = Weighted::new(choices.collect());
        if clusters.is_none() {
            weighted.fault(
                "clusters",
                "the sum of the weights must be from 1 to 4294967295",
            );
        }
        return clusters.map(Target::Clusters);
    }
    let name = reader.text("cluster");
    if name.is_empty() {
        reader.fault(
            "",
            "says no cluster (cluster, cluster_header, weighted_clusters)",
        );
        return None;
    }
    Some(Target::Clusters(Weighted::only(ClusterChoice {
        name,
        mutations: Mutations::default(),
        filters: Vec::new(),
        host: None,
        metadata: wanted.clone(),
    })))
}

fn rewrite(reader: &Reader<'_>) -> Option<Rewrite> {
    let prefix = reader.text("prefix_rewrite");
    let regex = reader.message("regex_rewrite");
    if !prefix.is_empty() && regex.is_some() {
        reader.fault("regex_rewrite", "prefix_rewrite is said too");
    }
    if !prefix.is_empty() && !prefix.starts_with('/') {
        reader.fault("prefix_rewrite", "must start with `/`");
    }
    match regex {
        Some(regex) => substitution(&regex).map(|(pattern, text)| Rewrite::Regex(pattern, text)),
        None if prefix.is_empty() => None,
        None => Some(Rewrite::Prefix(prefix)),
    }
}

/// Of a path that matched a template.
fn template_rewrite(reader: &Reader<'_>, matched: Option<&Template>) -> Option<Rewrite> {
    let policy = reader.message("path_rewrite_policy")?;
    if reader.has("prefix_rewrite") || reader.has("regex_rewrite") {
        reader.fault("path_rewrite_policy", "another rewrite is said too");
    }
    let inner = policy
        .message("typed_config")
        .and_then(|any| any.unpacked());
    let inner = policy.required("typed_config", inner)?;
    if inner.type_name() != TEMPLATE_REWRITE {
        policy.fault(
            "typed_config",
            format!("only {TEMPLATE_REWRITE} is supported"),
        );
        return None;
    }
    let Some(matched) = matched else {
        reader.fault("path_rewrite_policy", "match has no path_match_policy");
        return None;
    };
    let text = inner.parsed("path_template_rewrite", |text| matched.substitution(text))?;
    Some(Rewrite::Regex(matched.pattern.clone(), text))
}

fn host_rewrite(reader: &Reader<'_>) -> Option<HostRewrite> {
    if let Some(regex) = reader.message("host_rewrite_path_regex") {
        return substitution(&regex).map(|(pattern, text)| HostRewrite::PathRegex(pattern, text));
    }
    let literal = reader.text("host_rewrite_literal");
    let header = reader.text("host_rewrite_header");
    match (literal.is_empty(), header.is_empty()) {
        (false, _) => Some(HostRewrite::Literal(literal)),
        (_, false) => Some(HostRewrite::Header(header.to_ascii_lowercase())),
        _ => None,
    }
}

fn redirect(reader: &Reader<'_>) -> Redirect {
    let scheme = reader.text("scheme_redirect");
    let https = reader.is("https_redirect").then(|| "https".to_owned());
    let port = reader.u32("port_redirect").filter(|port| *port > 0);
    let port = port.map(|port| {
        u16::try_from(port).unwrap_or_else(|_| {
            reader.fault("port_redirect", format!("{port} is no port"));
            0
        })
    });
    let path = reader.text("path_redirect");
    Redirect {
        status: match reader.choice("response_code").as_str() {
            "FOUND" => 302,
            "SEE_OTHER" => 303,
            "TEMPORARY_REDIRECT" => 307,
            "PERMANENT_REDIRECT" => 308,
            _ => 301,
        },
        scheme: https.or(Some(scheme).filter(|scheme| !scheme.is_empty())),
        host: Some(reader.text("host_redirect")).filter(|host| !host.is_empty()),
        port,
        path: match rewrite(reader) {
            Some(rewrite) => RedirectPath::Rewrite(rewrite),
            None if path.is_empty() => RedirectPath::Same,
            None => RedirectPath::Path(path),
        },
        strip_query: reader.is("strip_query"),
    }
}

fn direct_response(reader: &Reader<'_>, limit: usize) -> DirectResponse {
    let body = reader.message("body");
    let body = body.map(|body| data(&body)).unwrap_or_default();
    if body.len() > limit {
        let message = format!("{} bytes, more than the {limit} allowed", body.len());
        reader.fault("body", message);
    }
    DirectResponse {
        status: status(reader, "status"),
        body,
    }
}
