//! The HTTP connection manager's limits of time and number, with clients and upstreams that are slow on purpose.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use shunt_tests::{Agent, AgentBuilder, Pod, Running, Script, World, require, wait};

/// Says by which connection it was asked, when it has all of the request; `/slow` takes its time, `/big` is endless, and
/// `/early` has answered when it begins to read: `/early/halting` in two pieces, a second apart.
const UPSTREAM: &str = r"
import socket, threading, time
def serve(end, peer):
    file = end.makefile('rb')
    while line := file.readline():
        length, path = 0, line.split()[1]
        while (header := file.readline()) not in (b'\r\n', b''):
            name, value = header.split(b':', 1)
            if name.lower() == b'content-length': length = int(value)
        if path in (b'/early', b'/early/halting'):
            end.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nearly')
            if path.endswith(b'halting'): time.sleep(1)
            end.sendall(b' bird')
        if path == b'/early/large':
            end.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 8000000\r\n\r\n')
            for _ in range(80): end.sendall(b'x' * 100000)
            end.shutdown(socket.SHUT_WR)
        file.read(length)
        if path.startswith(b'/early'): continue
        if path == b'/slow': time.sleep(0.7)
        if path == b'/big':
            end.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 400000000\r\n\r\n')
            for _ in range(4000): end.sendall(b'x' * 100000)
        text = str(peer[1]).encode()
        end.sendall(b'HTTP/1.1 200 OK\r\nconnection: x-hop\r\nx-hop: 1\r\ncontent-length: %d\r\n\r\n%s' % (len(text), text))
def guarded(*at):
    try: serve(*at)
    except OSError: pass
listener = socket.create_server(('', 8000))
while True: threading.Thread(target=guarded, args=listener.accept(), daemon=True).start()
";

struct Scene {
    world: World,
    gateway: Pod,
    client: Pod,
    server: Pod,
    _upstream: Running,
}

impl Scene {
    fn new() -> Self {
        require::everything();
        let world = World::new();
        let [gateway, client, server] = [(); 3].map(|()| world.pod());
        let upstream = server.spawn("python3", &["-c", UPSTREAM]);
        server.wait_for_listener(8000);
        Self {
            world,
            gateway,
            client,
            server,
            _upstream: upstream,
        }
    }

    /// `manager` and `cluster` are lines of the connection manager and the cluster.
    fn bootstrap(&self, manager: &str, cluster: &str) -> PathBuf {
        let (gateway, server) = (&self.gateway.v4, &self.server.v4);
        let text = format!(
            "static_resources:
  listeners:
  - name: web
    address: {{socket_address: {{address: {gateway}, port_value: 80}}}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          {manager}
          stat_prefix: web
          route_config:
            virtual_hosts:
            - name: all
              domains: [\"*\"]
              routes:
              - {{match: {{prefix: /big}}, route: {{cluster: up, timeout: 0s}}}}
              - {{match: {{prefix: /quick}}, route: {{cluster: up, timeout: 0.5s}}}}
              - {{match: {{prefix: /}}, route: {{cluster: up}}}}
          http_filters:
          - name: router
            typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: up
    {cluster}
    load_assignment: {{cluster_name: up, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {server}, port_value: 8000}}}}}}}}]}}]}}
"
        );
        let path = self.world.dir.path().join("bootstrap.yaml");
        let new = path.with_extension("new");
        fs::write(&new, text).expect("written");
        fs::rename(new, &path).expect("renamed");
        path
    }

    fn agent(&self, manager: &str, cluster: &str) -> Agent {
        let bootstrap = self.bootstrap(manager, cluster);
        AgentBuilder::new(&self.world, "auto")
            .inside(&self.gateway)
            .set(&format!("bootstrap: {}", bootstrap.display()))
            .start()
    }

    fn client(&self, script: &str) -> Script {
        let script = format!("{TALK}\n{script}");
        Script::start(&self.client, &script, &[&self.gateway.v4])
    }

    fn upstream_connections(&self) -> usize {
        let listed = self
            .server
            .says("ss", &["-Htn", "state", "established", "sport = 8000"]);
        listed.lines().filter(|line| !line.is_empty()).count()
    }
}

