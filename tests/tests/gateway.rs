//! What the agent serves in the node's own name, as its bootstrap says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use shunt_tests::agent::{binary, signal};
use shunt_tests::{Agent, AgentBuilder, Pod, Running, Script, World, require, wait};

/// Asks on one connection whenever it is told to.
const STAYS: &str = "
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], 80, timeout=5)
while True:
    connection.request('GET', '/hello')
    response = connection.getresponse()
    print(response.read().decode(), response.getheader('connection', 'keep'), flush=True)
    if not sys.stdin.readline(): break
";

/// Connects often, and asks on one after the other once it is told to, for half a second.
const ON_THEIR_WAY: &str = "
import http.client, sys, time
made = [http.client.HTTPConnection(sys.argv[1], 80, timeout=5) for _ in range(25)]
for connection in made: connection.connect()
print('connected', flush=True), sys.stdin.readline()
for connection in made: connection.request('GET', '/hello'), time.sleep(0.02)
answers = [connection.getresponse() for connection in made]
print([answer.read() for answer in answers].count(b'one'), answers[-1].getheader('connection'), flush=True)
";

struct Scene {
    world: World,
    gateway: Pod,
    client: Pod,
    server: Pod,
    _nginx: Running,
}

impl Scene {
    fn new() -> Self {
        require::everything();
        let world = World::new();
        let [gateway, client, server] = [(); 3].map(|()| world.pod());
        let nginx = server.nginx(&world);
        Self {
            world,
            gateway,
            client,
            server,
            _nginx: nginx,
        }
    }

    /// HTTP on port 80, TCP on port 81, both to nginx; `/hello` says a word.
    fn bootstrap(&self, word: &str, more: &str) -> PathBuf {
        let (gateway, server) = (&self.gateway.v4, &self.server.v4);
        let network = "type.googleapis.com/envoy.extensions.filters.network";
        let text = format!(
            "static_resources:
  listeners:
  - name: web
    address: {{socket_address: {{address: {gateway}, port_value: 80}}}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          \"@type\": {network}.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          route_config:
            virtual_hosts:
            - name: all
              domains: [\"*\"]
              routes:
              - {{match: {{path: /hello}}, direct_response: {{status: 200, body: {{inline_string: {word}}}}}}}
              - {{match: {{prefix: /stall}}, route: {{cluster: stall}}}}
              - {{match: {{prefix: /}}, route: {{cluster: server}}}}
          http_filters:
          - name: router
            typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  - name: tcp
    address: {{socket_address: {{address: {gateway}, port_value: 81}}}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config: {{\"@type\": {network}.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: server}}
  clusters:
  - name: server
    load_assignment: {{cluster_name: server, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {server}, port_value: 80}}}}}}}}]}}]}}
  - name: stall
    load_assignment: {{cluster_name: stall, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {server}, port_value: 8000}}}}}}}}]}}]}}
{more}"
        );
        let path = self.world.dir.path().join("bootstrap.yaml");
        let new = path.with_extension("new");
        fs::write(&new, text).expect("written");
        fs::rename(new, &path).expect("renamed");
        path
    }

    fn agent(&self) -> Agent {
        let bootstrap = self.bootstrap("one", "");
        AgentBuilder::new(&self.world, "auto")
            .inside(&self.gateway)
            .set(&format!("bootstrap: {}", bootstrap.display()))
            .start()
    }

    fn url(&self, port: u16, path: &str) -> String {
        format!("http://{}:{port}{path}", self.gateway.v4)
    }

    fn says(&self, port: u16, path: &str) -> String {
        self.client
            .says("curl", &["-sS", "-m", "5", &self.url(port, path)])
    }
}

/// Of the 4 MB that nginx has.
fn big(scene: &Scene) -> Vec<u8> {
    let path = scene.world.dir.path().join(&scene.server.netns).join("big");
    fs::read(path).expect("a file")
}

#[test]
fn a_bootstrap_is_served() {
    let scene = Scene::new();
    let mut agent = scene.agent();
    assert_eq!(scene.says(80, "/hello"), "one");
    for port in [80, 81] {
        assert_eq!(scene.says(port, "/"), scene.gateway.v4, "{port}");
        let got = scene
            .client
            .run("curl", &["-sS", "-m", "10", &scene.url(port, "/big")]);
        assert!(
            got.stdout == big(&scene),
            "{port}: {} bytes",
            got.stdout.len()
        );
    }
    // Two requests on one connection.
    let url = scene.url(80, "/");
    let told = "%{http_code} %{num_connects}\n";
    let args = ["-sS", "-o", "/dev/null", "-w", told, &url, "--next"];
    let again = ["-sS", "-o", "/dev/null", "-w", told, &url];
    let two = scene.client.says("curl", &[&args[..], &again].concat());
    assert_eq!(two, "200 1\n200 0");
    let (_, clusters) = agent.admin("GET", "/clusters", "");
    let endpoint = format!("server::{}:80::weight::1\n", scene.server.v4);
    assert!(clusters.contains(&endpoint), "{clusters}");
    let (_, listeners) = agent.admin("GET", "/listeners", "");
    assert!(listeners.contains("web::"), "{listeners}");
    // Of six connections, and of five requests.
    let lines = agent.lines(11);
    let names: Vec<_> = lines
        .iter()
        .filter_map(|line| line["workload"].as_str())
        .collect();
    assert!(
        names.contains(&"node/web") && names.contains(&"node/tcp"),
        "{names:?}"
    );
    assert!(agent.terminate().success());
    let refused = scene
        .client
        .run("curl", &["-sS", "-m", "5", &scene.url(80, "/hello")]);
    assert_eq!(refused.status.code(), Some(7), "nobody listens any more");
}

