//! Two pods that are enrolled and one that is not, and bootstraps in the making.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use shunt_tests::{Agent, AgentBuilder, Pod, Running, Script, Way, World, require, wait};

/// Says of each request who asked, how many connections there have been, and which `x-` headers came, sorted.
const TELLER: &str = "
import http.server, json, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        mine = sorted(f'{name.lower()}={value}' for name, value in self.headers.items() if name.lower().startswith('x-t-'))
        said = ' '.join([self.path, self.client_address[0].removeprefix('::ffff:'), str(self.server.made)] + mine).encode()
        self.send_response(200)
        self.send_header('content-length', str(len(said)))
        self.end_headers()
        self.wfile.write(said)
    def log_message(self, *args): pass
class Server(http.server.ThreadingHTTPServer):
    made = 0
    def get_request(self):
        self.made += 1
        return super().get_request()
server = Server(('0.0.0.0', 8080), Handler)
print('ready', flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
";

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";

pub struct Scene {
    pub world: World,
    pub client: Pod,
    pub server: Pod,
    pub other: Pod,
    pub _nginx: Running,
    _teller: Script,
}

impl Scene {
    pub fn new() -> Self {
        require::everything();
        let world = World::new();
        let [client, server, other] = [(); 3].map(|()| world.pod());
        let nginx = server.nginx(&world);
        let mut teller = Script::start(&server, TELLER, &[]);
        assert_eq!(teller.says(), "ready");
        Self {
            world,
            client,
            server,
            other,
            _nginx: nginx,
            _teller: teller,
        }
    }

    pub fn agent(&self, way: Way, bootstrap: &str) -> Agent {
        let path = self.write(bootstrap);
        AgentBuilder::new(&self.world, way.mode)
            .set(&format!("bootstrap: {}", path.display()))
            .enrol("client", &self.client, way.more)
            .enrol("server", &self.server, way.more)
            .start()
    }

    pub fn write(&self, bootstrap: &str) -> PathBuf {
        let path = self.world.dir.path().join("bootstrap.yaml");
        let new = path.with_extension("new");
        fs::write(&new, bootstrap).expect("written");
        fs::rename(new, &path).expect("renamed");
        path
    }

    /// An address of the network that nobody has.
    pub fn nowhere(&self) -> &'static str {
        "10.66.0.200"
    }

    pub fn curl(&self, url: &str) -> String {
        self.client.says("curl", &["-sS", "-m", "5", url])
    }

    /// curl's exit status.
    pub fn fails(&self, url: &str) -> Option<i32> {
        let out = self.client.run("curl", &["-sS", "-m", "5", url]);
        out.status.code()
    }

    /// Lines of the access log about connections, once there are so many.
    pub fn connections(&self, agent: &Agent, count: usize) -> Vec<Value> {
        let lines = || {
            let mut lines = agent.access_log();
            lines.retain(|line| line["kind"] != "request");
            lines
        };
        let what = format!("{count} connections in the log");
        let lines = wait::until(&what, Duration::from_secs(5), || {
            let lines = lines();
            (lines.len() >= count).then_some(lines)
        });
        assert_eq!(lines.len(), count, "{lines:#?}");
        lines
    }

    pub fn told_at(&self) -> String {
        format!("http://{}:8080", self.server.v4)
    }
}

/// One listener of a bootstrap.
pub struct Listener {
    name: &'static str,
    head: String,
    filters: String,
    chains: String,
}

impl Listener {
    fn new(name: &'static str, direction: &str, addr: &str, port: u16, more: &str) -> Self {
        Self {
            name,
            head: format!(
                "traffic_direction: {direction}, address: {{socket_address: {{address: \"{addr}\", port_value: {port}}}}}, {more}"
            ),
            filters: String::new(),
            chains: String::new(),
        }
    }

    /// For captured connections to there.
    pub fn at(name: &'static str, direction: &str, addr: &str, port: u16) -> Self {
        Self::new(name, direction, addr, port, "bind_to_port: false")
    }

    /// For all that no other is for, as Istio writes it.
    pub fn rest(name: &'static str, direction: &str) -> Self {
        Self::new(name, direction, "0.0.0.0", 15001, "use_original_dst: true")
    }

    /// As `tls_inspector`.
    pub fn filter(mut self, name: &str) -> Self {
        let message: String = name
            .split('_')
            .map(|word| word[..1].to_uppercase() + &word[1..])
            .collect();
        self.filters += &format!(
            "{{name: {name}, typed_config: {{\"@type\": {FILTERS}.listener.{name}.v3.{message}}}}}, "
        );
        self
    }

    pub fn also(mut self, more: &str) -> Self {
        self.head += &format!(", {more}");
        self
    }

    /// `matches` as in `filter_chain_match`.
    pub fn tcp(mut self, matches: &str, cluster: &str) -> Self {
        self.chains += &format!(
            "{{filter_chain_match: {{{matches}}}, filters: [{{name: tcp, typed_config: {{\"@type\": {FILTERS}.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: {cluster}}}}}]}}, "
        );
        self
    }

    /// `hosts`: virtual hosts, separated by commas.
    pub fn http(self, matches: &str, hosts: &str) -> Self {
        self.manager(matches, hosts, "")
    }

    /// `more`: of the connection manager.
    pub fn manager(mut self, matches: &str, hosts: &str, more: &str) -> Self {
        self.chains += &format!(
            "{{filter_chain_match: {{{matches}}}, filters: [{{name: http, typed_config: {{\"@type\": {FILTERS}.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: t, {more} route_config: {{virtual_hosts: [{hosts}]}}, http_filters: [{{name: router, typed_config: {{\"@type\": {FILTERS}.http.router.v3.Router}}}}]}}}}]}}, "
        );
        self
    }
}

/// A virtual host for everybody: everything gets this answer.
pub fn says(word: &str) -> String {
    format!(
        "{{name: all, domains: [\"*\"], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {word}}}}}}}]}}"
    )
}

/// Everything goes to this cluster with a header more.
pub fn to(cluster: &str, header: &str, value: &str) -> String {
    format!(
        "{{name: all, domains: [\"*\"], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}, request_headers_to_add: [{{header: {{key: {header}, value: \"{value}\"}}}}]}}]}}"
    )
}

/// A bootstrap with these listeners, and the clusters that all may use: `passthrough`, `blackhole`, and those given as
/// name and endpoint.
pub fn bootstrap(listeners: &[Listener], clusters: &[(&str, &str, u16)]) -> String {
    let mut text = "static_resources:\n  listeners:\n".to_owned();
    for listener in listeners {
        let Listener {
            name,
            head,
            filters,
            chains,
        } = listener;
        text += &format!(
            "  - {{name: {name}, {head}, listener_filters: [{filters}], filter_chains: [{chains}]}}\n"
        );
    }
    text += "  clusters:\n  - {name: passthrough, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED}\n  - {name: blackhole}\n";
    for (name, addr, port) in clusters {
        text += &format!(
            "  - {{name: {name}, load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: \"{addr}\", port_value: {port}}}}}}}}}]}}]}}}}\n"
        );
    }
    text
}
