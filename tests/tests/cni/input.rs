//! What is wrong on stdin or in the variables: the specification's codes, and nothing installed.

use serde_json::{Value, json};
use shunt_tests::cni::{Network, binary};
use shunt_tests::{AgentBuilder, World, require};

use crate::{NOBODY, asking, enrolled};

#[test]
fn wrong_input_has_its_code_and_installs_nothing() {
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, "ebpf").start();
    let network = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    let pod = network.container("shop", "client");
    let mut right = asking(&agent, &json!({}));
    right["name"] = "pods".into();
    right["cniVersion"] = "1.0.0".into();
    right["prevResult"] = json!({"cniVersion": "1.0.0", "interfaces": []});
    let before = pod.pod.state();

    let with = |key: &str, value: Value| {
        let mut config = right.clone();
        config[key] = value;
        config.to_string()
    };
    let annotations = json!({"io.kubernetes.cri.pod-annotations": {"a": "x".repeat(1 << 20)}});
    let inputs = [
        ("nothing", String::new(), 6),
        ("half", right.to_string()[..40].to_owned(), 6),
        ("a list", "[]".into(), 6),
        ("deep", "[".repeat(100_000), 6),
        ("annotations of 1 MB", with("runtimeConfig", annotations), 6),
        ("zeroes", "\0".repeat(1 << 20), 6),
        ("no version", with("cniVersion", Value::Null), 1),
        ("an old version", with("cniVersion", "0.3.1".into()), 1),
        ("a version to come", with("cniVersion", "2.0.0".into()), 1),
        ("a key nobody knows", with("colour", "red".into()), 7),
        ("no previous result", with("prevResult", Value::Null), 7),
        (
            "a wrong workload",
            with("workload", json!({"mode": "x"})),
            7,
        ),
        (
            "labels of 100 KB",
            with("workload", json!({"labels": {"a": "x".repeat(100_000)}})),
            7,
        ),
        ("no timeout", with("timeout_ms", 0.into()), 7),
    ];
    for (what, input, code) in inputs {
        let said = network.run(&binary(), "ADD", &pod.environment(), input.as_bytes());
        assert_eq!(said.code(), code, "{what}: {said:?}");
    }

    let variables = [
        ("CNI_COMMAND", "BUILD"),
        ("CNI_COMMAND", ""),
        ("CNI_CONTAINERID", ""),
        ("CNI_CONTAINERID", "a b"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_NETNS", ""),
        ("CNI_NETNS", "/var/run/netns/nobody"),
        ("CNI_NETNS", "/etc/passwd"),
        ("CNI_NETNS", "/proc/self/ns/net"),
        ("CNI_ARGS", "K8S_POD_NAME"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=..;K8S_POD_NAME=a"),
    ];
    for (name, value) in variables {
        let mut environment = pod.environment();
        environment.push((name, value.into()));
        let input = right.to_string();
        let said = network.run(&binary(), "ADD", &environment, input.as_bytes());
        assert_eq!(said.code(), 4, "{name}={value}: {said:?}");
    }
    assert_eq!(enrolled(&agent), NOBODY);
    assert_eq!(pod.pod.state(), before);
}
