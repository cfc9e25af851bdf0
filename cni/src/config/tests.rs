use serde_json::json;

use super::*;

fn parsed(more: Value) -> Result<NetworkConfig, Failure> {
    let mut input = json!({"cniVersion": "1.0.0", "name": "pods", "type": "shunt-cni"});
    if let (Some(map), Value::Object(more)) = (input.as_object_mut(), more) {
        map.extend(more);
    }
    NetworkConfig::parse(input)
}

#[test]
fn what_is_not_said_has_a_default() {
    let settings = parsed(json!({})).expect("right").settings;
    assert_eq!(settings.socket, PathBuf::from("/run/shunt/cni.sock"));
    assert_eq!(settings.on_failure, OnFailure::Open);
    assert_eq!(settings.timeout(), Duration::from_secs(2));
    assert_eq!(settings.exempt_namespaces, ["kube-system", "shunt-system"]);
    assert!(!settings.some_fail_closed());
}

#[test]
fn what_the_specification_allows_is_no_fault() {
    let config = parsed(json!({
        "args": {"a": 1}, "capabilities": {"cgroupPath": true}, "cni.dev/other": 1, "prevResult": {},
        "runtimeConfig": {"cgroupPath": "/kubepods/pod1", "dns": {}},
        "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}],
        "workload": {"acceleration": {"direct": false, "ports": {"5432": "off"}}, "labels": {"app": "web"}},
    }));
    let config = config.expect("right");
    assert_eq!(config.cgroup.as_deref(), Some("/kubepods/pod1"));
    assert_eq!(config.valid.as_deref(), Some(&["a".to_owned()][..]));
}

#[test]
fn a_wrong_configuration_is_refused() {
    for wrong in [
        json!({"sockets": "/x"}),
        json!({"socket": "x"}),
        json!({"socket": 1}),
        json!({"on_failure": "ajar"}),
        json!({"timeout_ms": 0}),
        json!({"timeout_ms": 60_001}),
        json!({"timeout_ms": -1}),
        json!({"exempt_namespaces": "kube-system"}),
        json!({"namespaces": {"prod": {"on_failure": "ajar"}}}),
        json!({"namespaces": {"prod": {"colour": "red"}}}),
        json!({"namespaces": ["prod"]}),
        json!({"name": null}),
        json!({"name": "../x"}),
        json!({"prevResult": []}),
        json!({"runtimeConfig": 1}),
        json!({"runtimeConfig": {"cgroupPath": 1}}),
        json!({"cni.dev/valid-attachments": [{"ifname": "eth0"}]}),
        json!({"workload": []}),
        json!({"workload": {"colour": "red"}}),
        json!({"workload": {"netns": "x"}}),
        json!({"workload": {"namespace": "x"}}),
        json!({"workload": {"outbound": {"exclude_ports": ["x"]}}}),
        json!({"workload": {"cgroup": "../x"}}),
        json!({"workload": {"cgroup": "{colour}"}}),
        json!({"workload": {"labels": {"shunt.io/cni-container": "x"}}}),
    ] {
        let failure = parsed(wrong.clone()).expect_err("refused");
        assert_eq!(failure.code, Code::InvalidConfig, "{wrong}: {failure}");
    }
}

#[test]
fn other_versions_are_incompatible() {
    for version in [
        json!(null),
        json!("0.3.1"),
        json!("1.2.0"),
        json!(1),
        json!(""),
    ] {
        let failure = parsed(json!({"cniVersion": version})).expect_err("refused");
        assert_eq!(failure.code, Code::IncompatibleVersion, "{version}");
    }
}

#[test]
fn what_is_no_json_or_too_long_cannot_be_decoded() {
    let long = format!("{{\"a\": \"{}\"}}", "x".repeat(1 << 20));
    let deep = "[".repeat(100_000);
    for text in ["", "{", "\u{feff}{}", "nonsense", &long, &deep] {
        let failure = read(text.as_bytes()).expect_err("refused");
        assert_eq!(failure.code, Code::Undecodable);
    }
    let failure = NetworkConfig::parse(json!([])).expect_err("refused");
    assert_eq!(failure.code, Code::Undecodable);
}

#[test]
fn a_namespace_may_have_its_own_policy() {
    let config = parsed(json!({
        "namespaces": {
            "prod": {"on_failure": "closed"},
            "kube-system": {"exempt": false},
            "dev": {"exempt": true},
        },
    }));
    let config = config.expect("right");
    assert!(config.settings.some_fail_closed());
    let of = |namespace: &str| {
        let variable = |name: &str| {
            let value = match name {
                "CNI_CONTAINERID" => "c0ffee".to_owned(),
                "CNI_IFNAME" => "eth0".to_owned(),
                _ => format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=a"),
            };
            Some(value.into())
        };
        let attachment = Attachment::read(variable).expect("right");
        (
            config.settings.policy(&attachment),
            config.exempts(&attachment),
        )
    };
    assert_eq!(of("prod"), (OnFailure::Closed, false));
    assert_eq!(of("kube-system"), (OnFailure::Open, false));
    assert_eq!(of("shunt-system"), (OnFailure::Open, true));
    assert_eq!(of("dev"), (OnFailure::Open, true));
    assert_eq!(of("shop"), (OnFailure::Open, false));
}
