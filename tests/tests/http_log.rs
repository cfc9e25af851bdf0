//! What is told of HTTP requests that the agent serves in the node's own name: the access log and the statistics.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use shunt_tests::{Agent, AgentBuilder, Pod, Running, Script, World, require, wait};

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

    fn bootstrap(&self, word: &str) -> PathBuf {
        let (gateway, server) = (&self.gateway.v4, &self.server.v4);
        let cluster = |name: &str, port: u16| {
            format!(
                "  - name: {name}\n    load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: \
                 {{address: {{socket_address: {{address: {server}, port_value: {port}}}}}}}}}]}}]}}\n"
            )
        };
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
          stat_prefix: ingress
          use_remote_address: true
          route_config:
            virtual_hosts:
            - name: all
              domains: [\"*\"]
              routes:
              - {{name: word, match: {{path: /hello}}, direct_response: {{status: 200, body: {{inline_string: {word}}}}}}}
              - {{name: nobody, match: {{path: /none}}, route: {{cluster: none}}}}
              - {{name: refused, match: {{path: /dead}}, route: {{cluster: dead}}}}
              - {{name: late, match: {{path: /late}}, route: {{cluster: stall, timeout: 0.3s}}}}
              - {{name: stalls, match: {{path: /stall}}, route: {{cluster: stall}}}}
              - {{name: breaks, match: {{path: /breaks}}, route: {{cluster: stall}}}}
              - {{name: pages, match: {{prefix: /page}}, route: {{cluster: server, prefix_rewrite: /}}}}
          http_filters:
          - name: router
            typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
{}{}{}  - {{name: none, load_assignment: {{cluster_name: none}}}}
",
            cluster("server", 80),
            cluster("dead", 1),
            cluster("stall", 8000),
        );
        let path = self.world.dir.path().join("bootstrap.yaml");
        let new = path.with_extension("new");
        fs::write(&new, text).expect("written");
        fs::rename(new, &path).expect("renamed");
        path
    }

    fn agent(&self) -> Agent {
        let bootstrap = self.bootstrap("one");
        AgentBuilder::new(&self.world, "auto")
            .inside(&self.gateway)
            .set(&format!("bootstrap: {}", bootstrap.display()))
            .start()
    }

    fn says(&self, path: &str, more: &[&str]) -> String {
        let url = format!("http://{}{path}", self.gateway.v4);
        let args = [&["-sS", "-m", "5", &url], more].concat();
        self.client.says("curl", &args)
    }
}

/// The line of the request to `path`, once it is there.
fn line(agent: &Agent, path: &str) -> Value {
    wait::until(&format!("a line of {path}"), Duration::from_secs(5), || {
        let lines = agent.access_log();
        lines
            .into_iter()
            .find(|line| line["kind"] == "request" && line["path"] == path)
    })
}

fn stats(agent: &Agent) -> String {
    agent.admin("GET", "/stats", "").1
}

/// `None`: there is no such number.
fn number(stats: &str, name: &str) -> Option<u64> {
    let prefix = format!("{name}: ");
    let number = stats.lines().find_map(|line| line.strip_prefix(&prefix));
    number?.parse().ok()
}

/// Takes a request and says nothing, or breaks off in its answer.
const STALL: &str = r"
import socket, threading
def serve(end):
    head = b''
    while b'\r\n\r\n' not in head:
        read = end.recv(4096)
        if not read: return
        head += read
    if b'/breaks' in head:
        end.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc')
        end.close()
    else: threading.Event().wait()
listener = socket.create_server(('', 8000))
while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
";

/// Asks and leaves before there is an answer.
const LEAVES: &str = r"
import socket, sys
end = socket.create_connection((sys.argv[1], 80), 5)
end.sendall(b'GET /stall HTTP/1.1\r\nhost: leaves\r\n\r\n')
print('asked', flush=True)
sys.stdin.readline()
end.close()
print('left', flush=True)
";