/// A client that writes and reads what it likes.
const TALK: &str = r"
import socket, sys, time
end = socket.create_connection((sys.argv[1], 80), 10)
def say(text): end.sendall(text.replace('\n', '\r\n').encode())
def read():
    data = b''
    while b'\r\n\r\n' not in data:
        got = end.recv(1)
        if not got: return 'closed', data
        data += got
    head, length = data.decode().lower(), 0
    for line in head.split('\r\n'):
        if line.startswith('content-length:'): length = int(line.split(':')[1])
    body = b''
    while len(body) < length: body += end.recv(length - len(body))
    return head, body.decode()
def status(): return read()[0].split('\r\n')[0]
";

/// What counts for a route's timeout is the upstream's time, not the client's.
#[test]
fn a_slow_upload_is_no_slow_answer() {
    let scene = Scene::new();
    let _agent = scene.agent("request_timeout: 0s", "connect_timeout: 1s");
    let mut client = scene.client(
        r"
say('POST /quick HTTP/1.1\nhost: a\ncontent-length: 4\n\n')
for letter in 'abcd': time.sleep(0.3); say(letter)
head, body = read()
print(head.split('\r\n')[0], flush=True)
took = [line for line in head.split('\r\n') if line.startswith('x-envoy-upstream-service-time')]
print(int(took[0].split(':')[1]) < 600, 'x-hop' in head, flush=True)
",
    );
    assert_eq!(client.says(), "http/1.1 200 ok");
    // Nor is what the upstream's `connection` names for the client.
    assert_eq!(client.says(), "True False");
    client.succeeds();
}

/// Who has an early answer has all of it, and is told nothing more, however it goes on with its request.
#[test]
fn limits_of_a_request_end_with_its_early_answer() {
    let scene = Scene::new();
    let _agent = scene.agent(
        "request_headers_timeout: 0.3s\n          request_timeout: 0.6s",
        "connect_timeout: 1s",
    );
    for (path, pauses) in [("/early", 8), ("/early/halting", 15)] {
        let script = format!(
            r"
say('POST {path} HTTP/1.1\nhost: a\ncontent-length: 1000\n\n')
for _ in range({pauses}):
    time.sleep(0.1)
    say('a')
head, body = read()
print(head.split('\r\n')[0], 'connection: close' in head, body, flush=True)
print(end.recv(100), flush=True)
"
        );
        let mut client = scene.client(&script);
        assert_eq!(client.says(), "http/1.1 200 ok True early bird");
        assert_eq!(client.says(), "b''");
        client.succeeds();
    }
}

/// The upstream has neither taken all of the request nor changed its protocol.
#[test]
fn an_answer_in_place_of_a_tunnel_has_its_tail() {
    let scene = Scene::new();
    let _agent = scene.agent(
        "upgrade_configs: [{upgrade_type: websocket}]",
        "connect_timeout: 1s",
    );
    let mut client = scene.client(
        r"
end.close()
end = socket.socket()
end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
end.settimeout(10)
end.connect((sys.argv[1], 80))
say('POST /early/large HTTP/1.1\nhost: a\nconnection: upgrade\nupgrade: websocket\ncontent-length: 1000\n\na')
head = b''
while not head.endswith(b'\r\n\r\n'): head += end.recv(1)
time.sleep(0.3)
size = 0
while got := end.recv(16384): size += len(got)
print(head.decode().split('\r\n')[0], size, flush=True)
",
    );
    assert_eq!(client.says(), "HTTP/1.1 200 OK 8000000");
    client.succeeds();
}

#[test]
fn who_takes_nothing_is_not_waited_for() {
    let scene = Scene::new();
    let agent = scene.agent("stream_idle_timeout: 1s", "connect_timeout: 1s");
    let mut client = scene.client(
        "say('GET /big HTTP/1.1\\nhost: a\\n\\n'); print(end.recv(4).decode(), flush=True); sys.stdin.readline()",
    );
    assert_eq!(client.says(), "HTTP");
    // The request has a line of its own.
    let lines = agent.lines(2);
    let of_connection = |line: &&serde_json::Value| line["close_reason"].is_string();
    let line = lines.iter().find(of_connection).expect("a line");
    assert_eq!(line["close_reason"], "idle_timeout", "{line}");
    assert!(line["bytes_sent"].as_u64() > Some(10_000), "{line}");
    let upstream = format!("{}:8000", scene.server.v4);
    assert_eq!(line["upstream"], upstream.as_str(), "{line}");
    client.tell("");
}

