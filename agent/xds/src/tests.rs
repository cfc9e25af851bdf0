mod properties;
mod sources;

use shunt_core::listener::NetworkFilter;
use shunt_core::route::Action;

use super::*;

const PROXY: &str = r#"
node: {id: n1, cluster: c}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
static_resources:
  listeners:
  - name: web
    address: {socket_address: {address: 10.0.0.1, port_value: 80}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          use_remote_address: true
          requestTimeout: 1.5s
          route_config:
            name: local
            virtual_hosts:
            - name: all
              domains: ["*"]
              request_headers_to_add: [{header: {key: X-From, value: "%REQ(x-user)%"}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]
              routes:
              - match: {prefix: /a, headers: [{name: x-v, string_match: {exact: "2"}}]}
                route: {weighted_clusters: {clusters: [{name: one, weight: 1}, {name: two, weight: 3}]}, prefix_rewrite: /b}
              - match: {path: /hello}
                direct_response: {status: 200, body: {inline_string: "hi\n"}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - {name: one, connect_timeout: 0.25s, load_assignment: {cluster_name: one, endpoints: [{lb_endpoints: [
      {endpoint: {address: {socket_address: {address: 10.0.0.2, port_value: 8080}}}, load_balancing_weight: 2},
      {endpoint: {address: {socket_address: {address: 10.0.0.3, port_value: 8080}}}, health_status: UNHEALTHY}]}]}}
  - {name: two, load_assignment: {cluster_name: two}}
"#;

fn read(text: &str) -> Result<Loaded, String> {
    parse(text, Path::new("b.yaml")).map_err(|error| error.to_string())
}

#[test]
fn a_bootstrap_becomes_what_the_proxy_serves() {
    let loaded = read(PROXY).unwrap_or_else(|faults| panic!("{faults}"));
    let notes: Vec<_> = loaded
        .notes
        .iter()
        .map(|note| note.field.as_str())
        .collect();
    for field in ["node", "admin"] {
        assert!(notes.contains(&field), "{field} in {notes:?}");
    }
    let bootstrap = loaded.bootstrap;
    let listener = &bootstrap.listeners[0];
    assert_eq!(listener.addr.to_string(), "10.0.0.1:80");
    let NetworkFilter::Http(http) = &listener.chains[0].filter else {
        panic!("{listener:?}")
    };
    assert!(http.use_remote_address && http.request_id.generate);
    assert_eq!(http.timeouts.request.as_millis(), 1500);
    assert_eq!(http.routes.clusters(), ["one", "two"]);
    let host = &http.routes.virtual_hosts[0];
    assert_eq!(host.mutations.request.add[0].name, "x-from");
    let Action::Respond(direct) = &host.routes[1].action else {
        panic!("{host:?}")
    };
    assert_eq!(direct.body, b"hi\n");
    let one = &bootstrap.clusters[0];
    assert_eq!(one.connect_timeout.as_millis(), 250);
    assert_eq!(one.endpoints.len(), 1);
    assert_eq!(one.endpoints[0].weight, 2);
    assert!(bootstrap.clusters[1].endpoints.is_empty());
    // Both processes see the same.
    let text = serde_json::to_string(&bootstrap).expect("JSON");
    let back: Bootstrap = serde_json::from_str(&text).expect("JSON");
    assert_eq!(back, bootstrap);
}

#[test]
fn every_fault_is_told_with_its_line_and_path() {
    let text = PROXY
        .replace("stat_prefix: ingress", "tracing: {}")
        .replace("prefix: /a,", "prefix: /a, grpc: {},")
        .replace("weight: 1}", "weight: 1, wieght: 2}")
        .replace(
            "connect_timeout: 0.25s",
            "connect_timeout: fast, outlier_detection: {}",
        )
        .replace("port_value: 80}", "port_value: 80000}")
        .replace("{name: two, load", "{name: three, type: STRICT_DNS, load");
    let faults = read(&text).expect_err("faults");
    for fault in [
        "b.yaml:7: static_resources.listeners[0].address.socket_address.port_value: 80000 is no port",
        "b.yaml:13: static_resources.listeners[0].filter_chains[0].filters[0].typed_config.tracing: not supported",
        "routes[0].match.grpc: not supported",
        "clusters[0].wieght: envoy.config.route.v3.WeightedCluster.ClusterWeight has no such field",
        "static_resources.clusters[0].connect_timeout: `fast` is not a duration",
        "static_resources.clusters[0].outlier_detection: not supported",
        "static_resources.clusters[1].type: only STATIC, EDS and ORIGINAL_DST are supported",
    ] {
        assert!(faults.contains(fault), "{fault} in\n{faults}");
    }
}

#[test]
fn what_hangs_together_is_checked() {
    let missing = read(&PROXY.replace("name: two, load", "name: three, load"));
    assert!(
        missing
            .expect_err("a fault")
            .contains("there is no cluster `two`")
    );
    let lua = "envoy.extensions.filters.http.lua.v3.Lua";
    let filter = read(&PROXY.replace("envoy.extensions.filters.http.router.v3.Router", lua));
    let faults = filter.expect_err("a fault");
    assert!(
        faults.contains(&format!(
            "http_filters[0].typed_config: not supported: {lua}"
        )),
        "{faults}"
    );
    let both = read(&PROXY.replace("prefix: /a,", "prefix: /a, path: /b,"));
    assert!(both.expect_err("a fault").contains("prefix is said too"));
    let host = read(&PROXY.replace("key: X-From", "key: Host"));
    assert!(host.expect_err("a fault").contains("may not be changed"));
}

/// What [`PROXY`]'s cluster `one` says of its upstream connections.
fn upstream(said: &str) -> String {
    let faults = read(&PROXY.replace("connect_timeout: 0.25s", said));
    faults.expect_err("a fault")
}

#[test]
fn what_only_clients_connections_have_is_refused_of_upstreams() {
    for option in [
        "header_key_format: {proper_case_words: {}}",
        "accept_http_10: true",
        "default_host_for_http_10: a.test",
        "allow_absolute_url: true",
    ] {
        let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        let faults = upstream(&format!(
            "typed_extension_protocol_options: {{{options}: {{'@type': type.googleapis.com/{options}, explicit_http_config: {{http_protocol_options: {{{option}}}}}}}}}"
        ));
        let field = option.split(':').next().expect("a field");
        let fault = format!(
            ".explicit_http_config.http_protocol_options.{field}: not supported for upstreams"
        );
        assert!(faults.contains(&fault), "{faults}");
    }
}

#[test]
fn what_would_be_empty_in_a_header_is_refused_there() {
    for format in [
        "LOCAL_REPLY_BODY",
        "RESPONSE_FLAGS",
        "RESPONSE_CODE_DETAILS",
        "DURATION",
    ] {
        let faults = read(&PROXY.replace("%REQ(x-user)%", &format!("a %{format}%")));
        let faults = faults.expect_err("a fault");
        let path = "virtual_hosts[0].request_headers_to_add[0].header.value: ";
        assert!(
            faults.contains(path) && faults.contains("in local_reply_config only"),
            "{faults}"
        );
    }
    let mapper = "local_reply_config: {mappers: [{filter: {status_code_filter: {comparison: {op: EQ, value: {default_value: 404, runtime_key: x}}}}, headers_to_add: [{header: {key: x-why, value: '%RESPONSE_CODE_DETAILS%'}}]}]}";
    let ours = read(&PROXY.replace("use_remote_address: true", mapper));
    assert!(ours.is_ok(), "{ours:?}");
}

#[test]
fn what_would_change_traffic_is_not_passed_over() {
    for (with, without, fault) in [
        (
            "http_protocol_options: {allow_absolute_url: false}",
            "use_remote_address: true",
            "http_protocol_options.allow_absolute_url: only true is supported",
        ),
        (
            "priority: HIGH, prefix_rewrite: /b",
            "prefix_rewrite: /b",
            "routes[0].route.priority: only DEFAULT is supported",
        ),
    ] {
        let faults = read(&PROXY.replace(without, with)).expect_err("a fault");
        assert!(faults.contains(fault), "{faults}");
    }
    // Where they are validated they may say so.
    let validated = PROXY.replace(
        "name: local",
        "name: local\n            validate_clusters: true",
    );
    assert!(read(&validated).is_ok());
    let later = read(&(validated + "dynamic_resources: {cds_config: {path: /none}}\n"));
    let fault = "route_config.validate_clusters: not supported for these routes";
    assert!(later.expect_err("a fault").contains(fault));
}

#[test]
fn no_transport_but_the_plain_one_is_taken_for_it() {
    let tls = "transport_socket: {name: envoy.transport_sockets.tls}";
    let of_cluster = upstream(tls);
    let chain = format!("filter_chains:\n    - {tls}\n      filters:");
    let of_chain = read(&PROXY.replace("filter_chains:\n    - filters:", &chain));
    for faults in [of_cluster, of_chain.expect_err("a fault")] {
        let fault = "transport_socket.typed_config: only raw_buffer is supported";
        assert!(faults.contains(fault), "{faults}");
    }
}

#[test]
fn upgrades_are_read_and_what_is_none_is_refused() {
    let connect = "{upgrade_type: CONNECT, connect_config: {}}";
    let text = PROXY.replace(
        "prefix_rewrite: /b",
        &format!("upgrade_configs: [{connect}]"),
    );
    let loaded = read(&text).unwrap_or_else(|faults| panic!("{faults}"));
    let NetworkFilter::Http(http) = &loaded.bootstrap.listeners[0].chains[0].filter else {
        panic!("HTTP")
    };
    let Action::Forward(forward) = &http.routes.virtual_hosts[0].routes[0].action else {
        panic!("a cluster")
    };
    assert!(forward.terminates_connect);
    assert_eq!(forward.upgrades[0].name, "CONNECT");
    for (config, fault) in [
        (
            "{upgrade_type: CONNECT-UDP}",
            "CONNECT-UDP is not supported",
        ),
        (
            "{enabled: true}",
            "upgrade_configs[0].upgrade_type: is required",
        ),
        ("{upgrade_type: a}, {upgrade_type: A}", "A is said twice"),
        (
            "{upgrade_type: a, connect_config: {}}",
            "is for upgrades of type CONNECT",
        ),
        (
            "{upgrade_type: CONNECT, connect_config: {allow_post: true}}",
            "connect_config.allow_post: not supported",
        ),
    ] {
        let faults = read(&text.replace(connect, config)).expect_err("a fault");
        assert!(faults.contains(fault), "{fault} in\n{faults}");
    }
}

#[test]
fn a_bootstrap_is_told_from_the_agents_own_file() {
    assert!(is_bootstrap(PROXY));
    assert!(is_bootstrap("{\"staticResources\": {}}"));
    assert!(!is_bootstrap("mode: auto\nadmin: {socket: /x}\n"));
    assert!(!is_bootstrap("- a\n"));
}

#[test]
fn the_table_says_no_more_than_is_read() {
    // A field is read by its name in the conversion, or its message is.
    let sources = [
        include_str!("convert.rs"),
        include_str!("convert/cluster.rs"),
        include_str!("convert/filters.rs"),
        include_str!("convert/filters/buffer.rs"),
        include_str!("convert/filters/cors.rs"),
        include_str!("convert/filters/header_mutation.rs"),
        include_str!("convert/filters/health_check.rs"),
        include_str!("convert/local_reply.rs"),
        include_str!("convert/http.rs"),
        include_str!("convert/listener.rs"),
        include_str!("convert/matchers.rs"),
        include_str!("convert/route.rs"),
        include_str!("convert/sources.rs"),
        include_str!("convert/subsets.rs"),
        include_str!("files.rs"),
        include_str!("convert/values.rs"),
    ]
    .concat();
    for row in support::rows() {
        for field in row.fields {
            let by_kind = field
                .name
                .strip_prefix("request")
                .or_else(|| field.name.strip_prefix("response"));
            let name = match by_kind {
                Some(rest) if rest.starts_with("_headers_to_") => format!("{{kind}}{rest}"),
                _ => field.name.to_owned(),
            };
            let read = sources.contains(&format!("\"{name}\""));
            let honoured = support::is_honoured(row.message, field.name);
            // Names of extensions say nothing: their types do.
            let told =
                field.name == "name" && row.fields.iter().any(|field| field.name == "typed_config");
            assert!(
                !honoured || read || told,
                "{}.{} is never read",
                row.message,
                field.name
            );
        }
    }
}
