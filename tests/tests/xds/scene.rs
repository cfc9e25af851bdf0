//! A gateway whose configuration is in files, nginx behind it and a client before it.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use shunt_tests::{Agent, AgentBuilder, Pod, Running, World, require};

const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";

pub struct Scene {
    pub world: World,
    pub gateway: Pod,
    pub client: Pod,
    pub server: Pod,
    _nginx: Running,
}

impl Scene {
    /// With a file of each kind.
    pub fn new() -> Self {
        require::everything();
        let world = World::new();
        let [gateway, client, server] = [(); 3].map(|()| world.pod());
        let nginx = server.nginx(&world);
        let scene = Self {
            world,
            gateway,
            client,
            server,
            _nginx: nginx,
        };
        fs::create_dir(scene.at("")).expect("a directory");
        let at = scene.at("").display().to_string();
        let at = at.trim_end_matches('/');
        scene.write(
            "bootstrap.yaml",
            &format!(
                "node: {{id: gateway, cluster: tests}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 9901}}}}}}
dynamic_resources:
  lds_config: {{path_config_source: {{path: {at}/lds.yaml, watched_directory: {{path: {at}}}}}}}
  cds_config: {{path_config_source: {{path: {at}/cds.yaml}}}}
static_resources:
  clusters:
  - name: own
    load_assignment: {{cluster_name: own, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}}}}}]}}]}}
  listeners:
  - name: fixed
    address: {{socket_address: {{address: {gateway}, port_value: 82}}}}
    filter_chains: [{{filters: [{{name: t, typed_config: {{\"@type\": {NETWORK}.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: own}}}}]}}]
",
                gateway = scene.gateway.v4
            ),
        );
        scene.listener("web", "");
        scene.routes("v1");
        scene.cluster("c1", "1s");
        scene.endpoints("e1", 1);
        scene
    }

    pub fn agent(&self) -> Agent {
        AgentBuilder::new(&self.world, "auto")
            .inside(&self.gateway)
            .set(&format!(
                "bootstrap: {}",
                self.at("bootstrap.yaml").display()
            ))
            .start()
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.world.dir.path().join("xds").join(name)
    }

    /// In the place of the one before.
    pub fn write(&self, name: &str, text: &str) {
        let new = self.at(&format!("{name}.new"));
        fs::write(&new, text).expect("written");
        fs::rename(new, self.at(name)).expect("renamed");
    }

    /// Of these names: `web` is on port 80, `also` on port 81. `version_info` is both together.
    pub fn listener(&self, first: &str, second: &str) {
        self.listeners_of(first, second, "shunt");
    }

    pub fn listeners_of(&self, first: &str, second: &str, server: &str) {
        let mut text = format!("version_info: \"{first}+{second}+{server}\"\nresources:\n");
        for name in [first, second].iter().filter(|name| !name.is_empty()) {
            let port = if *name == "web" { 80 } else { 81 };
            text += &format!(
                "- \"@type\": type.googleapis.com/envoy.config.listener.v3.Listener
  name: {name}
  address: {{socket_address: {{address: {gateway}, port_value: {port}}}}}
  filter_chains:
  - filters:
    - name: http
      typed_config:
        \"@type\": {NETWORK}.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: {name}
        server_name: {server}
        rds: {{route_config_name: routes, config_source: {{path_config_source: {{path: {rds}}}}}}}
        http_filters: [{{name: router, typed_config: {{\"@type\": {ROUTER}}}}}]
",
                gateway = self.gateway.v4,
                rds = self.at("rds.yaml").display()
            );
        }
        self.write("lds.yaml", &text);
    }

    pub fn route_text(&self, version: &str) -> String {
        format!(
            "version_info: {version}
resources:
- \"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: routes
  response_headers_to_add: [{{header: {{key: x-version, value: {version}}}}}]
  virtual_hosts:
  - {{name: all, domains: [\"*\"], routes: [{{match: {{prefix: /}}, route: {{cluster: server}}}}]}}
"
        )
    }

    pub fn routes(&self, version: &str) {
        self.write("rds.yaml", &self.route_text(version));
    }

    pub fn cluster(&self, version: &str, connect_timeout: &str) {
        let text = format!(
            "version_info: {version}
resources:
- \"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: server
  type: EDS
  connect_timeout: {connect_timeout}
  eds_cluster_config: {{service_name: nginx, eds_config: {{path_config_source: {{path: {eds}}}}}}}
",
            eds = self.at("eds.yaml").display()
        );
        self.write("cds.yaml", &text);
    }

    pub fn endpoints(&self, version: &str, weight: u32) {
        let text = format!(
            "version_info: {version}
resources:
- \"@type\": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: nginx
  endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {server}, port_value: 80}}}}}}, load_balancing_weight: {weight}}}]}}]
",
            server = self.server.v4
        );
        self.write("eds.yaml", &text);
    }

    /// Clusters whose endpoints have said how they are: one sends to those only that are well, one to all.
    pub fn health(&self) {
        let endpoint = |port: u16, more: &str| {
            format!(
                "{{endpoint: {{hostname: h{port}.test, address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}{more}}}"
            )
        };
        let mut clusters = String::new();
        for (name, first) in [
            ("well", ["", ", health_status: HEALTHY"]),
            ("ill", [", health_status: UNHEALTHY"; 2]),
        ] {
            let rest = [
                ", health_status: DRAINING",
                ", health_status: TIMEOUT, load_balancing_weight: 3",
            ];
            let all = first.iter().chain(&rest).zip(1..);
            let all: Vec<String> = all.map(|(more, port)| endpoint(port, more)).collect();
            clusters += &format!(
                "  - {{name: {name}, load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{}]}}]}}}}\n",
                all.join(", ")
            );
        }
        let text = fs::read_to_string(self.at("bootstrap.yaml")).expect("a file");
        let text = text.replace("  clusters:\n", &format!("  clusters:\n{clusters}"));
        self.write("bootstrap.yaml", &text);
    }

    fn curl(&self, port: u16, args: &[&str]) -> String {
        let url = format!("http://{}:{port}/", self.gateway.v4);
        let args = [&["-sS", "-m", "5"], args, &[url.as_str()]].concat();
        let output = self.client.run("curl", &args);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Which routes a request takes.
    pub fn version(&self, port: u16) -> String {
        self.curl(port, &["-o", "/dev/null", "-w", "%header{x-version}"])
    }

    /// `000` when nobody answers.
    pub fn status(&self, port: u16) -> String {
        self.curl(port, &["-o", "/dev/null", "-w", "%{http_code}"])
    }

    pub fn text(&self, port: u16) -> String {
        self.curl(port, &[])
    }

    /// Whose inodes say whether the sockets of a listener are the same.
    pub fn socket(&self, port: u16) -> Vec<String> {
        let port = format!("sport = :{port}");
        let listed = self.gateway.says("ss", &["-Hltne", &port]);
        let words = listed.split_whitespace();
        let inodes = words.filter(|word| word.starts_with("ino:"));
        inodes.map(str::to_owned).collect()
    }
}

pub fn dump(agent: &Agent, query: &str) -> Value {
    let (_, text) = agent.admin("GET", &format!("/config_dump{query}"), "");
    serde_json::from_str(&text).expect("JSON")
}

/// What is said of the file of this kind.
pub fn source(dump: &Value, kind: &str) -> Value {
    let sources = dump["sources"].as_array().into_iter().flatten();
    let mut of_kind = sources.filter(|source| source["kind"] == kind);
    of_kind.next().cloned().unwrap_or_default()
}
