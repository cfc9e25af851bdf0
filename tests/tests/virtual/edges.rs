//! What is between the two sides and beside them: policy, leaving, PROXY headers, destinations by header.

use std::time::Duration;

use shunt_tests::agent::entry;
use shunt_tests::{AgentBuilder, Script, Way, on_every_way, wait};

use crate::scene::{Listener, Scene, bootstrap, says, to};

on_every_way!(
    policy_is_asked_of_the_endpoint,
    connections_that_wait_for_requests_hold_nobody_up,
    a_header_may_name_the_destination,
    a_proxy_header_says_who_the_client_is,
);

fn policy_is_asked_of_the_endpoint(way: Way) {
    let scene = Scene::new();
    let listeners = [
        Listener::at("web", "OUTBOUND", "0.0.0.0", 81).http("", &to("server", "x-t-out", "yes")),
        Listener::at("tcp", "OUTBOUND", "0.0.0.0", 82).tcp("", "server"),
    ];
    let path = scene.write(&bootstrap(
        &listeners,
        &[("server", &scene.server.v4, 8080)],
    ));
    let rule = |action: &str| {
        format!(
            "policy: [{{action: {action}, direction: inbound, workload: {{name: server}}, ports: [8080]}}]"
        )
    };
    let agent = AgentBuilder::new(&scene.world, way.mode)
        .set(&format!("bootstrap: {}", path.display()))
        .set(&rule("allow"))
        .enrol("client", &scene.client, way.more)
        .enrol("server", &scene.server, way.more)
        .start();
    let nowhere = scene.nowhere();
    let (web, tcp) = (
        format!("http://{nowhere}:81/"),
        format!("http://{nowhere}:82/"),
    );
    assert!(scene.curl(&web).starts_with("/ "));
    assert!(scene.curl(&tcp).starts_with("/ "));
    // A connection that waits in the pool is not used against the rules either.
    agent.edit("policy", "action: allow", "action: deny");
    let told = scene
        .client
        .says("curl", &["-sS", "-m", "5", "-w", " %{http_code}", &web]);
    assert_eq!(told, "RBAC: access denied 403");
    let reset = scene.fails(&tcp);
    assert!(matches!(reset, Some(7 | 52 | 56)), "{reset:?}");
}

/// Upstream connections for a workload's requests end when it leaves, and so does what they need.
fn connections_that_wait_for_requests_hold_nobody_up(way: Way) {
    let scene = Scene::new();
    let listeners = [
        Listener::at("out", "OUTBOUND", "0.0.0.0", 8080)
            .http("", &to("passthrough", "x-t-out", "yes")),
        Listener::at("in", "INBOUND", "0.0.0.0", 8080)
            .http("", &to("passthrough", "x-t-in", "yes")),
    ];
    let before = [scene.client.state(), scene.server.state()];
    let agent = scene.agent(way, &bootstrap(&listeners, &[]));
    assert!(
        scene
            .curl(&scene.told_at())
            .ends_with("x-t-in=yes x-t-out=yes")
    );
    agent.rewrite(&[entry("client", &scene.client, way.more)]);
    wait::until("the server has left", Duration::from_secs(5), || {
        (scene.server.state() == before[1]).then_some(())
    });
    assert!(scene.curl(&scene.told_at()).ends_with(" x-t-out=yes"));
    agent.rewrite(&[]);
    wait::until("the client has left", Duration::from_secs(5), || {
        (scene.client.state() == before[0]).then_some(())
    });
}

fn a_header_may_name_the_destination(way: Way) {
    let scene = Scene::new();
    let text = bootstrap(
        &[Listener::rest("rest", "OUTBOUND").http("", &to("passthrough", "x-t-out", "yes"))],
        &[],
    );
    let text = text.replace(
        "lb_policy: CLUSTER_PROVIDED",
        "lb_policy: CLUSTER_PROVIDED, original_dst_lb_config: {use_http_header: true, upstream_port_override: 8080}",
    );
    let _agent = scene.agent(way, &text);
    let named = format!("x-envoy-original-dst-host: {}:1", scene.server.v4);
    let url = format!("http://{}:81/", scene.nowhere());
    let told = scene
        .client
        .says("curl", &["-sS", "-m", "5", "-H", &named, &url]);
    assert!(
        told.starts_with(&format!("/ {} ", scene.client.v4)),
        "{told}"
    );
    // Without it, the port alone is another.
    let url = format!("http://{}:81/", scene.server.v4);
    assert!(scene.curl(&url).ends_with("x-t-out=yes"));
}

/// It chooses the chain and is told on; connections to the application stay the client's own.
fn a_proxy_header_says_who_the_client_is(way: Way) {
    let scene = Scene::new();
    let hosts = to(
        "passthrough",
        "x-t-from",
        "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    );
    let listener = Listener::at("in", "INBOUND", "0.0.0.0", 8080)
        .filter("proxy_protocol")
        .http(
            "source_prefix_ranges: [{address_prefix: 192.0.2.0, prefix_len: 24}]",
            &hosts,
        )
        .http("", &says("stranger"));
    let _agent = scene.agent(way, &bootstrap(&[listener], &[]));
    let script = format!(
        "
import socket, sys
def asks(header):
    with socket.create_connection(('{}', 8080), 5) as server:
        server.sendall(header)
        server.sendall(b'GET /a HTTP/1.1\\r\\nhost: a\\r\\nconnection: close\\r\\n\\r\\n')
        try: print(b''.join(iter(lambda: server.recv(1000), b'')).decode().split('\\r\\n\\r\\n')[-1])
        except OSError as error: print(type(error).__name__)
asks(b'PROXY TCP4 192.0.2.7 192.0.2.8 4000 80\\r\\n')
asks(bytes.fromhex('0d0a0d0a000d0a515549540a2111000c') + bytes([192, 0, 2, 9, 192, 0, 2, 8, 0, 1, 0, 2]))
asks(b'PROXY UNKNOWN\\r\\n')
asks(b'')
",
        scene.server.v4
    );
    for pod in [&scene.other, &scene.client] {
        let mut asker = Script::start(pod, &script, &[]);
        let told = asker.says();
        let is_right = told.starts_with(&format!("/a {} ", pod.v4));
        assert!(is_right && told.ends_with("x-t-from=192.0.2.7"), "{told}");
        let told = asker.says();
        assert!(told.ends_with("x-t-from=192.0.2.9"), "{told}");
        assert_eq!(asker.says(), "stranger");
        assert_eq!(asker.says(), "ConnectionResetError");
        asker.succeeds();
    }
}
