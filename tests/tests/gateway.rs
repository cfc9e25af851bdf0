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
    let lines = agent.lines(6);
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
}

#[test]
fn a_changed_bootstrap_is_in_force_on_the_same_socket() {
    let scene = Scene::new();
    let agent = scene.agent();
    // Who stays connected is served to the end of its request, and then comes anew.
    let mut stays = Script::start(&scene.client, STAYS, &[&scene.gateway.v4]);
    assert_eq!(stays.says(), "one keep");
    let other = "  - name: other\n    load_assignment: {cluster_name: other}\n";
    scene.bootstrap("two", other);
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
    assert_eq!(stays.says(), "one close");
    stays.succeeds();
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
    assert!(text.contains("right, 2 listeners, 1 clusters"), "{text}");
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
