//! The agent or Envoys, with one and the same bootstrap.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shunt_tests::{Agent, AgentBuilder, Pod, Running, World, agent, wait};

use super::ORIGIN;

/// Of every proxy's listener.
pub(super) const PORT: u16 = 10_000;
/// Routes of the virtual host `routes`, of which the last is asked for.
const ROUTES: usize = 1000;
/// How often one that was asked to end is looked at, every 10 ms.
const ASKED: u32 = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bench) enum Chain {
    Nothing,
    Shunt,
    Envoy,
    /// One beside the client, one beside the server.
    TwoEnvoys,
    /// Client and server enrolled in an agent, whose listeners are for the captured connections of both: the mode, and a
    /// field of each workload.
    OnePass(&'static str, &'static str),
}

/// Killed when dropped.
pub(super) struct Proxies {
    running: Vec<Running>,
    agent: Option<Agent>,
}

impl Proxies {
    pub(super) fn start(
        chain: Chain,
        world: &World,
        client: &Pod,
        server: &Pod,
        envoy: &Path,
    ) -> Result<Self> {
        let dir = world.dir.path();
        let file = |pod: &Pod, to: &str| {
            let file = dir.join(format!("{}.yaml", pod.port()));
            fs::write(&file, bootstrap(pod, to)).context("a bootstrap")?;
            Ok::<_, anyhow::Error>(file)
        };
        let origin = format!("{}:{ORIGIN}", server.v4);
        let beside = |pod: &Pod, to: &str, workers: &str| {
            let mut command = pod.command(&envoy.display().to_string());
            command.arg("-c").arg(file(pod, to)?);
            command.args(["--concurrency", workers, "--disable-hot-restart"]);
            command.args(["--log-level", "error"]);
            start(command, &dir.join("proxy.log"), pod)
        };
        let mut agent = None;
        let running = match chain {
            Chain::OnePass(mode, workload) => {
                let file = dir.join("captured.yaml");
                fs::write(&file, captured(server)).context("a bootstrap")?;
                let builder = AgentBuilder::new(world, mode)
                    .set(&format!("bootstrap: {}", file.display()))
                    .set("log: {level: info, format: json, access: off}")
                    .enrol("client", client, workload)
                    .enrol("server", server, workload);
                agent = Some(builder.start());
                Vec::new()
            }
            Chain::Nothing => Vec::new(),
            Chain::Envoy => vec![beside(client, &origin, "2")?],
            // With one worker each, a chain on two cores is faster than with two.
            Chain::TwoEnvoys => {
                let there = format!("{}:{PORT}", server.v4);
                vec![beside(server, &origin, "1")?, beside(client, &there, "1")?]
            }
            Chain::Shunt => {
                let at = dir.display();
                let bootstrap = file(client, &origin)?;
                let config = format!(
                    "concurrency: 2\nstate_dir: {at}/state\nadmin: {{socket: {at}/admin.sock}}\n\
                     log: {{level: warn, access: off}}\nbootstrap: {}\n",
                    bootstrap.display()
                );
                let config_file = dir.join("shunt.yaml");
                fs::write(&config_file, config).context("a configuration")?;
                let mut command = client.command(&agent::binary().display().to_string());
                command.args(["run", "-c"]).arg(config_file);
                vec![start(command, &dir.join("proxy.log"), client)?]
            }
        };
        Ok(Self { running, agent })
    }

    /// Theirs and their children's.
    pub(super) fn pids(&self) -> Result<Vec<u32>> {
        let running = self.running.iter().map(|running| running.0.id());
        let mut pids: Vec<u32> = running.chain(self.agent.as_ref().map(Agent::pid)).collect();
        let mut next = 0;
        while let Some(pid) = pids.get(next).copied() {
            let children = format!("/proc/{pid}/task/{pid}/children");
            let text = fs::read_to_string(&children).context(children)?;
            for child in text.split_whitespace() {
                pids.push(child.parse()?);
            }
            next += 1;
        }
        Ok(pids)
    }
}

