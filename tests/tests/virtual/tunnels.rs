//! Connections that become tunnels between two workloads of the node.

use std::time::Duration;

use shunt_tests::{Script, Way, on_every_way, wait};

use crate::scene::{Listener, Scene, bootstrap, to};

on_every_way!(
    an_upgrade_meets_both_sides,
    what_is_in_a_tunnel_meets_the_server_s_listener,
    what_comes_early_in_a_tunnel_is_counted_once,
);

const UPGRADES: &str = "upgrade_configs: [{upgrade_type: websocket}, {upgrade_type: CONNECT}],";

/// Says what came with the request, and then everything again.
const ECHO: &str = r"
import socket
listener = socket.create_server(('0.0.0.0', 8081))
print('ready', flush=True)
while True:
    end, (peer, _) = listener.accept()
    head = b''
    while not head.endswith(b'\r\n\r\n'): head += end.recv(1)
    mine = sorted(line for line in head.decode().lower().split('\r\n') if line.startswith(('x-t-', 'upgrade')))
    end.sendall(b'HTTP/1.1 101 Yes\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n')
    end.sendall(f'{mine} {peer}\n'.encode())
    while read := end.recv(65536): end.sendall(read)
    end.close()
";

const ASKS: &str = r"
import socket, sys
end = socket.create_connection((sys.argv[1], 8081), 5)
# The first bytes of the new protocol come with the request.
end.sendall(b'GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nearly, ')
end.sendall(b'late' + bytes(1000000))
end.shutdown(socket.SHUT_WR)
got = b''
while read := end.recv(65536): got += read
head, body = got.split(b'\r\n\r\n', 1)
print(head.decode().split('\r\n')[0])
said, rest = body.split(b'\n', 1)
print(said.decode())
print(rest.rstrip(b'\0').decode(), len(rest))
";

fn an_upgrade_meets_both_sides(way: Way) {
    let scene = Scene::new();
    let mut echo = Script::start(&scene.server, ECHO, &[]);
    assert_eq!(echo.says(), "ready");
    let side = |name, direction| {
        let hosts = to("passthrough", &format!("x-t-{name}"), "yes");
        Listener::at(name, direction, "0.0.0.0", 8081).manager("", &hosts, UPGRADES)
    };
    let listeners = [side("out", "OUTBOUND"), side("in", "INBOUND")];
    let agent = scene.agent(way, &bootstrap(&listeners, &[]));
    let mut asks = Script::start(&scene.client, ASKS, &[&scene.server.v4]);
    assert_eq!(asks.says(), "HTTP/1.1 101 Switching Protocols");
    let told = format!(
        "['upgrade: websocket', 'x-t-in: yes', 'x-t-out: yes'] {}",
        scene.client.v4
    );
    assert_eq!(asks.says(), told);
    assert_eq!(asks.says(), "early, late 1000011");
    asks.succeeds();
    let lines = scene.connections(&agent, 1);
    assert_eq!(
        lines[0]["peer_workload"], "default/server",
        "{:#}",
        lines[0]
    );
    assert!(
        lines[0]["bytes_received"].as_u64() > Some(1_000_011),
        "{:#}",
        lines[0]
    );
    let request = wait::until("the request's line", Duration::from_secs(5), || {
        let mut lines = agent.access_log().into_iter();
        lines.find(|line| line["kind"] == "request")
    });
    assert_eq!(request["response_code"], 101, "{request:#}");
    assert_eq!(request["bytes_received"], 1_000_011, "{request:#}");
    // The server's side does not let it.
    let refuses = Listener::at("in", "INBOUND", "0.0.0.0", 8081)
        .http("", &to("passthrough", "x-t-in", "yes"));
    scene.write(&bootstrap(&[side("out", "OUTBOUND"), refuses], &[]));
    wait::until("the change", Duration::from_secs(5), || {
        let url = format!("http://{}:8081/", scene.server.v4);
        let asked = [
            "-sS",
            "-m",
            "2",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-H",
            "connection: upgrade",
            "-H",
            "upgrade: websocket",
            &url,
        ];
        let out = scene.client.run("curl", &asked);
        (out.stdout == b"403").then_some(())
    });
}

