//! Connections that become WebSockets or tunnels: real bytes both ways, and what is counted and told of them.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;
use shunt_tests::{Agent, AgentBuilder, Pod, Running, Script, World, require, wait};

const PATIENCE: Duration = Duration::from_secs(10);

struct Scene {
    world: World,
    gateway: Pod,
    client: Pod,
    server: Pod,
    _running: [Running; 2],
}

impl Scene {
    fn new() -> Self {
        require::everything();
        let world = World::new();
        let [gateway, client, server] = [(); 3].map(|()| world.pod());
        let running = [
            server.nginx(&world),
            server.spawn("python3", &["-c", &format!("{FRAMES}{SERVER}")]),
        ];
        server.wait_for_listener(8000);
        Self {
            world,
            gateway,
            client,
            server,
            _running: running,
        }
    }

    /// `listener`: whether there is one.
    fn bootstrap(&self, listener: bool) -> String {
        const TYPES: &str = "type.googleapis.com/envoy.extensions.filters";
        let server = &self.server.v4;
        let web = format!(
            "
  - name: web
    address: {{socket_address: {{address: {}, port_value: 80}}}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          \"@type\": {TYPES}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          upgrade_configs: [{{upgrade_type: websocket}}, {{upgrade_type: CONNECT}}]
          http_filters:
          - {{name: router, typed_config: {{\"@type\": {TYPES}.http.router.v3.Router}}}}
          route_config:
            virtual_hosts:
            - name: all
              domains: [\"*\"]
              routes:
              - match: {{connect_matcher: {{}}}}
                route: {{cluster: pages, upgrade_configs: [{{upgrade_type: CONNECT, connect_config: {{}}}}]}}
              - {{match: {{prefix: /idle}}, route: {{cluster: sockets, idle_timeout: 1s}}}}
              - {{match: {{prefix: /chat}}, route: {{cluster: sockets, timeout: 1s}}}}
              - {{match: {{prefix: /}}, route: {{cluster: sockets}}}}
",
            self.gateway.v4
        );
        let cluster = |name: &str, port: u16| {
            format!(
                "  - name: {name}\n    load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: \
                 {{address: {{socket_address: {{address: {server}, port_value: {port}}}}}}}}}]}}]}}\n"
            )
        };
        let listeners = if listener { &web } else { " []\n" };
        let text = format!(
            "static_resources:\n  listeners:{listeners}  clusters:\n{}{}",
            cluster("sockets", 8000),
            cluster("pages", 80)
        );
        let path = self.world.dir.path().join("bootstrap.yaml");
        let new = path.with_extension("new");
        fs::write(&new, text).expect("written");
        fs::rename(new, &path).expect("renamed");
        path.display().to_string()
    }

    fn agent(&self, drain: &str) -> Agent {
        let bootstrap = self.bootstrap(true);
        AgentBuilder::new(&self.world, "auto")
            .inside(&self.gateway)
            .set(&format!("bootstrap: {bootstrap}"))
            .set(&format!("timeouts: {{drain: {drain}}}"))
            .start()
    }

    /// A client with an open WebSocket.
    fn open(&self, path: &str) -> Script {
        let script = format!("{FRAMES}{CLIENT}");
        let mut client = Script::start(&self.client, &script, &[&self.gateway.v4, path]);
        assert_eq!(client.says(), "open");
        client
    }
}

/// The line of the request to `path`, once it is there.
fn line(agent: &Agent, path: &str) -> Value {
    wait::until(&format!("a line of {path}"), PATIENCE, || {
        let mut lines = agent.access_log().into_iter();
        lines.find(|line| line["kind"] == "request" && line["path"] == path)
    })
}

fn number(agent: &Agent, name: &str) -> u64 {
    let (_, stats) = agent.admin("GET", "/stats", "");
    let prefix = format!("{name}: ");
    let number = stats.lines().find_map(|line| line.strip_prefix(&prefix));
    let number = number.and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("no {name} in\n{stats}"))
}

/// RFC 6455, as far as it takes: messages of one frame.
const FRAMES: &str = r"
import base64, hashlib, os, socket, struct, sys, time
def exactly(end, count):
    got = b''
    while len(got) < count:
        read = end.recv(min(count - len(got), 65536))
        if not read: raise EOFError
        got += read
    return got
def head(end):
    got = b''
    while not got.endswith(b'\r\n\r\n'): got += exactly(end, 1)
    lines = got.decode().split('\r\n')
    return lines[0], {k.lower(): v for k, v in (line.split(': ', 1) for line in lines[1:] if line)}
def accepts(key): return base64.b64encode(hashlib.sha1(key.encode() + b'258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest()).decode()
def frame(opcode, data, mask):
    size, bit = len(data), 128 if mask else 0
    out = bytes([128 | opcode])
    if size < 126: out += bytes([bit | size])
    elif size < 65536: out += struct.pack('>BH', bit | 126, size)
    else: out += struct.pack('>BQ', bit | 127, size)
    if mask:
        key = os.urandom(4)
        stream = (key * (size // 4 + 1))[:size]
        data = (int.from_bytes(data, 'big') ^ int.from_bytes(stream, 'big')).to_bytes(size, 'big')
        out += key
    return out + data
def message(end):
    first, second = exactly(end, 2)
    size = second & 127
    if size == 126: size, = struct.unpack('>H', exactly(end, 2))
    elif size == 127: size, = struct.unpack('>Q', exactly(end, 8))
    key = exactly(end, 4) if second & 128 else None
    data = exactly(end, size)
    if key:
        stream = (key * (size // 4 + 1))[:size]
        data = (int.from_bytes(data, 'big') ^ int.from_bytes(stream, 'big')).to_bytes(size, 'big')
    return first & 15, data
";

const SERVER: &str = r"
import threading
def serve(end):
    line, headers = head(end)
    key = headers['sec-websocket-key']
    assert headers['connection'].lower() == 'upgrade'
    end.sendall(f'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accepts(key)}\r\n\r\n'.encode())
    if '/floods' in line:
        while True: end.sendall(bytes(65536))
    if '/half' in line:
        got = 0
        while read := end.recv(65536): got += len(read)
        end.sendall(f'{got} bytes'.encode())
        end.close()
        return
    while True:
        opcode, data = message(end)
        if data == b'die':
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            end.close()
            return
        end.sendall(frame(opcode, data, False))
        if opcode == 8: break
    end.close()
listener = socket.create_server(('', 8000))
while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
";

/// Does what it is told: numbers are sizes of messages, which must come back.
const CLIENT: &str = r"
end = socket.create_connection((sys.argv[1], 80), 5)
key = base64.b64encode(os.urandom(16)).decode()
end.sendall(f'GET {sys.argv[2]} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n'.encode())
line, headers = head(end)
assert line == 'HTTP/1.1 101 Switching Protocols', line
assert headers['sec-websocket-accept'] == accepts(key)
assert headers['connection'] == 'Upgrade' and headers['upgrade'] == 'websocket', headers
print('open', flush=True)
def ends():
    try: return 'in order' if end.recv(1) == b'' else 'more'
    except ConnectionResetError: return 'reset'
    except TimeoutError: return 'not at all'
for line in sys.stdin:
    word = line.strip()
    if word == 'close':
        end.sendall(frame(8, b'', True))
        assert message(end) == (8, b'')
        print(ends(), flush=True)
    elif word == 'die':
        end.sendall(frame(2, b'die', True))
        print(ends(), flush=True)
    elif word == 'wait':
        time.sleep(1.1)
        print('waited', flush=True)
    elif word == 'ends': print(ends(), flush=True)
    elif word == 'half':
        end.sendall(bytes(300000))
        end.shutdown(socket.SHUT_WR)
        print(exactly(end, 12).decode(), ends(), flush=True)
    else:
        data = os.urandom(int(word))
        end.sendall(frame(2, data, True))
        assert message(end) == (2, data)
        print('the same', flush=True)
";

#[test]
fn a_websocket_is_carried_counted_and_told() {
    let scene = Scene::new();
    let agent = scene.agent("5s");
    let mut client = scene.open("/chat");
    assert_eq!(
        number(&agent, "http.ingress.downstream_cx_upgrades_active"),
        1
    );
    assert_eq!(number(&agent, "cluster.sockets.upstream_rq_active"), 1);
    // The last is more than any buffer on the way; and then the route's timeout passes.
    for size in ["5", "70000", "3000000"] {
        client.tell(size);
        assert_eq!(client.says(), "the same");
    }
    client.tell("wait");
    assert_eq!(client.says(), "waited");
    client.tell("1");
    assert_eq!(client.says(), "the same");
    client.tell("close");
    assert_eq!(client.says(), "in order");
    client.succeeds();
    let line = line(&agent, "/chat");
    let (up, down) = (
        6 + 5 + 14 + 70_000 + 14 + 3_000_000 + 6 + 1 + 6,
        2 + 5 + 10 + 70_000 + 10 + 3_000_000 + 2 + 1 + 2,
    );
    for (field, value) in [
        ("response_code", Value::from(101)),
        ("bytes_received", up.into()),
        ("bytes_sent", down.into()),
        ("upstream_cluster", "sockets".into()),
        // The server closed first, as RFC 6455 wants it to.
        ("response_flags", "UC".into()),
    ] {
        assert_eq!(line[field], value, "{field} of {line:#}");
    }
    for (name, value) in [
        ("http.ingress.downstream_cx_upgrades_total", 1),
        ("http.ingress.downstream_cx_upgrades_active", 0),
        ("http.ingress.downstream_rq_active", 0),
        ("cluster.sockets.upstream_rq_active", 0),
        ("cluster.sockets.upstream_cx_active", 0),
    ] {
        assert_eq!(number(&agent, name), value, "{name}");
    }
    assert!(number(&agent, "http.ingress.downstream_cx_rx_bytes_total") >= up);
}

#[test]
fn a_tunnel_ends_as_its_ends_do() {
    let scene = Scene::new();
    let agent = scene.agent("5s");
    let mut half = scene.open("/half");
    half.tell("half");
    assert_eq!(half.says(), "300000 bytes in order");
    half.succeeds();
    assert_eq!(line(&agent, "/half")["response_flags"], "DC");
    let mut dies = scene.open("/dies");
    dies.tell("die");
    assert_eq!(dies.says(), "reset");
    dies.succeeds();
    assert_eq!(line(&agent, "/dies")["response_flags"], "UC");
    let mut idle = scene.open("/idle");
    idle.tell("ends");
    assert_eq!(idle.says(), "reset");
    idle.succeeds();
    let idle = line(&agent, "/idle");
    assert_eq!(idle["response_flags"], "SI", "{idle:#}");
    assert_eq!(idle["response_code_details"], "stream_idle_timeout");
    // One that nobody reads waits, and takes no memory meanwhile.
    let rss = |agent: &Agent| {
        let status = format!("/proc/{}/status", agent.worker_pid().expect("a data plane"));
        let status = fs::read_to_string(status).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        kib.expect("a size").parse::<u64>().expect("a number")
    };
    let before = rss(&agent);
    let _floods = scene.open("/floods");
    let sent = || number(&agent, "http.ingress.downstream_cx_tx_bytes_total");
    let mut last = (0, Instant::now());
    wait::until("the flood stands", PATIENCE, || {
        let now = sent();
        if now != last.0 {
            last = (now, Instant::now());
        }
        (now > 0 && last.1.elapsed() > Duration::from_millis(300)).then_some(())
    });
    assert!(
        rss(&agent) < before + 4096,
        "{before} KiB became {}",
        rss(&agent)
    );
}

#[test]
fn a_tunnel_has_its_time_when_the_listener_goes() {
    const DRAIN: Duration = Duration::from_secs(2);
    let scene = Scene::new();
    let mut agent = scene.agent("2s");
    let mut first = scene.open("/first");
    let told = Instant::now();
    scene.bootstrap(false);
    wait::until("the listener is gone", PATIENCE, || {
        let url = format!("http://{}/", scene.gateway.v4);
        let refused = scene.client.run("curl", &["-sS", "-m", "2", &url]);
        (refused.status.code() == Some(7)).then_some(())
    });
    first.tell("5");
    assert_eq!(first.says(), "the same");
    first.tell("ends");
    assert_eq!(first.says(), "reset");
    assert!(told.elapsed() >= DRAIN, "{:?}", told.elapsed());
    first.succeeds();
    assert_eq!(line(&agent, "/first")["response_flags"], "LR");
    scene.bootstrap(true);
    let url = format!("http://{}/", scene.gateway.v4);
    wait::until("the listener is back", PATIENCE, || {
        let there = scene.client.run("curl", &["-sS", "-m", "2", &url]);
        there.status.success().then_some(())
    });
    let mut second = scene.open("/second");
    second.tell("ends");
    let told = Instant::now();
    assert!(agent.terminate().success());
    assert_eq!(second.says(), "reset");
    assert!(told.elapsed() >= DRAIN, "{:?}", told.elapsed());
    second.succeeds();
    assert_eq!(line(&agent, "/second")["response_flags"], "LR");
}

#[test]
fn curl_goes_through_a_tunnel() {
    let scene = Scene::new();
    let agent = scene.agent("5s");
    let proxy = format!("http://{}:80", scene.gateway.v4);
    let url = "http://inner.test/big";
    let through = [
        "--proxytunnel",
        "-x",
        &proxy,
        "-sS",
        "-m",
        "10",
        "-w",
        "%{http_connect} %{http_code} %{size_download}",
        "-o",
        "/dev/null",
    ];
    let args = [&through[..], &[url]].concat();
    assert_eq!(scene.client.says("curl", &args), "200 200 4194304");
    let line = wait::until("a line", PATIENCE, || {
        let mut lines = agent.access_log().into_iter();
        lines.find(|line| line["method"] == "CONNECT")
    });
    assert_eq!(line["response_code"], 200, "{line:#}");
    assert_eq!(line["authority"], "inner.test:80", "{line:#}");
    assert_eq!(
        line["upstream"],
        format!("{}:80", scene.server.v4),
        "{line:#}"
    );
    assert!(line["bytes_sent"].as_u64() > Some(4 << 20), "{line:#}");
    let old = number(&agent, "cluster.pages.upstream_cx_total");
    assert_eq!(scene.client.says("curl", &args), "200 200 4194304");
    assert_eq!(number(&agent, "cluster.pages.upstream_cx_total"), old + 1);
}