impl Drop for Proxies {
    /// The agent ends its data plane itself. Who does not end is killed by its guard.
    fn drop(&mut self) {
        for Running(child) in &mut self.running {
            let pid = child.id().to_string();
            // It fails only for one that has ended.
            let _ = Command::new("kill").arg(pid).status();
            for _ in 0..ASKED {
                if !matches!(child.try_wait(), Ok(None)) {
                    break;
                }
                wait::pause(Duration::from_millis(10));
            }
        }
    }
}

fn start(mut command: Command, log: &Path, pod: &Pod) -> Result<Running> {
    let log_file = File::create(log).context("a log")?;
    command
        .stdin(Stdio::null())
        .stdout(log_file.try_clone()?)
        .stderr(log_file);
    let running = Running(command.spawn().context("a proxy")?);
    pod.wait_for_listener(PORT);
    let said = fs::read_to_string(log).unwrap_or_default();
    ensure!(!said.contains("error"), "a proxy is not well: {said}");
    Ok(running)
}

/// Where a proxy of a bootstrap listens, and its one upstream.
struct Front<'a> {
    /// Of the listener: YAML, one field each.
    listener: Vec<String>,
    /// YAML: of the cluster.
    cluster: &'a str,
    name: &'a str,
}

/// Routing, and nothing beside it: what both proxies do at least.
fn bootstrap(pod: &Pod, to: &str) -> String {
    let (host, port) = to.rsplit_once(':').unwrap_or((to, "80"));
    let front = Front {
        listener: vec![format!(
            "address: {}",
            socket_address(&pod.v4, &PORT.to_string())
        )],
        cluster: &static_cluster(host, port),
        name: "front",
    };
    whole(&[front])
}

/// For the connections of a client to the server: its own configuration, and the server's.
fn captured(server: &Pod) -> String {
    let port = ORIGIN.to_string();
    let of = |direction: &str| {
        vec![
            format!("address: {}", socket_address(&server.v4, &port)),
            "bind_to_port: false".to_owned(),
            format!("traffic_direction: {direction}"),
        ]
    };
    let original = "type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED";
    let far = static_cluster(&server.v4, &port);
    whole(&[
        Front {
            listener: of("OUTBOUND"),
            cluster: &far,
            name: "outbound",
        },
        Front {
            listener: of("INBOUND"),
            cluster: original,
            name: "inbound",
        },
    ])
}

fn socket_address(host: &str, port: &str) -> String {
    format!("{{socket_address: {{address: {host}, port_value: {port}}}}}")
}

fn static_cluster(host: &str, port: &str) -> String {
    let address = socket_address(host, port);
    format!(
        "type: STATIC, load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {address}}}}}]}}]}}"
    )
}

fn whole(fronts: &[Front<'_>]) -> String {
    let listeners: String = fronts.iter().map(listener).collect();
    let clusters: String = fronts
        .iter()
        .map(|front| {
            let (name, cluster) = (front.name, front.cluster);
            format!("  - {{name: {name}, connect_timeout: 1s, {cluster}}}\n")
        })
        .collect();
    format!("static_resources:\n  listeners:\n{listeners}  clusters:\n{clusters}")
}

fn listener(front: &Front<'_>) -> String {
    let (name, head) = (front.name, front.listener.join("\n    "));
    let routes: String = (0..ROUTES)
        .map(|at| {
            format!("              - {{match: {{path: /r{at}}}, route: {{cluster: {name}}}}}\n")
        })
        .collect();
    // One field a line.
    let head = head
        .replace("}, ", "}\n    ")
        .replace("false, ", "false\n    ");
    format!(
        "  - name: {name}
    {head}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: all
              domains: [\"*\"]
              routes: [{{match: {{prefix: /}}, route: {{cluster: {name}}}}}]
            - name: routes
              domains: [routes]
              routes:
{routes}"
    )
}