#[test]
fn a_head_has_its_time_and_an_idle_connection_has_another() {
    let scene = Scene::new();
    let _agent = scene.agent(
        "request_headers_timeout: 0.4s\n          common_http_protocol_options: {idle_timeout: 2s}",
        "connect_timeout: 1s",
    );
    let ask = r"say('GET / HTTP/1.1\nhost: a\n\n'); print(status(), flush=True)";
    let script = format!(
        r"
{ask}
time.sleep(1)
{ask}
say('GET / HT')
begun = time.monotonic()
print(status(), flush=True)
print(time.monotonic() - begun < 1.5, end.recv(1), flush=True)
"
    );
    let mut client = scene.client(&script);
    assert_eq!(client.says(), "http/1.1 200 ok");
    assert_eq!(client.says(), "http/1.1 200 ok");
    assert_eq!(client.says(), "http/1.1 408 request timeout");
    assert_eq!(client.says(), "True b''");
    client.succeeds();
    let mut idle = scene.client(&format!("{ask}\nprint(end.recv(1), flush=True)"));
    assert_eq!(idle.says(), "http/1.1 200 ok");
    assert_eq!(idle.says(), "b''");
    idle.succeeds();
}

#[test]
fn an_old_connection_is_closed_with_its_next_response() {
    let scene = Scene::new();
    let _agent = scene.agent(
        "drain_timeout: 30s\n          common_http_protocol_options: {max_connection_duration: 0.5s}",
        "connect_timeout: 1s",
    );
    let mut client = scene.client(
        r"
def ask():
    say('GET / HTTP/1.1\nhost: a\n\n')
    print('connection: close' in read()[0], flush=True)
ask(); time.sleep(1); ask()
print(end.recv(1), flush=True)
",
    );
    assert_eq!([(); 3].map(|()| client.says()), ["False", "True", "b''"]);
    client.succeeds();
}

/// One connection to the upstream, two requests that may wait: for its connecting, or for the one before.
#[test]
fn what_is_too_much_for_a_cluster_overflows() {
    let scene = Scene::new();
    let limits = "circuit_breakers: {thresholds: [{max_connections: 1, max_pending_requests: 2}]}";
    let _agent = scene.agent("drain_timeout: 5s", limits);
    let mut client = scene.client(
        r"
ends = [end] + [socket.create_connection((sys.argv[1], 80), 10) for _ in range(5)]
for end in ends: say('GET /slow HTTP/1.1\nhost: a\n\n')
for end in ends:
    head, body = read()
    print(head.split('\r\n')[0].split()[1], 'x-envoy-overloaded: true' in head, body, flush=True)
",
    );
    let said = [(); 6].map(|()| client.says());
    client.succeeds();
    let text = "upstream connect error or disconnect/reset before headers. reset reason: overflow";
    let refused = format!("503 True {text}");
    let mut served: Vec<_> = said.iter().filter(|line| **line != refused).collect();
    assert!(
        served.iter().all(|line| line.starts_with("200 ")),
        "{said:?}"
    );
    // Each of the two workers may have one connection, and one of them may have a request that waits for it.
    assert!((2..=3).contains(&served.len()), "{said:?}");
    served.sort();
    served.dedup();
    assert!(served.len() <= 2, "{said:?}");
}

#[test]
fn connections_to_what_is_gone_are_closed() {
    let scene = Scene::new();
    let _agent = scene.agent("drain_timeout: 5s", "connect_timeout: 1s");
    let ask = r"say('GET / HTTP/1.1\nhost: a\n\n'); print(read()[1], flush=True)";
    let mut first = scene.client(ask);
    let port = first.says();
    assert!(port.parse::<u16>().is_ok(), "{port}");
    first.succeeds();
    assert_eq!(scene.upstream_connections(), 1);
    // The same cluster: what there is stays.
    scene.bootstrap("drain_timeout: 6s", "connect_timeout: 1s");
    scene.bootstrap("drain_timeout: 6s", "connect_timeout: 2s");
    wait::until("the old one's end", Duration::from_secs(20), || {
        (scene.upstream_connections() == 0).then_some(())
    });
}
