//! Pods that are enrolled by what the Kubernetes API says of them.

mod enrolment;
mod host;
mod life;
mod outage;
mod plugin;
mod tls;

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use shunt_tests::kubernetes::{ApiServer, Driver, Sandbox, namespace, pod};
use shunt_tests::{Agent, AgentBuilder, World, wait};

/// An API server that knows the namespaces, and an agent that asks it.
fn scene<'w>(world: &'w World, mode: &str, more: &str) -> (ApiServer, AgentBuilder<'w>) {
    let api = ApiServer::start();
    put_namespaces(&api);
    let section = api.section(world.dir.path(), more);
    (api, AgentBuilder::new(world, mode).set(&section))
}

fn put_namespaces(api: &ApiServer) {
    for name in ["default", "kube-system", "shop"] {
        api.put(namespace(
            name,
            json!({"kubernetes.io/metadata.name": name}),
        ));
    }
}

/// A pod of namespace `shop` that runs, as the API shows it; its connections are carried, so that each is in the log.
fn shown(name: &str, sandbox: &Sandbox, label: Option<&str>) -> Value {
    let mut labels = json!({"app": name, "pod-template-hash": "6d4b75cb6d"});
    if let Some(label) = label {
        labels["shunt.io/inject"] = label.into();
    }
    let annotations = json!({"shunt.io/acceleration": "off"});
    pod(name, &sandbox.uid, &sandbox.pod.v4, labels, annotations)
}

/// Waits until the agent serves exactly these.
fn wait_for(agent: &Agent, names: &[&str]) {
    wait::until(
        &format!("{names:?} are served"),
        Duration::from_secs(15),
        || (served(agent) == names).then_some(()),
    );
}

fn served(agent: &Agent) -> Vec<String> {
    let status = agent.status();
    let all = status["workloads"].as_array().cloned().unwrap_or_default();
    let ready = all.iter().filter(|workload| workload["state"] == "ready");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    ready.map(|workload| text(&workload["name"])).collect()
}

/// Another supervisor takes the place of the one that is there.
fn upgrade_all(agent: &Agent) {
    let mut shunt = Command::new(shunt_tests::agent::binary());
    shunt.args(["upgrade", "all", "--socket"]);
    shunt.arg(agent.dir.join("admin.sock"));
    let output = shunt.output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
}

/// A connection, and whether it was intercepted.
fn is_intercepted(agent: &Agent, from: &Sandbox, to: &Sandbox) -> bool {
    let before = agent.access_log().len();
    let seen = from.pod.says(
        "curl",
        &["-sSf", "-m", "5", &format!("http://{}/", to.pod.v4)],
    );
    assert_eq!(seen, from.pod.v4, "the client's own address");
    // It is written by and by: a line for a connection that is certainly carried would come after it.
    let deadline = std::time::Instant::now() + Duration::from_secs(1);
    while std::time::Instant::now() < deadline {
        if agent.access_log().len() > before {
            return true;
        }
        wait::pause(Duration::from_millis(20));
    }
    false
}

fn two(world: &World) -> (Sandbox, Sandbox) {
    (
        Sandbox::run(world, Driver::Systemd),
        Sandbox::run(world, Driver::Systemd),
    )
}
