//! Answers in the shape of Envoy's, so that tools made for it understand them. Of what is not counted or not known here,
//! nothing is said.

use std::collections::HashMap;
use std::fmt::Write;
use std::net::SocketAddr;

use serde_json::{Map, Value, json};
use shunt_admin::DumpQuery;
use shunt_core::cluster::{Cluster, Health, Member};
use shunt_core::snapshot::Snapshot;
use shunt_core::status::{AgentStatus, WorkloadStatus};

const PREFIX: &str = "type.googleapis.com/envoy.admin.v3.";

/// What a dump says that the data path has no use for.
#[derive(Debug, Default)]
pub(in crate::worker) struct Known {
    node: Value,
    clusters: HashMap<String, Facts>,
}

#[derive(Debug)]
struct Facts {
    added_via_api: bool,
    eds_service_name: Option<String>,
}

impl Known {
    pub(in crate::worker) fn of(dump: &str) -> Self {
        let mut dump: Value = serde_json::from_str(dump).unwrap_or_default();
        let mut clusters = HashMap::new();
        for config in dump["configs"].as_array().into_iter().flatten() {
            for (list, added_via_api) in [
                ("static_clusters", false),
                ("dynamic_active_clusters", true),
            ] {
                for entry in config[list].as_array().into_iter().flatten() {
                    let cluster = &entry["cluster"];
                    let service = cluster["eds_cluster_config"]["service_name"].as_str();
                    let known = Facts {
                        added_via_api,
                        eds_service_name: service.map(str::to_owned),
                    };
                    let name = cluster["name"].as_str().unwrap_or_default();
                    clusters.insert(name.to_owned(), known);
                }
            }
        }
        let node = dump.pointer_mut("/configs/0/bootstrap/node");
        let node = node.map(Value::take).unwrap_or_default();
        Self { node, clusters }
    }
}

/// A line for each fact.
pub(super) fn clusters(snapshot: &Snapshot, known: &Known) -> String {
    let mut lines = String::new();
    for cluster in snapshot.proxy.clusters() {
        // Writing to a String cannot fail.
        let _ = write_cluster(&mut lines, cluster, known.clusters.get(&cluster.name));
    }
    lines
}

fn write_cluster(out: &mut String, cluster: &Cluster, facts: Option<&Facts>) -> std::fmt::Result {
    let name = &cluster.name;
    writeln!(out, "{name}::observability_name::{name}")?;
    let added = facts.is_some_and(|facts| facts.added_via_api);
    writeln!(out, "{name}::added_via_api::{added}")?;
    if let Some(service) = facts.and_then(|facts| facts.eds_service_name.as_deref()) {
        writeln!(out, "{name}::eds_service_name::{service}")?;
    }
    for Member { endpoint, health } in &cluster.members {
        let host = endpoint.addr;
        let flags = match health {
            Health::Healthy => "healthy",
            Health::Unhealthy => "/failed_eds_health",
            Health::Draining => "/eds_status_draining",
        };
        writeln!(out, "{name}::{host}::hostname::{}", endpoint.hostname)?;
        writeln!(out, "{name}::{host}::health_flags::{flags}")?;
        writeln!(out, "{name}::{host}::weight::{}", endpoint.weight)?;
        writeln!(out, "{name}::{host}::canary::false")?;
        writeln!(out, "{name}::{host}::priority::0")?;
    }
    Ok(())
}

/// An `envoy.admin.v3.Clusters`.
pub(super) fn cluster_statuses(snapshot: &Snapshot, known: &Known) -> Value {
    let status = |cluster: &Cluster| {
        let host = |Member { endpoint, health }: &Member| {
            let health = match health {
                Health::Healthy => "HEALTHY",
                Health::Unhealthy => "UNHEALTHY",
                Health::Draining => "DRAINING",
            };
            let mut host = json!({
                "address": address(endpoint.addr),
                "health_status": {"eds_health_status": health},
                "weight": endpoint.weight,
            });
            if !endpoint.hostname.is_empty() {
                host["hostname"] = endpoint.hostname.clone().into();
            }
            host
        };
        let hosts: Vec<Value> = cluster.members.iter().map(host).collect();
        let mut status = json!({"name": cluster.name, "observability_name": cluster.name});
        if !hosts.is_empty() {
            status["host_statuses"] = hosts.into();
        }
        if let Some(facts) = known.clusters.get(&cluster.name) {
            if facts.added_via_api {
                status["added_via_api"] = true.into();
            }
            if let Some(service) = &facts.eds_service_name {
                status["eds_service_name"] = service.clone().into();
            }
        }
        status
    };
    let clusters = snapshot.proxy.clusters();
    let statuses: Vec<Value> = clusters
        .into_iter()
        .map(|cluster| status(cluster))
        .collect();
    json!({"cluster_statuses": statuses})
}

fn address(addr: SocketAddr) -> Value {
    json!({"socket_address": {"address": addr.ip().to_string(), "port_value": addr.port()}})
}

/// The proxy's own as Envoy's, and those of workloads by their names.
pub(super) fn listeners(snapshot: &Snapshot, workloads: &[WorkloadStatus]) -> String {
    let mut lines = String::new();
    for served in snapshot.proxy.listeners() {
        let _ = writeln!(lines, "{}::{}", served.listener.name, served.listener.addr);
    }
    for workload in workloads {
        let WorkloadStatus {
            namespace, name, ..
        } = workload;
        for listener in &workload.listeners {
            let (direction, address) = (&listener.direction, &listener.address);
            let _ = writeln!(lines, "{namespace}/{name}/{direction}::{address}");
        }
    }
    lines
}

