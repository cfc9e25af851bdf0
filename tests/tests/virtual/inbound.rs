//! The server's side, and both at once.

use std::time::Duration;

use shunt_tests::{Script, Way, on_every_way, wait};

use crate::scene::{Listener, Scene, bootstrap, says, to};

on_every_way!(
    who_comes_from_elsewhere_meets_the_server_s_listener,
    a_call_runs_both_sides_in_one_pass,
    the_server_s_listener_is_met_by_bytes_too,
    the_server_s_answer_passes_the_client_s_rules,
    a_server_has_not_a_socket_for_each_client_it_ever_had,
);

const PATIENCE: Duration = Duration::from_secs(5);

/// As Istio has them: for the rest, with a chain for the port.
fn inbound(cluster: &str) -> Listener {
    let hosts = to(cluster, "x-t-inbound", "server");
    Listener::rest("in", "INBOUND")
        .http("destination_port: 8080", &hosts)
        .tcp("", "passthrough")
}

fn who_comes_from_elsewhere_meets_the_server_s_listener(way: Way) {
    let scene = Scene::new();
    let listeners = [
        inbound("passthrough"),
        Listener::at("local", "INBOUND", "0.0.0.0", 8080).http("", &to("app", "x-t-local", "yes")),
    ];
    let agent = scene.agent(way, &bootstrap(&listeners[..1], &[]));
    let url = scene.told_at();
    let asks = || {
        scene.other.says(
            "curl",
            &["-sS", "-m", "5", &format!("{url}/a"), &format!("{url}/b")],
        )
    };
    let other = &scene.other.v4;
    assert_eq!(
        asks(),
        format!("/a {other} 1 x-t-inbound=server/b {other} 1 x-t-inbound=server")
    );
    let lines = scene.connections(&agent, 1);
    assert_eq!(lines[0]["workload"], "default/server", "{:#}", lines[0]);
    assert_eq!(lines[0]["direction"], "inbound", "{:#}", lines[0]);
    // The application as it is reached from inside.
    scene.write(&bootstrap(&listeners[1..], &[("app", "127.0.0.1", 8080)]));
    wait::until("the change", PATIENCE, || {
        (asks().contains("127.0.0.1") && asks().contains("x-t-local=yes")).then_some(())
    });
}

/// The server sees what both have added, one connection, and the client's own address; the log has one line.
fn a_call_runs_both_sides_in_one_pass(way: Way) {
    let scene = Scene::new();
    let hosts = to("passthrough", "x-t-outbound", "%DOWNSTREAM_LOCAL_ADDRESS%");
    let outbound = Listener::at("out", "OUTBOUND", "0.0.0.0", 8080).http("", &hosts);
    let agent = scene.agent(way, &bootstrap(&[outbound, inbound("passthrough")], &[]));
    let url = scene.told_at();
    let told = scene.client.says(
        "curl",
        &["-sS", "-m", "5", &format!("{url}/a"), &format!("{url}/b")],
    );
    let (client, server) = (&scene.client.v4, &scene.server.v4);
    let rest = format!("{client} 1 x-t-inbound=server x-t-outbound={server}:8080");
    assert_eq!(told, format!("/a {rest}/b {rest}"));
    let lines = scene.connections(&agent, 1);
    let line = &lines[0];
    assert_eq!(line["workload"], "default/client", "{line:#}");
    assert_eq!(line["peer_workload"], "default/server", "{line:#}");
    assert_eq!(
        line["client"].as_str().and_then(|at| at.split(':').next()),
        Some(&**client)
    );
}

