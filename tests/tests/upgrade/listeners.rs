//! Listeners in the node's own name.

use std::fs;
use std::time::Duration;

use shunt_tests::{AgentBuilder, Pair, Pod, wait};

use crate::scene::{Wrk, one_is_left, upgraded_of};

/// HTTP on port 80, TCP on port 81, both to nginx.
fn bootstrap(gateway: &Pod, server: &Pod) -> String {
    let (gateway, server) = (&gateway.v4, &server.v4);
    let type_of =
        |name: &str| format!("\"@type\": type.googleapis.com/envoy.extensions.filters.{name}");
    let listener = |name: &str, port: u16, filter: &str| {
        format!(
            "  - name: {name}\n    address: {{socket_address: {{address: {gateway}, port_value: {port}}}}}\n    \
             filter_chains: [{{filters: [{{name: {name}, typed_config: {{{filter}, stat_prefix: {name}"
        )
    };
    let manager = type_of("network.http_connection_manager.v3.HttpConnectionManager");
    let router = type_of("http.router.v3.Router");
    let http = listener("web", 80, &manager)
        + ", route_config: {virtual_hosts: [{name: all, domains: [\"*\"], routes: [{match: {prefix: /}, \
           route: {cluster: server}}]}]}, http_filters: [{name: router, typed_config: {"
        + &router
        + "}}]}}]}]\n";
    let tcp =
        listener("tcp", 81, &type_of("network.tcp_proxy.v3.TcpProxy")) + ", cluster: server}}]}]\n";
    format!(
        "static_resources:\n  listeners:\n{http}{tcp}  clusters:\n  - name: server\n    \
         load_assignment: {{cluster_name: server, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
         {{socket_address: {{address: {server}, port_value: 80}}}}}}}}]}}]}}\n"
    )
}

#[test]
fn listeners_of_the_bootstrap_notice_no_upgrade() {
    let pair = Pair::new();
    let gateway = pair.world.pod();
    let _nginx = pair.server.nginx(&pair.world);
    let file = pair.world.dir.path().join("bootstrap.yaml");
    fs::write(&file, bootstrap(&gateway, &pair.server)).expect("written");
    let agent = AgentBuilder::new(&pair.world, "auto")
        .inside(&gateway)
        .set(&format!("bootstrap: {}", file.display()))
        .start();
    let [web, tcp] = [80, 81].map(|port| format!("http://{}:{port}/", gateway.v4));
    let kept = Wrk::start(&pair.client, &[], &web);
    let anew = Wrk::start(&pair.client, &["-H", "Connection: close"], &web);
    let bytes = Wrk::start(&pair.client, &["-H", "Connection: close"], &tcp);
    for round in 0..10 {
        // In turn: the data plane alone, and all of it.
        upgraded_of(&agent, ["data-plane", "all"][round % 2]);
        wait::until("requests to it", Duration::from_secs(20), || {
            let (_, stats) = agent.admin("GET", "/stats?filter=web.downstream_rq_total", "");
            let served: Option<u64> = stats.trim().rsplit(' ').next()?.parse().ok();
            (served > Some(100) && agent.worker_pids().len() < 4).then_some(())
        });
    }
    kept.end(1000);
    anew.end(300);
    bytes.end(300);
    one_is_left(&agent);
}
