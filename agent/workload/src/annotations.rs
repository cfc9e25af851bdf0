//! A pod's annotations as an entry of the agent's `workloads`: ours, and Istio's of the same meaning.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use shunt_core::config::file;
use shunt_core::workload::{ModeSetting, WorkloadName, WorkloadSpec};

const OURS: &str = "shunt.io/";
const ISTIOS: &str = "traffic.sidecar.istio.io/";
/// Bytes of one annotation that is looked at.
const MAX_VALUE: usize = 16 << 10;
/// Sections of a workload's entry that a pod's annotations may have.
const SECTIONS: [&str; 6] = [
    "mode",
    "acceleration",
    "on_failure",
    "dns",
    "outbound",
    "inbound",
];
/// Bytes of the entry, written down.
const MAX_SAID: usize = 48 << 10;
const ALL_PORTS: &str = "1-65535";

/// Ours, and where the value goes in a workload's entry.
const FIELDS: [(&str, &[&str]); 10] = [
    ("mode", &["mode"]),
    ("acceleration", &["acceleration"]),
    ("on-failure", &["on_failure"]),
    ("dns-capture", &["dns", "capture"]),
    ("include-inbound-ports", &["inbound", "include_ports"]),
    ("exclude-inbound-ports", &["inbound", "exclude_ports"]),
    ("include-outbound-ports", &["outbound", "include_ports"]),
    ("exclude-outbound-ports", &["outbound", "exclude_ports"]),
    ("include-outbound-cidrs", &["outbound", "include_cidrs"]),
    ("exclude-outbound-cidrs", &["outbound", "exclude_cidrs"]),
];

/// The parts of a workload's entry that the annotations say.
pub type Said = Map<String, Value>;

/// Is it what annotations can say?
pub fn is_sound(said: &Said) -> bool {
    let known = said.keys().all(|key| SECTIONS.contains(&key.as_str()));
    known && serde_json::to_vec(said).is_ok_and(|text| text.len() <= MAX_SAID)
}

/// What the annotations ask for, all of it or nothing: as they say it, and the workload where nobody says more.
///
/// # Errors
/// Every fault, for people.
pub(crate) fn read(
    name: &WorkloadName,
    host_network: bool,
    annotations: &BTreeMap<String, String>,
    mode: ModeSetting,
) -> Result<(Said, WorkloadSpec), String> {
    let mut body = Map::new();
    let mut faults = Vec::new();
    let long = |value: &str| value.len() > MAX_VALUE;
    let istios = |key: &str| {
        annotations
            .get(&format!("{ISTIOS}{key}"))
            .map(String::as_str)
    };
    for (key, value) in annotations {
        let known = match (key.strip_prefix(OURS), key.strip_prefix(ISTIOS)) {
            (Some(key), _) => FIELDS.iter().any(|(known, _)| *known == key),
            (None, Some(key)) => ISTIO_KEYS.contains(&key),
            (None, None) => continue,
        };
        if !known {
            faults.push(format!("annotation {key}: not known"));
        } else if long(value) {
            faults.push(format!(
                "annotation {key}: more than {} KiB",
                MAX_VALUE >> 10
            ));
        }
    }
    if faults.is_empty() {
        istio(&mut body, istios, &mut faults);
    }
    if faults.is_empty() {
        for (key, path) in FIELDS {
            if let Some(value) = annotations.get(&format!("{OURS}{key}")) {
                let value = match path {
                    [_] | ["dns", _] => Value::from(value.trim()),
                    _ => list(value),
                };
                put(&mut body, path, value);
            }
        }
    }
    if !faults.is_empty() {
        return Err(faults.join("; "));
    }
    if !is_sound(&body) {
        return Err(format!("annotations: more than {} KiB", MAX_SAID >> 10));
    }
    let mut entry = body.clone();
    // Where it is, the node knows.
    let place = if host_network { "cgroup" } else { "netns" };
    entry.insert(place.into(), "unknown".into());
    let spec = file::parse_workload(&Value::Object(entry).to_string(), name, mode);
    let spec = spec.map_err(|error| {
        let fault = |fault: &file::Fault| format!("{}: {}", fault.field, fault.message);
        let faults: Vec<String> = error.faults().iter().map(fault).collect();
        format!("annotations: {}", faults.join("; "))
    })?;
    Ok((body, spec))
}

const ISTIO_KEYS: [&str; 6] = [
    "includeInboundPorts",
    "excludeInboundPorts",
    "includeOutboundPorts",
    "excludeOutboundPorts",
    "includeOutboundIPRanges",
    "excludeOutboundIPRanges",
];

/// Istio's lists: `*` is everything, and an empty list of what is included is nothing. Its ports to include come beside
/// the address ranges, ours are a part of them.
fn istio<'a>(
    body: &mut Map<String, Value>,
    said: impl Fn(&str) -> Option<&'a str>,
    faults: &mut Vec<String>,
) {
    match said("includeInboundPorts").map(str::trim) {
        None | Some("*") => {}
        Some("") => put(body, &["inbound", "exclude_ports"], json!([ALL_PORTS])),
        Some(ports) => put(body, &["inbound", "include_ports"], list(ports)),
    }
    let ports = said("includeOutboundPorts")
        .map(str::trim)
        .unwrap_or_default();
    match (said("includeOutboundIPRanges").map(str::trim), ports) {
        // Everything is included already.
        (None | Some("*"), _) => {}
        (Some(""), "") => put(body, &["outbound", "exclude_ports"], json!([ALL_PORTS])),
        (Some(""), "*") => {}
        (Some(""), ports) => put(body, &["outbound", "include_ports"], list(ports)),
        (Some(ranges), "") => put(body, &["outbound", "include_cidrs"], list(ranges)),
        (Some(_), _) => faults.push(format!(
            "annotation {ISTIOS}includeOutboundPorts: not understood together with includeOutboundIPRanges"
        )),
    }
    let excluded = [
        ("excludeInboundPorts", ["inbound", "exclude_ports"]),
        ("excludeOutboundPorts", ["outbound", "exclude_ports"]),
        ("excludeOutboundIPRanges", ["outbound", "exclude_cidrs"]),
    ];
    for (key, path) in excluded {
        if let Some(value) = said(key) {
            let mut both = body
                .get(path[0])
                .and_then(|section| section.get(path[1]))
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            both.extend(list(value).as_array().cloned().unwrap_or_default());
            put(body, &path, both.into());
        }
    }
}