#[test]
fn many_clients_at_once_get_what_they_asked_for() {
    let scene = Scene::new();
    let _agent = scene.agent();
    let url = scene.url(80, "/");
    let out = scene.client.says("wrk", &["-t2", "-c50", "-d2s", &url]);
    assert!(
        !out.contains("Non-2xx") && !out.contains("Socket errors"),
        "{out}"
    );
    let mut lines = out.lines().map(str::trim);
    let answered = lines.find_map(|line| line.split_once(" requests in ")?.0.parse::<u64>().ok());
    assert!(answered.is_some_and(|answered| answered > 100), "{out}");
}

#[test]
fn a_changed_bootstrap_is_in_force_on_the_same_socket() {
    let scene = Scene::new();
    let agent = scene.agent();
    // Who stays connected is served by other routes at once.
    let mut stays = Script::start(&scene.client, STAYS, &[&scene.gateway.v4]);
    assert_eq!(stays.says(), "one keep");
    let other = "  - name: other\n    load_assignment: {cluster_name: other}\n";
    let bootstrap = scene.bootstrap("two", other);
    wait::until("the change", Duration::from_secs(5), || {
        (scene.says(80, "/hello") == "two").then_some(())
    });
    // A wrong one changes nothing.
    scene.bootstrap("three", "  unknown: 1\n");
    wait::until("the refusal", Duration::from_secs(5), || {
        agent
            .log()
            .contains("static_resources.unknown")
            .then_some(())
    });
    assert_eq!(scene.says(80, "/hello"), "two");
    stays.tell("again");
    assert_eq!(stays.says(), "two keep");
    // Where more is different, it is served as it was for one request more, and then comes anew.
    scene.bootstrap("four", other);
    let text = fs::read_to_string(&bootstrap).expect("a file");
    let text = text.replace("stat_prefix: web", "server_name: other");
    fs::write(&bootstrap, text).expect("written");
    wait::until("the change", Duration::from_secs(5), || {
        let url = scene.url(80, "/hello");
        let head = scene.client.says("curl", &["-sSi", "-m", "5", &url]);
        head.contains("server: other").then_some(())
    });
    stays.tell("again");
    let said = stays.says();
    assert!(
        ["two close", "four close"].contains(&said.as_str()),
        "{said}"
    );
    stays.succeeds();
}

/// A configuration that names a wrong bootstrap is refused, and taken once that is mended.
#[test]
fn another_bootstrap_is_followed_before_it_is_right() {
    let scene = Scene::new();
    let agent = scene.agent();
    let config = agent.dir.join("shunt.yaml");
    let text = fs::read_to_string(config).expect("a file");
    let right = scene.bootstrap("two", "");
    wait::until("the change", Duration::from_secs(5), || {
        (scene.says(80, "/hello") == "two").then_some(())
    });
    let other = right.with_file_name("other.yaml");
    fs::write(&other, "static_resources: {unknown: 1}\n").expect("written");
    agent.rewrite_text(&text.replace("bootstrap.yaml", "other.yaml"));
    wait::until("the refusal", Duration::from_secs(5), || {
        let log = agent.log();
        log.contains("static_resources.unknown").then_some(())
    });
    assert_eq!(scene.says(80, "/hello"), "two");
    let mended = fs::read_to_string(&right).expect("a file");
    fs::remove_file(&right).expect("removed");
    fs::write(
        &other,
        mended.replace("{inline_string: two}", "{inline_string: three}"),
    )
    .expect("written");
    wait::until("the mended one", Duration::from_secs(5), || {
        (scene.says(80, "/hello") == "three").then_some(())
    });
}

#[test]
fn requests_on_their_way_are_answered_by_an_agent_that_ends() {
    let scene = Scene::new();
    let agent = scene.agent();
    let mut clients = Script::start(&scene.client, ON_THEIR_WAY, &[&scene.gateway.v4]);
    assert_eq!(clients.says(), "connected");
    signal("-TERM", agent.pid());
    clients.tell("");
    assert_eq!(clients.says(), "25 close");
}

