//! What the agent is asked for: a workload, as the network's configuration and the runtime describe it.

use serde_json::{Map, Value};
use shunt_cni_protocol::MAX_WORKLOAD;
use shunt_core::config::file;
use shunt_core::status::OWNERSHIP;
use shunt_core::workload::{ModeSetting, WorkloadName};

use crate::config::{NetworkConfig, OnFailure};
use crate::environment::Attachment;
use crate::failure::{Code, Failure};

/// Known from the runtime, each pod's own.
const NOT_OURS: [&str; 3] = ["name", "namespace", "netns"];

/// As the agent is told of it.
pub(crate) fn described(
    config: &NetworkConfig,
    attachment: &Attachment,
    on_failure: OnFailure,
) -> Result<Value, Failure> {
    let mut map = config.settings.workload.clone();
    let cgroup = match (&config.cgroup, map.get("cgroup").and_then(Value::as_str)) {
        // Below the cgroup2 mount, though it begins with a slash.
        (Some(told), _) => Some(told.trim_start_matches('/').to_owned()),
        (None, Some(pattern)) => Some(filled(pattern, attachment)?),
        (None, None) => None,
    };
    if let Some(cgroup) = cgroup.filter(|cgroup| !cgroup.is_empty()) {
        map.insert("cgroup".into(), cgroup.into());
    }
    map.entry("on_failure").or_insert_with(|| match on_failure {
        OnFailure::Open => "open".into(),
        OnFailure::Closed => "closed".into(),
    });
    right(&map, &attachment.workload)?;
    Ok(map.into())
}

/// Is this an entry of `workloads` as the agent takes it, once the runtime's part is added?
pub(crate) fn check(workload: &Map<String, Value>) -> Result<(), Failure> {
    if let Some(key) = NOT_OURS.iter().find(|key| workload.contains_key(**key)) {
        let text = format!("workload.{key}: the runtime says it, each pod's own");
        return Err(invalid(text));
    }
    let labels = workload.get("labels").and_then(Value::as_object);
    let reserved = |key: &&String| key.starts_with(OWNERSHIP);
    if let Some(key) = labels.and_then(|labels| labels.keys().find(reserved)) {
        return Err(invalid(format!(
            "workload.labels: {key} is the agent's own"
        )));
    }
    let mut map = workload.clone();
    if let Some(pattern) = map.get("cgroup").and_then(Value::as_str) {
        let path = replaced(pattern, |_| Some("x"))?;
        map.insert("cgroup".into(), path.into());
    }
    let name = WorkloadName {
        namespace: "x".into(),
        name: "x".into(),
    };
    right(&map, &name)
}

/// Would the agent take it?
fn right(map: &Map<String, Value>, name: &WorkloadName) -> Result<(), Failure> {
    let mut map = map.clone();
    map.insert("netns".into(), "x".into());
    let text = Value::Object(map).to_string();
    if text.len() > MAX_WORKLOAD {
        let text = format!("workload: more than {} KiB", MAX_WORKLOAD >> 10);
        return Err(invalid(text));
    }
    match file::parse_workload(&text, name, ModeSetting::default()) {
        Ok(_) => Ok(()),
        Err(error) => {
            let fault =
                |fault: &file::Fault| format!("workload.{}: {}", fault.field, fault.message);
            let faults: Vec<String> = error.faults().iter().map(fault).collect();
            Err(invalid(faults.join("; ")))
        }
    }
}

fn filled(pattern: &str, attachment: &Attachment) -> Result<String, Failure> {
    let of_name = &attachment.workload;
    replaced(pattern, |placeholder| match placeholder {
        "container" => Some(attachment.container.as_str()),
        "namespace" => Some(&of_name.namespace),
        "name" => Some(&of_name.name),
        _ => attachment.uid.as_deref(),
    })
}

/// `{container}`, `{namespace}`, `{name}` and `{uid}` by what they stand for.
fn replaced<'a>(
    pattern: &str,
    stands_for: impl Fn(&str) -> Option<&'a str>,
) -> Result<String, Failure> {
    let wrong = |what: String| invalid(format!("workload.cgroup: {what}"));
    let (mut text, mut rest) = (String::new(), pattern);
    while let Some((before, after)) = rest.split_once('{') {
        let (placeholder, after) = after
            .split_once('}')
            .filter(|(word, _)| ["container", "namespace", "name", "uid"].contains(word))
            .ok_or_else(|| {
                wrong(format!(
                    "`{pattern}` may have {{container}}, {{namespace}}, {{name}}, {{uid}}"
                ))
            })?;
        let value = stands_for(placeholder)
            .ok_or_else(|| wrong(format!("the runtime does not say the pod's {placeholder}")))?;
        text.push_str(before);
        text.push_str(value);
        rest = after;
    }
    Ok(text + rest)
}

fn invalid(what: String) -> Failure {
    Failure::new(Code::InvalidConfig, what)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use serde_json::json;

    use super::*;

    fn asked(more: Value) -> Value {
        let mut input = json!({"cniVersion": "1.0.0", "name": "pods", "type": "shunt-cni"});
        if let (Some(map), Value::Object(more)) = (input.as_object_mut(), more) {
            map.extend(more);
        }
        let config = NetworkConfig::parse(input).expect("right");
        let variable = |name: &str| {
            let value = match name {
                "CNI_CONTAINERID" => "c0ffee",
                "CNI_IFNAME" => "eth0",
                "CNI_ARGS" => "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=1-2",
                _ => return None,
            };
            Some(OsString::from(value))
        };
        let attachment = Attachment::read(variable).expect("right");
        let on_failure = config.settings.policy(&attachment);
        described(&config, &attachment, on_failure).expect("right")
    }

    #[test]
    fn the_runtimes_part_is_added() {
        let workload = json!({"labels": {"app": "web"}, "acceleration": "off"});
        assert_eq!(
            asked(json!({"on_failure": "closed", "workload": workload})),
            json!({"labels": {"app": "web"}, "acceleration": "off", "on_failure": "closed"})
        );
        let namespaces = json!({"shop": {"on_failure": "open"}});
        assert_eq!(
            asked(json!({"on_failure": "closed", "namespaces": namespaces})),
            json!({"on_failure": "open"})
        );
    }

    #[test]
    fn the_cgroup_is_the_runtimes_or_the_patterns() {
        let workload = json!({"cgroup": "pods/{namespace}_{name}/{uid}-{container}"});
        let body = asked(json!({"workload": workload}));
        assert_eq!(body["cgroup"], "pods/shop_web/1-2-c0ffee");
        let told = json!({"cgroupPath": "/kubepods.slice/pod1.slice"});
        let body = asked(json!({"workload": workload, "runtimeConfig": told}));
        assert_eq!(body["cgroup"], "kubepods.slice/pod1.slice");
    }
}