/// An `envoy.admin.v3.Listeners`, and beside it those of workloads.
pub(super) fn listener_statuses(snapshot: &Snapshot, workloads: &[WorkloadStatus]) -> Value {
    let own = snapshot.proxy.listeners().iter();
    let own = own.map(
        |served| json!({"name": served.listener.name, "local_address": address(served.listener.addr)}),
    );
    let theirs = workloads.iter().map(|workload| {
        let name = format!("{}/{}", workload.namespace, workload.name);
        json!({"workload": name, "listeners": workload.listeners})
    });
    json!({"listener_statuses": own.collect::<Vec<_>>(), "workloads": theirs.collect::<Vec<_>>()})
}

/// An `envoy.admin.v3.ServerInfo`, and the agent's own facts beside its fields.
pub(super) fn server_info(
    agent: &AgentStatus,
    state: &str,
    concurrency: usize,
    bootstrap: Option<&str>,
    known: &Known,
) -> Value {
    let uptime = format!("{}s", agent.uptime_seconds);
    let node = Some(known.node.clone());
    let mut info = json!({
        "state": state,
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": "disabled",
        "command_line_options": {
            "concurrency": concurrency,
            "config_path": bootstrap.unwrap_or_default(),
            "mode": "Serve",
            "disable_hot_restart": true,
        },
        "node": node.filter(|node| !node.is_null()).unwrap_or_else(|| json!({})),
    });
    if let (Some(info), Ok(Value::Object(own))) =
        (info.as_object_mut(), serde_json::to_value(agent))
    {
        info.extend(own);
    }
    info
}

/// The part of a dump that was asked for.
///
/// # Errors
/// There is no such part.
pub(super) fn selected(mut dump: Value, query: &DumpQuery) -> Result<Value, String> {
    let mut configs = match dump["configs"].take() {
        Value::Array(configs) => configs,
        _ => Vec::new(),
    };
    configs.retain(|config| query.include_eds || config["@type"] != typed("EndpointsConfigDump"));
    if let Some(name) = &query.name {
        for list in configs.iter_mut().filter_map(Value::as_object_mut) {
            for entries in list.values_mut().filter_map(Value::as_array_mut) {
                entries.retain(|entry| name_of(entry).is_some_and(|found| name.is_match(found)));
            }
        }
    }
    let Some(resource) = &query.resource else {
        if !query.mask.is_empty() {
            for config in &mut configs {
                *config = masked(config, &query.mask);
            }
            configs.retain(|config| config.as_object().is_some_and(|fields| fields.len() > 1));
            if configs.is_empty() {
                return Err(format!("no field {} in the dump", query.mask.join(",")));
            }
            return Ok(json!({"configs": configs}));
        }
        let is_whole = query.name.is_none();
        dump["configs"] = configs.into();
        return Ok(if is_whole {
            dump
        } else {
            json!({"configs": dump["configs"]})
        });
    };
    let entry_type = ENTRIES.iter().find(|(list, _)| list == resource);
    let (_, entry_type) =
        entry_type.ok_or_else(|| format!("{resource} not found in config dump"))?;
    let lists = configs
        .iter()
        .filter_map(|config| config[resource].as_array());
    let entries = lists.flatten().map(|entry| {
        let mut whole = Map::new();
        whole.insert("@type".to_owned(), typed(entry_type).into());
        whole.extend(entry.as_object().cloned().unwrap_or_default());
        match query.mask.is_empty() {
            true => Value::Object(whole),
            false => masked(&Value::Object(whole), &query.mask),
        }
    });
    Ok(json!({"configs": entries.collect::<Vec<_>>()}))
}

/// The lists of a dump, and the messages in them.
const ENTRIES: [(&str, &str); 9] = [
    ("static_clusters", "ClustersConfigDump.StaticCluster"),
    (
        "dynamic_active_clusters",
        "ClustersConfigDump.DynamicCluster",
    ),
    ("static_listeners", "ListenersConfigDump.StaticListener"),
    ("dynamic_listeners", "ListenersConfigDump.DynamicListener"),
    ("static_route_configs", "RoutesConfigDump.StaticRouteConfig"),
    (
        "dynamic_route_configs",
        "RoutesConfigDump.DynamicRouteConfig",
    ),
    (
        "static_endpoint_configs",
        "EndpointsConfigDump.StaticEndpointConfig",
    ),
    (
        "dynamic_endpoint_configs",
        "EndpointsConfigDump.DynamicEndpointConfig",
    ),
    (
        "dynamic_warming_clusters",
        "ClustersConfigDump.DynamicCluster",
    ),
];

fn typed(name: &str) -> String {
    format!("{PREFIX}{name}")
}

fn name_of(entry: &Value) -> Option<&str> {
    let of = |value: &Value, field: &str| value[field].as_str().map(str::len).is_some();
    let places = ["cluster", "listener", "route_config", "endpoint_config"];
    let inner = places.iter().map(|place| &entry[*place]).chain([entry]);
    for value in inner {
        for field in ["name", "cluster_name"] {
            if of(value, field) {
                return value[field].as_str();
            }
        }
    }
    None
}

/// A message with these fields only.
fn masked(value: &Value, paths: &[String]) -> Value {
    let mut kept = json!({"@type": value["@type"]});
    for path in paths {
        let mut found = value;
        for part in path.split('.') {
            found = &found[part];
        }
        if found.is_null() {
            continue;
        }
        let mut place = &mut kept;
        for part in path.split('.') {
            place = &mut place[part];
        }
        *place = found.clone();
    }
    kept
}

#[cfg(test)]
mod tests;
