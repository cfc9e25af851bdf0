//! The list of workloads, and its entries.

use std::collections::BTreeMap;

use super::flags::clash;
use super::node::{Field, Mapping};
use super::{sections, values};
use crate::workload::{
    Acceleration, AccelerationPolicy, CapturePolicy, DnsPolicy, ModeSetting, OWN_NETNS, OnFailure,
    PortRange, WorkloadName, WorkloadSpec,
};

const KEYS: &[&str] = &[
    "name",
    "namespace",
    "netns",
    "cgroup",
    "labels",
    "mode",
    "acceleration",
    "on_failure",
    "dns",
    "outbound",
    "inbound",
];

pub(super) const DEFAULT_NAMESPACE: &str = "default";

/// All workloads; a second one of the same name or namespace is a fault.
pub(super) fn list(field: &Field<'_>, default_mode: ModeSetting) -> Vec<WorkloadSpec> {
    let mut specs: Vec<WorkloadSpec> = Vec::new();
    for entry in field.list() {
        let Some((map, spec)) = listed(&entry, default_mode) else {
            continue;
        };
        for (key, message) in specs.iter().filter_map(|other| clash(other, &spec)) {
            match map.get(key) {
                Some(field) => field.fault(message),
                None => map.fault(key, message),
            }
        }
        specs.push(spec);
    }
    specs
}

fn listed<'a>(entry: &Field<'a>, default_mode: ModeSetting) -> Option<(Mapping<'a>, WorkloadSpec)> {
    let Some(map) = entry.mapping(KEYS) else {
        if entry.is_empty() {
            entry.fault("empty where a workload is expected (name and netns at least)");
        }
        return None;
    };
    let name = required(&map, "name", values::name);
    let namespace = match map.get("namespace") {
        Some(field) => field.value(values::name),
        None => Some(DEFAULT_NAMESPACE.to_owned()),
    };
    // Every field is looked at before any missing one ends the entry.
    let spec = settings(&map, default_mode);
    let name = WorkloadName {
        namespace: namespace?,
        name: name?,
    };
    Some((map, WorkloadSpec { name, ..spec? }))
}

/// A workload whose name is already known from elsewhere.
pub(super) fn named(
    root: &Field<'_>,
    name: &WorkloadName,
    default_mode: ModeSetting,
) -> Option<WorkloadSpec> {
    let map = root.mapping(KEYS)?;
    for (key, given) in [("namespace", &name.namespace), ("name", &name.name)] {
        if let Err(message) = values::name(given) {
            map.fault(key, message);
        } else if let Some(field) = map.get(key)
            && field.text().is_some_and(|text| text != given)
        {
            field.fault(format!(
                "differs from the path of the request, which says `{given}`"
            ));
        }
    }
    Some(WorkloadSpec {
        name: name.clone(),
        ..settings(&map, default_mode)?
    })
}

/// Everything but the name, which stays empty.
fn settings(map: &Mapping<'_>, default_mode: ModeSetting) -> Option<WorkloadSpec> {
    let on_failure = [("open", OnFailure::Open), ("closed", OnFailure::Closed)];
    let cgroup = map.value("cgroup", values::cgroup);
    let netns = match map.get("netns") {
        None if cgroup.is_some() => Some(OWN_NETNS.into()),
        _ => required(map, "netns", values::netns),
    };
    let spec = WorkloadSpec {
        name: WorkloadName {
            namespace: String::new(),
            name: String::new(),
        },
        netns: netns.clone().unwrap_or_default(),
        cgroup,
        labels: labels(map),
        mode: map.value("mode", sections::mode).unwrap_or(default_mode),
        acceleration: acceleration(map),
        on_failure: map
            .value("on_failure", |text| values::choice(text, &on_failure))
            .unwrap_or_default(),
        dns: dns(map),
        outbound: outbound(map),
        inbound: inbound(map),
    };
    if spec.shares_netns() {
        sharing(map, &spec);
    }
    netns.map(|_| spec)
}

