//! What `/config_dump` says of a configuration, in the shape of Envoy's `admin.v3` messages.

use std::time::SystemTime;

use prost_reflect::{DynamicMessage, SerializeOptions};
use serde_json::{Map, Value, json};
use shunt_core::config::file::{ConfigError, Fault};
use shunt_core::timestamp::rfc3339_millis as rfc3339;

use crate::files::{Accepted, Kind, Rejected, Resource, Source};

const PREFIX: &str = "type.googleapis.com/";

/// With the names of fields as configurations have them.
pub(crate) fn json(message: &DynamicMessage) -> Value {
    let options = SerializeOptions::new().use_proto_field_name(true);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .unwrap_or_default()
}

/// `routes`: those that stand in their listeners.
pub(crate) fn dump(
    bootstrap: Value,
    since: SystemTime,
    sources: &[Source],
    routes: Vec<Value>,
) -> Value {
    let since = rfc3339(since);
    let of_static = |list: &str| -> Vec<Value> {
        let list = bootstrap["static_resources"][list].as_array();
        list.cloned().unwrap_or_default()
    };
    let fixed = |kind: Kind, name: &str, values: Vec<Value>| -> Vec<Value> {
        let entry = |value| json!({name: typed(kind, value), "last_updated": since});
        values.into_iter().map(entry).collect()
    };
    let assignments = of_static("clusters").into_iter();
    let assignments = assignments.filter_map(|cluster| cluster.get("load_assignment").cloned());
    let configs = json!([
        {
            "@type": type_of("Bootstrap"),
            "bootstrap": bootstrap,
            "last_updated": since,
        },
        {
            "@type": type_of("Clusters"),
            "version_info": version(sources, Kind::Clusters),
            "static_clusters": fixed(Kind::Clusters, "cluster", of_static("clusters")),
            "dynamic_active_clusters": changing(sources, Kind::Clusters, "cluster"),
        },
        {
            "@type": type_of("Endpoints"),
            "static_endpoint_configs":
                fixed(Kind::Endpoints, "endpoint_config", assignments.collect()),
            "dynamic_endpoint_configs": changing(sources, Kind::Endpoints, "endpoint_config"),
        },
        {
            "@type": type_of("Listeners"),
            "version_info": version(sources, Kind::Listeners),
            "static_listeners": fixed(Kind::Listeners, "listener", of_static("listeners")),
            "dynamic_listeners": listeners(sources),
        },
        {
            "@type": type_of("Routes"),
            "static_route_configs": fixed(Kind::Routes, "route_config", routes),
            "dynamic_route_configs": changing(sources, Kind::Routes, "route_config"),
        },
    ]);
    let sources: Vec<Value> = sources.iter().map(source).collect();
    json!({"configs": without_empty(configs), "sources": sources})
}

fn type_of(what: &str) -> String {
    format!("{PREFIX}envoy.admin.v3.{what}ConfigDump")
}

/// Of the one file that has them.
fn version(sources: &[Source], kind: Kind) -> &str {
    let source = sources.iter().find(|source| source.wanted.kind == kind);
    let accepted = source.and_then(|source| source.accepted.as_ref());
    accepted.map_or("", |accepted| &accepted.version)
}

fn typed(kind: Kind, value: Value) -> Value {
    let mut whole = Map::new();
    whole.insert("@type".into(), format!("{PREFIX}{}", kind.message()).into());
    if let Value::Object(fields) = value {
        whole.extend(fields);
    }
    Value::Object(whole)
}

fn parsed(resource: &Resource) -> Value {
    serde_json::from_str(&resource.json).unwrap_or_default()
}

fn state(accepted: &Accepted, name: &str, resource: &Resource) -> Value {
    json!({
        "version_info": accepted.version,
        name: parsed(resource),
        "last_updated": rfc3339(accepted.since),
    })
}

/// Every resource of these files: in force, refused, or both.
fn changing(sources: &[Source], kind: Kind, name: &str) -> Vec<Value> {
    let mut all = Vec::new();
    for source in sources.iter().filter(|source| source.wanted.kind == kind) {
        for (resource, accepted, refused) in pairs(source) {
            let mut entry = match accepted {
                Some(accepted) => state(accepted, name, resource),
                None => json!({}),
            };
            if let Some(refused) = refused {
                entry["error_state"] = refused;
            }
            all.push(entry);
        }
    }
    all
}

fn listeners(sources: &[Source]) -> Vec<Value> {
    let mut all = Vec::new();
    let of_kind = |source: &&Source| source.wanted.kind == Kind::Listeners;
    for source in sources.iter().filter(of_kind) {
        for (resource, accepted, refused) in pairs(source) {
            let mut entry = json!({"name": resource.name});
            if let Some(accepted) = accepted {
                entry["active_state"] = state(accepted, "listener", resource);
            }
            if let Some(refused) = refused {
                entry["error_state"] = refused;
            }
            all.push(entry);
        }
    }
    all
}

/// A file that is wrong is refused whole: each of its resources is, by name, and those that are in force are so still.
fn pairs(source: &Source) -> Vec<(&Resource, Option<&Accepted>, Option<Value>)> {
    let mut all = Vec::new();
    let rejected = source.rejected.as_ref();
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    if let Some(accepted) = &source.accepted {
        known.extend(accepted.resources.iter());
        for resource in &accepted.resources {
            let refused = rejected.map(|rejected| {
                let mut named = rejected.resources.iter();
                failure(rejected, named.find(|other| other.name == resource.name))
            });
            all.push((resource, Some(accepted), refused));
        }
    }
    if let Some(rejected) = rejected {
        unknown.extend(rejected.resources.iter());
        unknown.retain(|resource| known.iter().all(|known| known.name != resource.name));
        for resource in unknown {
            all.push((resource, None, Some(failure(rejected, Some(resource)))));
        }
    }
    all
}

/// An `UpdateFailureState`.
fn failure(rejected: &Rejected, resource: Option<&Resource>) -> Value {
    let mut failure = json!({
        "last_update_attempt": rfc3339(rejected.since),
        "details": rejected.error.to_string(),
        "version_info": rejected.version,
    });
    if let Some(resource) = resource {
        failure["failed_configuration"] = parsed(resource);
    }
    failure
}

fn source(source: &Source) -> Value {
    let wanted = &source.wanted;
    let mut entry = json!({"kind": wanted.kind.word(), "path": wanted.path});
    if !wanted.name.is_empty() {
        entry["name"] = wanted.name.clone().into();
    }
    if let Some(directory) = &wanted.watched {
        entry["watched_directory"] = json!(directory);
    }
    if let Some(accepted) = &source.accepted {
        entry["version_info"] = accepted.version.clone().into();
        entry["last_updated"] = rfc3339(accepted.since).into();
        if !accepted.notes.is_empty() {
            entry["no_effect"] = accepted.notes.iter().map(said).collect();
        }
    }
    if let Some(rejected) = &source.rejected {
        entry["error_state"] = failure(rejected, None);
        let faults = ConfigError::faults(&rejected.error).iter().map(said);
        entry["error_state"]["faults"] = faults.collect();
    }
    entry
}

fn said(fault: &Fault) -> Value {
    json!(fault)
}

/// As Envoy writes messages: what is empty is not there.
fn without_empty(mut configs: Value) -> Value {
    for config in configs.as_array_mut().into_iter().flatten() {
        if let Some(fields) = config.as_object_mut() {
            let is_empty =
                |value: &Value| value.as_array().is_some_and(Vec::is_empty) || *value == json!("");
            fields.retain(|_, value| !is_empty(value));
        }
    }
    configs
}
