//! `shunt-cni` after the real plugins of a network: bridge with host-local, portmap.

mod churn;
mod containerd;
mod failures;
mod figures;
mod handover;
mod input;
mod install;
mod life;
mod many;
mod podman;
mod restart;
mod upgrade;
mod verbs;

use serde_json::{Value, json};
use shunt_tests::cni::{Container, Network};
use shunt_tests::{Agent, Running, World};

/// Where `shunt-cni` is in the list.
const SHUNT: usize = 2;
const NOBODY: &[&str] = &[];

/// The plugin's configuration; connections are carried by the agent, so that each is in the log while it goes on.
fn asking(agent: &Agent, more: &Value) -> Value {
    let mut config = json!({
        "type": "shunt-cni",
        "socket": agent.dir.join("state/cni.sock"),
        "timeout_ms": 10_000,
        "capabilities": {"cgroupPath": true},
        "workload": {"acceleration": "off"},
    });
    let more = more.as_object().expect("an object");
    config
        .as_object_mut()
        .expect("an object")
        .extend(more.clone());
    config
}

/// nginx in a pod that is not enrolled, as its namespace is exempt.
fn server(world: &World, network: &Network<'_>) -> (Container, Running) {
    let mut server = network.container("kube-system", "server");
    network.add(&mut server).expect("added");
    let nginx = server.pod.nginx(world);
    (server, nginx)
}

/// The names of those whom the agent serves.
fn enrolled(agent: &Agent) -> Vec<String> {
    let status = agent.status();
    let all = status["workloads"].as_array().expect("a list");
    let name = |workload: &Value| {
        let text = |key: &str| workload[key].as_str().expect("a text").to_owned();
        format!("{}/{}", text("namespace"), text("name"))
    };
    all.iter().map(name).collect()
}

/// The first act of a pod: a connection to `server`. Nothing is waited for before.
fn connects(container: &Container, server: &Container) {
    let url = format!("http://{}/", server.pod.v4);
    let seen = container.pod.says("curl", &["-sSf", "-m", "5", &url]);
    assert_eq!(seen, container.pod.v4, "the client's own address");
}