/// What only a workload with a network namespace of its own can do without, or have.
fn sharing(map: &Mapping<'_>, spec: &WorkloadSpec) {
    if spec.cgroup.is_none() {
        map.fault("cgroup", "missing (others share the agent's own namespace)");
    }
    if let Some(field) = map
        .get("mode")
        .filter(|_| spec.mode == ModeSetting::Iptables)
    {
        field.fault(
            "a workload in the agent's own namespace needs eBPF mode (rules there are everybody's)",
        );
    }
    if let Some(field) = map.get("dns").filter(|_| spec.dns.capture) {
        field.fault("queries of a workload in the agent's own namespace are not captured");
    }
    if let Some(field) = map
        .get("inbound")
        .filter(|_| spec.inbound != CapturePolicy::default())
    {
        field.fault("connections to a workload in the agent's own namespace are not captured");
    }
}

fn required<T>(
    map: &Mapping<'_>,
    key: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    if map.get(key).is_none_or(|field| field.is_empty()) {
        map.fault(key, "missing (every workload has one)");
        return None;
    }
    map.value(key, parse)
}

pub(super) fn labels(map: &Mapping<'_>) -> BTreeMap<String, String> {
    let Some(field) = map.get("labels").filter(|field| !field.is_empty()) else {
        return BTreeMap::new();
    };
    let Some(labels) = field.any_mapping() else {
        return BTreeMap::new();
    };
    let label = |(key, field): (&str, Field<'_>)| Some((key.to_owned(), field.text()?.to_owned()));
    labels.entries().filter_map(label).collect()
}

/// A word, or `default` with exceptions by port.
fn acceleration(map: &Mapping<'_>) -> AccelerationPolicy {
    let mut policy = AccelerationPolicy::default();
    let Some(field) = map.get("acceleration") else {
        return policy;
    };
    if !field.is_mapping() {
        return field.value(acceleration_word).unwrap_or_default().into();
    }
    let Some(section) = field.mapping(&["default", "direct", "handoff", "ports"]) else {
        return policy;
    };
    if let Some(ports) = section.get("ports").filter(|field| !field.is_empty())
        && let Some(ports) = ports.any_mapping()
    {
        for (port, field) in ports.entries() {
            let word = field.value(acceleration_word);
            match values::port_range(port) {
                Err(message) => field.fault(message),
                Ok(range) => {
                    let overlaps = |(other, _): &&(PortRange, _)| {
                        range.first <= other.last && other.first <= range.last
                    };
                    if let Some((other, _)) = policy.ports.iter().find(overlaps) {
                        field.fault(format!("overlaps with `{other}`"));
                    }
                    policy.ports.extend(word.map(|word| (range, word)));
                }
            }
        }
    }
    let default = section.value("default", acceleration_word);
    policy.default = default.unwrap_or_default();
    let may = |name| section.value(name, flag).unwrap_or(true);
    policy.direct = may("direct");
    policy.handoff = may("handoff");
    policy
}

fn dns(map: &Mapping<'_>) -> DnsPolicy {
    let section = map.mapping("dns", &["capture"]);
    let capture = section.and_then(|section| section.value("capture", flag));
    DnsPolicy {
        capture: capture.unwrap_or(false),
    }
}

fn flag(text: &str) -> Result<bool, String> {
    values::choice(text, &[("true", true), ("false", false)])
}

fn acceleration_word(text: &str) -> Result<Acceleration, String> {
    values::choice(
        text,
        &[
            ("off", Acceleration::Off),
            ("auto", Acceleration::Auto),
            ("always", Acceleration::Always),
        ],
    )
}

fn outbound(map: &Mapping<'_>) -> CapturePolicy {
    let known = [
        "include_ports",
        "exclude_ports",
        "include_cidrs",
        "exclude_cidrs",
    ];
    let Some(section) = map.mapping("outbound", &known) else {
        return CapturePolicy::default();
    };
    CapturePolicy {
        include_cidrs: section.list("include_cidrs", values::cidr),
        exclude_cidrs: section.list("exclude_cidrs", values::cidr),
        ..ports(&section)
    }
}

fn inbound(map: &Mapping<'_>) -> CapturePolicy {
    let known = ["include_ports", "exclude_ports"];
    map.mapping("inbound", &known)
        .map(|section| ports(&section))
        .unwrap_or_default()
}

fn ports(section: &Mapping<'_>) -> CapturePolicy {
    CapturePolicy {
        include_ports: section.list("include_ports", values::port_range),
        exclude_ports: section.list("exclude_ports", values::port_range),
        ..CapturePolicy::default()
    }
}