/// `80, 443` and nothing.
fn list(text: &str) -> Value {
    let words = text.split(',').map(str::trim);
    words.filter(|word| !word.is_empty()).collect()
}

fn put(body: &mut Map<String, Value>, path: &[&str], value: Value) {
    match path {
        [key] => {
            body.insert((*key).to_owned(), value);
        }
        [section, rest @ ..] => {
            let section = body.entry(*section).or_insert_with(|| Map::new().into());
            if let Some(section) = section.as_object_mut() {
                put(section, rest, value);
            }
        }
        [] => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(annotations: &[(&str, &str)]) -> Result<WorkloadSpec, String> {
        let name = WorkloadName {
            namespace: "shop".into(),
            name: "web".into(),
        };
        let annotations = annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        read(&name, false, &annotations, ModeSetting::Auto).map(|(_, spec)| spec)
    }

    fn ports(of: &[shunt_core::workload::PortRange]) -> Vec<String> {
        of.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ours() {
        let spec = asked(&[
            ("shunt.io/mode", "iptables"),
            ("shunt.io/acceleration", "off"),
            ("shunt.io/on-failure", "closed"),
            ("shunt.io/dns-capture", "true"),
            ("shunt.io/exclude-outbound-ports", "22, 8000-8100"),
            ("shunt.io/include-outbound-cidrs", "10.0.0.0/8,fd00::/8"),
            ("shunt.io/exclude-inbound-ports", "9100"),
            ("kubernetes.io/whatever", "anything"),
        ])
        .expect("right");
        assert_eq!(spec.mode, ModeSetting::Iptables);
        assert_eq!(spec.on_failure, shunt_core::workload::OnFailure::Closed);
        assert_eq!(ports(&spec.outbound.exclude_ports), ["22", "8000-8100"]);
        assert_eq!(spec.outbound.include_cidrs.len(), 2);
        assert_eq!(ports(&spec.inbound.exclude_ports), ["9100"]);
        assert!(!spec.acceleration.is_any());
        assert!(spec.dns.capture);
    }

    #[test]
    fn istios_and_ours_over_them() {
        let spec = asked(&[
            ("traffic.sidecar.istio.io/includeInboundPorts", ""),
            ("traffic.sidecar.istio.io/excludeInboundPorts", "15090"),
            (
                "traffic.sidecar.istio.io/includeOutboundIPRanges",
                "10.1.0.0/16",
            ),
            (
                "traffic.sidecar.istio.io/excludeOutboundIPRanges",
                "10.1.9.0/24",
            ),
            ("traffic.sidecar.istio.io/excludeOutboundPorts", "3306"),
            ("shunt.io/exclude-outbound-ports", "3307"),
        ])
        .expect("right");
        assert_eq!(ports(&spec.inbound.exclude_ports), [ALL_PORTS, "15090"]);
        assert_eq!(ports(&spec.outbound.exclude_ports), ["3307"]);
        assert_eq!(spec.outbound.include_cidrs.len(), 1);
        let ranges = "traffic.sidecar.istio.io/includeOutboundIPRanges";
        let also = "traffic.sidecar.istio.io/includeOutboundPorts";
        let spec = asked(&[(ranges, ""), (also, "80")]).expect("right");
        assert_eq!(ports(&spec.outbound.include_ports), ["80"]);
        let spec = asked(&[(ranges, "*"), (also, "80")]).expect("right");
        assert!(spec.outbound.include_ports.is_empty());
        let spec = asked(&[(ranges, "")]).expect("right");
        assert_eq!(ports(&spec.outbound.exclude_ports), [ALL_PORTS]);
        assert!(asked(&[(ranges, "10.0.0.0/8"), (also, "80")]).is_err());
    }

    #[test]
    fn a_wrong_one_is_named() {
        for (key, value, says) in [
            (
                "shunt.io/exclude-outbound-ports",
                "22,x",
                "exclude_ports[1]",
            ),
            (
                "shunt.io/exclude-outbound-port",
                "22",
                "exclude-outbound-port: not known",
            ),
            ("shunt.io/mode", "fast", "mode"),
            (
                "shunt.io/include-outbound-cidrs",
                "10.0.0.0/40",
                "include_cidrs[0]",
            ),
            (
                "traffic.sidecar.istio.io/excludeInterfaces",
                "eth1",
                "not known",
            ),
            (
                "traffic.sidecar.istio.io/excludeInboundPorts",
                "0",
                "exclude_ports",
            ),
        ] {
            let error = asked(&[(key, value)]).expect_err(key);
            assert!(error.contains(says), "{error}");
        }
        let long = "1,".repeat(MAX_VALUE);
        assert!(asked(&[("shunt.io/exclude-inbound-ports", &long)]).is_err());
    }
}
