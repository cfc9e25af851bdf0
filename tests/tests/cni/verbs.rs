//! What came with 1.1.0, and VERSION. Debian's plugins do not know 1.1.0: `shunt-cni` is asked alone.

use std::time::Duration;

use serde_json::{Value, json};
use shunt_tests::agent::signal;
use shunt_tests::cni::{Container, Network, Said, binary};
use shunt_tests::{AgentBuilder, World, require, wait};

use crate::{asking, enrolled};

/// `shunt-cni` alone, with `more` in its configuration.
fn ask(network: &Network<'_>, verb: &str, container: &Container, more: &Value) -> Said {
    let mut alone = network.plugins[0].clone();
    alone["cniVersion"] = network.version.as_str().into();
    let map = alone.as_object_mut().expect("an object");
    map.extend(more.as_object().expect("an object").clone());
    if map.get("name").is_none() {
        map.insert("name".into(), "pods".into());
    }
    let input = alone.to_string();
    network.run(&binary(), verb, &container.environment(), input.as_bytes())
}

fn alone<'w>(world: &'w World, config: Value) -> Network<'w> {
    let mut network = Network::new(world, "1.1.0", config);
    network.plugins.drain(..2);
    network
}

#[test]
fn those_whom_the_runtime_has_forgotten_are_withdrawn() {
    require::everything();
    let world = World::new();
    let file = world.pod();
    let agent = AgentBuilder::new(&world, "ebpf")
        .enrol("file", &file, "")
        .start();
    let network = alone(&world, asking(&agent, &json!({})));
    let result = json!({"prevResult": {"cniVersion": "1.1.0"}});
    let pods = ["kept", "lost", "elsewhere"].map(|name| network.container("shop", name));
    for pod in &pods {
        let mut more = result.clone();
        if pod.args.ends_with("elsewhere") {
            more["name"] = "another-network".into();
        }
        let said = ask(&network, "ADD", pod, &more);
        assert!(said.succeeded, "{said:?}");
    }
    let said = ask(&network, "GC", &pods[0], &json!({}));
    assert_eq!(said.code(), 7, "not said who is valid: {said:?}");
    assert_eq!(enrolled(&agent).len(), 4);

    let valid = json!([{"containerID": pods[0].id, "ifname": "eth0"}]);
    let said = ask(
        &network,
        "GC",
        &pods[0],
        &json!({"cni.dev/valid-attachments": valid}),
    );
    assert!(said.succeeded && said.answer.is_null(), "{said:?}");
    assert_eq!(
        enrolled(&agent),
        ["default/file", "shop/elsewhere", "shop/kept"]
    );
    for pod in &pods {
        assert!(ask(&network, "DEL", pod, &json!({})).succeeded);
    }
    assert_eq!(enrolled(&agent), ["default/file"]);
}

#[test]
fn status_says_whether_pods_can_be_added() {
    require::everything();
    let world = World::new();
    let mut agent = AgentBuilder::new(&world, "ebpf").start();
    let network = alone(&world, asking(&agent, &json!({"timeout_ms": 2000})));
    let pod = network.container("shop", "client");
    let (open, closed) = (json!({}), json!({"on_failure": "closed"}));
    for policy in [&open, &closed] {
        let said = ask(&network, "STATUS", &pod, policy);
        assert!(said.succeeded && said.answer.is_null(), "{said:?}");
    }
    let worker = agent.worker_pid().expect("a data plane");
    signal("-STOP", worker);
    // By its signs of life, the last of which is too old a moment later.
    let said = wait::until("it is not ready", Duration::from_secs(10), || {
        Some(ask(&network, "STATUS", &pod, &closed)).filter(|said| !said.succeeded)
    });
    signal("-CONT", worker);
    assert_eq!(said.code(), 51, "hung: {said:?}");
    wait::until("it is ready", Duration::from_secs(10), || {
        let said = ask(&network, "STATUS", &pod, &closed);
        said.succeeded.then_some(())
    });
    agent.terminate();
    let said = ask(&network, "STATUS", &pod, &closed);
    assert_eq!(said.code(), 51, "stopped: {said:?}");
    let said = ask(&network, "STATUS", &pod, &open);
    assert!(
        said.succeeded && said.stderr.contains("warning"),
        "{said:?}"
    );
    let old = json!({"cniVersion": "1.0.0"});
    for verb in ["STATUS", "GC"] {
        let said = ask(&network, verb, &pod, &old);
        assert_eq!(said.code(), 1, "{verb} before 1.1.0: {said:?}");
    }
}

#[test]
fn version_needs_no_agent_and_no_right_input() {
    require::everything();
    let world = World::new();
    let network = Network::new(&world, "1.0.0", json!({}));
    for (input, version) in [
        (r#"{"cniVersion": "0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion": "0.3.1"}"#, "1.1.0"),
        ("", "1.1.0"),
    ] {
        let said = network.run(&binary(), "VERSION", &[], input.as_bytes());
        let supported = json!(["0.4.0", "1.0.0", "1.1.0"]);
        let expected = json!({"cniVersion": version, "supportedVersions": supported});
        assert_eq!(said.answer, expected, "{said:?}");
        assert!(said.succeeded);
    }
}

/// Nothing has to be told to the data plane, which has acknowledged everything.
#[test]
fn what_is_so_already_is_answered_at_once() {
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, "ebpf").start();
    let patient = json!({"on_failure": "closed", "timeout_ms": 5000});
    let network = alone(&world, asking(&agent, &patient));
    let pod = network.container("shop", "client");
    let result = json!({"prevResult": {"cniVersion": "1.1.0"}});
    let valid = json!([{"containerID": pod.id, "ifname": "eth0"}]);
    for _ in 0..3 {
        let said = ask(&network, "ADD", &pod, &result);
        assert!(said.succeeded && said.stderr.is_empty(), "{said:?}");
        let said = ask(
            &network,
            "GC",
            &pod,
            &json!({"cni.dev/valid-attachments": valid}),
        );
        assert!(said.succeeded && said.stderr.is_empty(), "{said:?}");
        assert_eq!(enrolled(&agent), ["shop/client"]);
    }
    assert!(ask(&network, "DEL", &pod, &json!({})).succeeded);
}
