//! The network configuration that comes on stdin: the specification's keys, and ours.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::environment::Attachment;
use crate::failure::{Code, Failure};
use crate::version::{self, SUPPORTED};
use crate::workload;

/// Bytes of the configuration with everything the runtime adds. Kubernetes' own limit for a pod's annotations is 256 KiB.
const MAX_INPUT: u64 = 512 << 10;
/// Bytes that are read, and forgotten, from whoever says more: he shall hear the answer, not a broken pipe.
const MAX_FORGOTTEN: u64 = 64 << 20;
const MAX_TIMEOUT_MS: u64 = 60_000;
/// Keys of the specification that say nothing to us.
const PASSED_OVER: [&str; 4] = ["args", "capabilities", "cniVersions", "type"];
/// What the names of keys begin with by which libcni tells plugins something.
const FROM_LIBCNI: &str = "cni.dev/";
/// Since a mistake in an early text of the specification, libcni says it in both.
const VALID_ATTACHMENTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// What happens to a pod that cannot be enrolled in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnFailure {
    /// It starts, and connects directly.
    #[default]
    Open,
    /// It does not start.
    Closed,
}

/// Ours.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// The agent's, for the plugin.
    pub(crate) socket: PathBuf,
    /// Of pods in namespaces that [`Settings::namespaces`] does not name.
    pub(crate) on_failure: OnFailure,
    /// By Kubernetes namespace.
    namespaces: BTreeMap<String, NamespaceSettings>,
    /// For everything that is asked of the agent.
    timeout_ms: u64,
    /// Kubernetes namespaces whose pods are not enrolled.
    pub(crate) exempt_namespaces: Vec<String>,
    /// As an entry of the agent's `workloads`, without what the runtime says.
    pub(crate) workload: Map<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct NamespaceSettings {
    on_failure: Option<OnFailure>,
    exempt: Option<bool>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            socket: "/run/shunt/cni.sock".into(),
            on_failure: OnFailure::default(),
            namespaces: BTreeMap::new(),
            timeout_ms: 2000,
            exempt_namespaces: vec!["kube-system".into(), "shunt-system".into()],
            workload: Map::new(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct NetworkConfig {
    pub(crate) version: &'static str,
    pub(crate) network: String,
    pub(crate) settings: Settings,
    /// Of the pod, where the runtime tells it.
    pub(crate) cgroup: Option<String>,
    pub(crate) prev_result: Option<Value>,
    /// Ids of the containers that shall go on; only GC has them.
    pub(crate) valid: Option<Vec<String>>,
}

/// Reads stdin to its end.
pub(crate) fn read(mut stdin: impl Read) -> Result<Value, Failure> {
    let mut input = Vec::new();
    let mut limited = stdin.by_ref().take(MAX_INPUT + 1);
    limited
        .read_to_end(&mut input)
        .map_err(|error| Failure::new(Code::InputOutput, error.to_string()))?;
    if input.len() as u64 > MAX_INPUT {
        let _ = io::copy(&mut stdin.take(MAX_FORGOTTEN), &mut io::sink());
        let text = format!("it has more than {} KiB", MAX_INPUT >> 10);
        return Err(Failure::new(Code::Undecodable, text));
    }
    serde_json::from_slice(&input)
        .map_err(|error| Failure::new(Code::Undecodable, error.to_string()))
}

impl NetworkConfig {
    pub(crate) fn parse(input: Value) -> Result<Self, Failure> {
        let Value::Object(mut map) = input else {
            return Err(Failure::new(Code::Undecodable, "it is not an object"));
        };
        let asked = map.remove("cniVersion").unwrap_or_default();
        if !SUPPORTED.iter().any(|ours| asked == **ours) {
            let text = format!("cniVersion is {asked}; it may be {}", SUPPORTED.join(", "));
            return Err(Failure::new(Code::IncompatibleVersion, text));
        }
        let version = version::spoken(Some(&serde_json::json!({"cniVersion": asked})));
        let network = network(map.remove("name"))?;
        let cgroup = cgroup(map.remove("runtimeConfig"))?;
        let prev_result = prev_result(map.remove("prevResult"))?;
        let valid = VALID_ATTACHMENTS.iter().find_map(|key| map.remove(*key));
        let valid = valid.map(containers).transpose()?;
        map.retain(|key, _| !PASSED_OVER.contains(&key.as_str()) && !key.starts_with(FROM_LIBCNI));
        let settings: Settings = serde_json::from_value(Value::Object(map))
            .map_err(|error| invalid(error.to_string()))?;
        settings.check()?;
        Ok(Self {
            version,
            network,
            settings,
            cgroup,
            prev_result,
            valid,
        })
    }

    /// Is this one of those who are left alone?
    pub(crate) fn exempts(&self, attachment: &Attachment) -> bool {
        let Some(namespace) = &attachment.namespace else {
            return false;
        };
        let settings = self.settings.namespaces.get(namespace);
        let said = settings.and_then(|settings| settings.exempt);
        said.unwrap_or_else(|| self.settings.exempt_namespaces.contains(namespace))
    }

    /// # Errors
    /// The plugin was not chained after another.
    pub(crate) fn needs_prev_result(&self) -> Result<&Value, Failure> {
        let missing = || {
            invalid(
                "prevResult: missing; shunt-cni comes after the plugin that makes the network"
                    .into(),
            )
        };
        self.prev_result.as_ref().ok_or_else(missing)
    }

    /// # Errors
    /// GC and STATUS came with 1.1.0.
    pub(crate) fn needs_newest(&self, verb: &str) -> Result<(), Failure> {
        if self.version == "1.1.0" {
            return Ok(());
        }
        let text = format!("{verb} needs cniVersion 1.1.0, not {}", self.version);
        Err(Failure::new(Code::IncompatibleVersion, text))
    }
}

impl Settings {
    /// What happens to this pod when it cannot be enrolled.
    pub(crate) fn policy(&self, attachment: &Attachment) -> OnFailure {
        let namespace = attachment.namespace.as_ref();
        let settings = namespace.and_then(|namespace| self.namespaces.get(namespace));
        let said = settings.and_then(|settings| settings.on_failure);
        said.unwrap_or(self.on_failure)
    }

    /// Is there any pod whose start depends on the agent?
    pub(crate) fn some_fail_closed(&self) -> bool {
        let named = self.namespaces.values().filter_map(|of| of.on_failure);
        named
            .chain([self.on_failure])
            .any(|of| of == OnFailure::Closed)
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    fn check(&self) -> Result<(), Failure> {
        if !self.socket.is_absolute() {
            return Err(invalid("socket: not an absolute path".into()));
        }
        if !(1..=MAX_TIMEOUT_MS).contains(&self.timeout_ms) {
            return Err(invalid(format!("timeout_ms: not 1 to {MAX_TIMEOUT_MS}")));
        }
        workload::check(&self.workload)
    }
}

fn network(name: Option<Value>) -> Result<String, Failure> {
    let Some(Value::String(name)) = name else {
        return Err(invalid("name: missing".into()));
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && name.chars().all(allowed) {
        return Ok(name);
    }
    Err(invalid(format!("name: `{name}` is not a network's name")))
}

/// The runtime tells what the network asked for with `capabilities`.
fn cgroup(runtime_config: Option<Value>) -> Result<Option<String>, Failure> {
    match runtime_config {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(mut map)) => match map.remove("cgroupPath") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(path)) => Ok((!path.is_empty()).then_some(path)),
            Some(_) => Err(invalid("runtimeConfig.cgroupPath: not a text".into())),
        },
        Some(_) => Err(invalid("runtimeConfig: not an object".into())),
    }
}

fn prev_result(value: Option<Value>) -> Result<Option<Value>, Failure> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(result @ Value::Object(_)) => Ok(Some(result)),
        Some(_) => Err(invalid("prevResult: not an object".into())),
    }
}

fn containers(list: Value) -> Result<Vec<String>, Failure> {
    #[derive(Deserialize)]
    struct Valid {
        #[serde(rename = "containerID")]
        container: String,
    }
    let list: Option<Vec<Valid>> = serde_json::from_value(list)
        .map_err(|error| invalid(format!("{}: {error}", VALID_ATTACHMENTS[0])))?;
    let list = list.unwrap_or_default();
    Ok(list.into_iter().map(|valid| valid.container).collect())
}

fn invalid(what: String) -> Failure {
    Failure::new(Code::InvalidConfig, what)
}

#[cfg(test)]
mod tests;