/// The client's side says nothing, or speaks of bytes only.
fn the_server_s_listener_is_met_by_bytes_too(way: Way) {
    let scene = Scene::new();
    let agent = scene.agent(way, &bootstrap(&[inbound("passthrough")], &[]));
    let url = scene.told_at();
    let told = format!("/a {} 1 x-t-inbound=server", scene.client.v4);
    assert_eq!(scene.curl(&format!("{url}/a")), told);
    let line = &scene.connections(&agent, 1)[0];
    assert_eq!(line["workload"], "default/client", "{line:#}");
    assert_eq!(line["peer_workload"], "default/server", "{line:#}");
    let query = format!(
        "/explain?workload=client&destination={}:8080",
        scene.server.v4
    );
    let answer = agent.admin("GET", &query, "").1;
    let reason = "listener `in` of the configuration is for it";
    assert_eq!(answer.contains(reason), way.mode == "ebpf", "{answer}");
    // What the server's chain for the rest passes on.
    let nginx = format!("http://{}/", scene.server.v4);
    assert_eq!(scene.curl(&nginx), scene.client.v4);
    let outbound = Listener::rest("out", "OUTBOUND").tcp("", "passthrough");
    scene.write(&bootstrap(&[outbound, inbound("passthrough")], &[]));
    wait::until("the change", PATIENCE, || {
        let dump = agent.admin("GET", "/listeners", "").1;
        dump.contains("out::").then_some(())
    });
    let told = scene.curl(&format!("{url}/a"));
    assert!(told.ends_with("x-t-inbound=server"), "{told}");
    assert_eq!(scene.curl(&nginx), scene.client.v4);
}

fn the_server_s_answer_passes_the_client_s_rules(way: Way) {
    let scene = Scene::new();
    let hosts = to("passthrough", "x-t-outbound", "yes").replace(
        "request_headers_to_add",
        "response_headers_to_add: [{header: {key: x-t-back, value: client}}], request_headers_to_add",
    );
    let listeners = [
        Listener::at("out", "OUTBOUND", "0.0.0.0", 8080).http("", &hosts),
        Listener::at("in", "INBOUND", "0.0.0.0", 8080).http("", &says("server")),
    ];
    let _agent = scene.agent(way, &bootstrap(&listeners, &[]));
    let url = scene.told_at();
    let told = scene.client.says("curl", &["-sSi", "-m", "5", &url]);
    assert!(told.ends_with("server"), "{told}");
    assert!(told.contains("x-t-back: client"), "{told}");
}

/// From a different address each time: asks, reads the answer, leaves.
const MANY: &str = r"
import socket, subprocess, sys
server, count = sys.argv[1], int(sys.argv[2])
clients = [f'10.66.{1 + at // 250}.{1 + at % 250}' for at in range(count)]
lines = ''.join(f'addr add {client}/32 dev eth0\n' for client in clients)
subprocess.run(['ip', '-batch', '-'], input=lines.encode(), check=True)
for client in clients:
    end = socket.create_connection((server, 8080), 10, (client, 0))
    end.sendall(b'GET /a HTTP/1.1\r\nhost: a\r\n\r\n')
    said = b''
    while f' {client} '.encode() not in said:
        got = end.recv(4096)
        assert got, said
        said += got
    end.close()
print('asked', flush=True)
";

fn a_server_has_not_a_socket_for_each_client_it_ever_had(way: Way) {
    const CLIENTS: usize = 400;
    /// Two workers keep so many each.
    const KEPT: usize = 2 * 128;
    let scene = Scene::new();
    let _agent = scene.agent(way, &bootstrap(&[inbound("passthrough")], &[]));
    let back = ["route", "add", "10.66.0.0/16", "dev", "eth0"];
    scene.server.says("ip", &back);
    let count = CLIENTS.to_string();
    let mut clients = Script::start(&scene.other, MANY, &[&scene.server.v4, &count]);
    assert_eq!(clients.says(), "asked");
    clients.succeeds();
    let waiting = || {
        let sockets = ["-Htn", "state", "established", "dport = :8080"];
        let listed = scene.server.says("ss", &sockets);
        listed.lines().filter(|line| !line.is_empty()).count()
    };
    wait::until("those that waited longest are gone", PATIENCE, || {
        (waiting() <= KEPT).then_some(())
    });
    // And the others are there for who comes back.
    assert!(waiting() > KEPT / 4, "{}", waiting());
}