/// CONNECT ends at the client's side; the request in it is the server's side's.
fn what_is_in_a_tunnel_meets_the_server_s_listener(way: Way) {
    let scene = Scene::new();
    let connect = "{name: all, domains: [\"*\"], routes: [{match: {connect_matcher: {}}, route: {cluster: teller, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}}]}";
    let listeners = [
        Listener::at("out", "OUTBOUND", scene.nowhere(), 3128).manager("", connect, UPGRADES),
        Listener::at("in", "INBOUND", "0.0.0.0", 8080)
            .http("", &to("passthrough", "x-t-in", "yes")),
    ];
    let server = scene.server.v4.clone();
    let agent = scene.agent(way, &bootstrap(&listeners, &[("teller", &server, 8080)]));
    let proxy = format!("http://{}:3128", scene.nowhere());
    let asked = [
        "-sS",
        "-m",
        "5",
        "--proxytunnel",
        "-x",
        &proxy,
        "http://inner.test/a",
    ];
    let told = scene.client.says("curl", &asked);
    assert_eq!(told, format!("/a {} 1 x-t-in=yes", scene.client.v4));
    let lines = scene.connections(&agent, 1);
    assert_eq!(
        lines[0]["peer_workload"], "default/server",
        "{:#}",
        lines[0]
    );
}

/// A request in a tunnel, before there is one; `closes`: the server's side is to close after it.
const EARLY: &str = r"
import socket, sys
proxy, host, closes = sys.argv[1:]
end = socket.create_connection((proxy, 3128), 5)
inner = f'GET /a HTTP/1.1\r\nhost: a\r\nconnection: {closes}\r\n\r\n'.encode()
outer = f'CONNECT {host}:80 HTTP/1.1\r\nhost: {host}:80\r\n\r\n'.encode()
end.sendall(outer + inner)
def read(until):
    got = b''
    while not until(got):
        byte = end.recv(1)
        assert byte, got
        got += byte
    return got
read(lambda got: got.endswith(b'\r\n\r\n'))
head = read(lambda got: got.endswith(b'\r\n\r\n')).decode().lower()
length = int(head.split('content-length: ')[1].split('\r')[0])
read(lambda got: len(got) == length)
if closes == 'close':
    assert end.recv(1) == b''
end.close()
print(len(outer) + len(inner), len(inner), flush=True)
";

fn what_comes_early_in_a_tunnel_is_counted_once(way: Way) {
    let scene = Scene::new();
    let host = |name: &str| {
        format!(
            "{{name: {name}, domains: [\"{name}.test:80\"], routes: [{{match: {{connect_matcher: {{}}}}, route: {{cluster: {name}, upgrade_configs: [{{upgrade_type: CONNECT, connect_config: {{}}}}]}}}}]}}, "
        )
    };
    let connect = host("http") + &host("tcp");
    let listeners = [
        Listener::at("out", "OUTBOUND", scene.nowhere(), 3128).manager("", &connect, UPGRADES),
        Listener::at("in", "INBOUND", "0.0.0.0", 8080)
            .http("", &to("passthrough", "x-t-in", "yes")),
        Listener::at("plain", "INBOUND", "0.0.0.0", 8082).tcp("", "http"),
    ];
    let server = scene.server.v4.clone();
    let clusters = [("http", &*server, 8080), ("tcp", &*server, 8082)];
    let agent = scene.agent(way, &bootstrap(&listeners, &clusters));
    for (at, (host, closes, flags)) in [
        ("http", "keep-alive", "DC"),
        ("http", "close", "UC"),
        ("tcp", "keep-alive", "DC"),
        ("tcp", "close", "UC"),
    ]
    .into_iter()
    .enumerate()
    {
        let args = [scene.nowhere(), &format!("{host}.test"), closes];
        let mut client = Script::start(&scene.client, EARLY, &args);
        let said = client.says();
        client.succeeds();
        let (all, inner) = said.split_once(' ').expect("two numbers");
        let lines = scene.connections(&agent, at + 1);
        assert_eq!(
            lines[at]["bytes_received"].to_string(),
            all,
            "{host} {closes}: {:#}",
            lines[at]
        );
        let connects = || {
            let mut lines = agent.access_log();
            lines.retain(|line| line["method"] == "CONNECT");
            lines
        };
        let line = wait::until("the request's line", Duration::from_secs(5), || {
            connects().get(at).cloned()
        });
        assert_eq!(line["bytes_received"].to_string(), inner, "{line:#}");
        assert_eq!(line["response_flags"], flags, "{host} {closes}: {line:#}");
    }
}