#[test]
fn every_request_is_one_line() {
    let scene = Scene::new();
    let _stall = scene.server.spawn("python3", &["-c", STALL]);
    scene.server.wait_for_listener(8000);
    let agent = scene.agent();
    let post = ["-d", "hello", "-A", "me", "-H", "x-forwarded-for: 1.2.3.4"];
    scene.says("/page?q=1", &post);
    for path in ["/hello", "/none", "/dead", "/late", "/nowhere"] {
        scene.says(path, &[]);
    }
    let page = line(&agent, "/page?q=1");
    let upstream = format!("{}:80", scene.server.v4);
    for (field, value) in [
        ("workload", Value::from("node/web")),
        ("method", "POST".into()),
        ("authority", scene.gateway.v4.clone().into()),
        ("protocol", "HTTP/1.1".into()),
        ("response_code", 200.into()),
        ("response_flags", "-".into()),
        ("response_code_details", "via_upstream".into()),
        ("bytes_received", 5.into()),
        ("upstream", upstream.into()),
        ("upstream_cluster", "server".into()),
        ("route_name", "pages".into()),
        ("user_agent", "me".into()),
        (
            "x_forwarded_for",
            format!("1.2.3.4,{}", scene.client.v4).into(),
        ),
    ] {
        assert_eq!(page[field], value, "{field} of {page:#}");
    }
    assert_eq!(page["request_id"].as_str().map(str::len), Some(36));
    assert!(page["upstream_service_time_ms"].is_u64(), "{page:#}");
    for (path, code, flags, details) in [
        ("/hello", 200, "-", "direct_response"),
        ("/none", 503, "UH", "no_healthy_upstream"),
        (
            "/dead",
            503,
            "UF",
            "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}",
        ),
        ("/late", 504, "UT", "response_timeout"),
        ("/nowhere", 404, "NR", "route_not_found"),
    ] {
        let line = line(&agent, path);
        assert_eq!(line["response_code"], code, "{line:#}");
        assert_eq!(line["response_flags"], flags, "{line:#}");
        assert_eq!(line["response_code_details"], details, "{line:#}");
    }
    assert_eq!(line(&agent, "/hello")["bytes_sent"], 3);
    // Each had a connection, which has a line of its own.
    let connections = || {
        let lines = agent.access_log();
        lines.iter().filter(|line| line["kind"].is_null()).count()
    };
    wait::until("the connections' lines", Duration::from_secs(5), || {
        (connections() == 6).then_some(())
    });
    assert_eq!(agent.lines(12).len(), 12);
}

#[test]
fn what_is_broken_off_is_told_with_who_did_it() {
    let scene = Scene::new();
    let _stall = scene.server.spawn("python3", &["-c", STALL]);
    scene.server.wait_for_listener(8000);
    let agent = scene.agent();
    let url = format!("http://{}/breaks", scene.gateway.v4);
    scene.client.run("curl", &["-sS", "-m", "5", &url]);
    let breaks = line(&agent, "/breaks");
    assert_eq!(breaks["response_flags"], "UC", "{breaks:#}");
    assert_eq!(breaks["bytes_sent"], 3, "{breaks:#}");
    let mut leaves = Script::start(&scene.client, LEAVES, &[&scene.gateway.v4]);
    assert_eq!(leaves.says(), "asked");
    wait::until("the request is under way", Duration::from_secs(5), || {
        let active = number(&stats(&agent), "cluster.stall.upstream_rq_active");
        (active == Some(1)).then_some(())
    });
    leaves.tell("leave");
    assert_eq!(leaves.says(), "left");
    let left = line(&agent, "/stall");
    assert_eq!(left["response_flags"], "DC", "{left:#}");
    assert_eq!(left["response_code"], 0, "{left:#}");
    let stats = stats(&agent);
    assert_eq!(
        number(&stats, "http.ingress.downstream_rq_rx_reset"),
        Some(1)
    );
    assert_eq!(number(&stats, "http.ingress.downstream_rq_active"), Some(0));
    leaves.succeeds();
}