#[test]
fn a_dead_data_plane_refuses_nobody() {
    let scene = Scene::new();
    let agent = scene.agent();
    assert_eq!(scene.says(80, "/hello"), "one");
    for _ in 0..3 {
        let worker = agent.worker_pid().expect("a data plane");
        signal("-KILL", worker);
        assert_eq!(scene.says(80, "/hello"), "one");
        assert_eq!(scene.says(81, "/"), scene.gateway.v4);
    }
}

#[test]
fn what_cannot_be_served_is_told_before_anything_starts() {
    let scene = Scene::new();
    let bootstrap = scene.bootstrap("one", "  secrets: [{name: a}]\n");
    let config = scene.world.dir.path().join("wrong.yaml");
    fs::write(&config, format!("bootstrap: {}\n", bootstrap.display())).expect("written");
    let fault = "static_resources.secrets: not supported";
    for command in ["run -c", "config validate"] {
        for file in [&config, &bootstrap] {
            if command == "run -c" && file == &bootstrap {
                continue;
            }
            let (code, text) = shunt(command, file);
            assert_eq!(code, Some(64), "{text}");
            assert!(text.contains(fault), "{text}");
        }
    }
    scene.bootstrap("one", "");
    let (code, text) = shunt("config validate", &bootstrap);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("stat_prefix: no effect"), "{text}");
    assert!(text.contains("right, 2 listeners, 2 clusters"), "{text}");
}

fn shunt(command: &str, file: &Path) -> (Option<i32>, String) {
    let output = Command::new(binary())
        .args(command.split(' '))
        .arg(file)
        .output()
        .expect("runs");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// Listens, answers what is too much to be held, and reads no body.
const STALL: &str = r"
import socket, threading
def serve(end):
    head = b''
    while b'\r\n\r\n' not in head: head += end.recv(1)
    if head.startswith(b'GET'):
        end.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 400000000\r\n\r\n')
        for _ in range(4000): end.sendall(b'x' * 100000)
    else: threading.Event().wait()
listener = socket.create_server(('', 8000))
while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
";

/// Asks for a body and takes nothing of it, or sends one that nobody takes.
const GLUT: &str = r"
import socket, sys
end = socket.create_connection((sys.argv[1], 80), 5)
if sys.argv[2] == 'GET':
    end.sendall(b'GET /stall HTTP/1.1\r\nhost: a\r\n\r\n')
    print(end.recv(4).decode(), flush=True)
else:
    end.sendall(b'POST /stall HTTP/1.1\r\nhost: a\r\ncontent-length: 400000000\r\n\r\n')
    end.settimeout(0.5)
    sent = 0
    try:
        while sent < 400000000: sent += end.send(b'x' * 100000)
    except TimeoutError: pass
    print('HTTP' if sent < 100000000 else sent, flush=True)
sys.stdin.readline()
";

#[test]
fn bodies_that_nobody_takes_are_not_held() {
    let scene = Scene::new();
    let _stall = scene.server.spawn("python3", &["-c", STALL]);
    scene.server.wait_for_listener(8000);
    let agent = scene.agent();
    let worker = agent.worker_pid().expect("a data plane");
    let before = anonymous_kib(worker);
    for method in ["GET", "POST"] {
        let mut clients: Vec<Script> = (0..10)
            .map(|_| Script::start(&scene.client, GLUT, &[&scene.gateway.v4, method]))
            .collect();
        for client in &mut clients {
            assert_eq!(client.says(), "HTTP", "{method}");
        }
        // What is held by then is buffers: some hundred KiB of each connection.
        let held = anonymous_kib(worker).saturating_sub(before);
        assert!(held < 20_000, "{method}: {held} KiB");
        assert_eq!(scene.says(80, "/hello"), "one");
    }
}

/// Of a process, what is in no file.
fn anonymous_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.expect("a number").parse().expect("a number")
}

/// A body that looks as an answer of the proxy's own would, some time after its head.
const LOOKS_LIKE: &str = "
import socket, time
BODY = b'HTTP/1.1 400 Bad Request\\r\\nconnection: close\\r\\ncontent-length: 0\\r\\nx: y\\r\\n\\r\\n'
l = socket.create_server(('', 8000)); s = l.accept()[0]; s.recv(65536)
s.sendall(b'HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n' % len(BODY)); time.sleep(0.3); s.sendall(BODY); s.recv(1)
";

#[test]
fn a_body_that_looks_like_an_answer_is_a_body() {
    let scene = Scene::new();
    let _agent = scene.agent();
    let _upstream = scene.server.spawn("python3", &["-c", LOOKS_LIKE]);
    scene.server.wait_for_listener(8000);
    let got = scene.says(80, "/stall");
    let body = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\nx: y";
    assert_eq!(got.trim_end(), body);
}