#[test]
fn what_a_client_says_is_cut() {
    let scene = Scene::new();
    let agent = scene.agent();
    let long = "a".repeat(3000);
    scene.says(&format!("/{long}"), &["-A", &long]);
    let lines = agent.lines(2);
    let request = lines.iter().find(|line| line["kind"] == "request");
    let request = request.expect("a request's line");
    for field in ["path", "user_agent"] {
        assert_eq!(request[field].as_str().map(str::len), Some(1024), "{field}");
    }
}

#[test]
fn requests_are_counted_under_envoys_names_and_go_on_after_a_change() {
    let scene = Scene::new();
    let agent = scene.agent();
    for _ in 0..3 {
        scene.says("/page", &[]);
    }
    for path in ["/hello", "/none", "/dead", "/nowhere"] {
        scene.says(path, &[]);
    }
    let counted = |word: &str, more: u64| {
        let told = wait::until("the connections end", Duration::from_secs(5), || {
            let told = stats(&agent);
            let active = number(&told, "http.ingress.downstream_cx_active");
            (active == Some(0)).then_some(told)
        });
        for (name, value) in [
            ("http.ingress.downstream_cx_total", 7 + more),
            ("http.ingress.downstream_rq_total", 7 + more),
            ("http.ingress.downstream_rq_active", 0),
            ("http.ingress.downstream_rq_2xx", 4 + more),
            ("http.ingress.downstream_rq_4xx", 1),
            ("http.ingress.downstream_rq_5xx", 2),
            ("cluster.server.upstream_rq_total", 3),
            ("cluster.server.upstream_rq_2xx", 3),
            ("cluster.server.membership_total", 1),
            ("cluster.dead.upstream_cx_connect_fail", 1),
            ("cluster.dead.upstream_rq_5xx", 1),
            ("cluster.none.upstream_cx_none_healthy", 1),
            ("cluster.none.membership_total", 0),
        ] {
            assert_eq!(
                number(&told, name),
                Some(value),
                "{word}: {name} in\n{told}"
            );
        }
        let time = told
            .lines()
            .find(|line| line.starts_with("cluster.server.upstream_rq_time: P0("));
        assert!(time.is_some(), "{told}");
    };
    counted("at first", 0);
    let (_, page) = agent.admin("GET", "/stats/prometheus", "");
    for sample in [
        "envoy_http_downstream_rq_total{envoy_http_conn_manager_prefix=\"ingress\"} 7",
        "envoy_http_downstream_rq_xx{envoy_response_code_class=\"2\",envoy_http_conn_manager_prefix=\"ingress\"} 4",
        "envoy_cluster_upstream_rq_total{envoy_cluster_name=\"server\"} 3",
        "envoy_cluster_upstream_rq_time_count{envoy_cluster_name=\"server\"} 3",
        "envoy_cluster_membership_total{envoy_cluster_name=\"server\"} 1",
        "shunt_http_requests_total{listener=\"web\",cluster=\"server\",code_class=\"2xx\"} 3",
        "shunt_http_requests_total{listener=\"web\",cluster=\"none\",code_class=\"5xx\"} 1",
        "shunt_http_requests_total{listener=\"web\",cluster=\"\",code_class=\"4xx\"} 1",
        "shunt_http_response_bytes_count{listener=\"web\"} 7",
    ] {
        assert!(
            page.lines().any(|line| line == sample),
            "{sample} in\n{page}"
        );
    }
    assert!(page.ends_with("# EOF\n"), "{page}");
    scene.bootstrap("two");
    let mut more = 0;
    wait::until("the change", Duration::from_secs(5), || {
        more += 1;
        (scene.says("/hello", &[]) == "two").then_some(())
    });
    counted("after the change", more);
}
