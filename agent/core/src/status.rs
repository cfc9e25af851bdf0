//! What `/workloads` answers and `shunt status -o json` prints.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::flow::DataPath;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    pub agent: AgentStatus,
    pub workloads: Vec<WorkloadStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Of the supervisor.
    pub version: String,
    /// Of the data plane.
    #[serde(default)]
    pub worker_version: String,
    pub uptime_seconds: u64,
    /// Of the supervisor.
    pub pid: u32,
    /// Of the data plane.
    pub worker_pid: u32,
    /// Of earlier data planes that an upgrade has replaced: they let their connections end.
    #[serde(default)]
    pub retired_pids: Vec<u32>,
    /// The number of the configuration that new connections see.
    #[serde(default)]
    pub generation: u64,
    /// By worker thread: the number of the one that it has seen.
    #[serde(default)]
    pub worker_generations: Vec<u64>,
    /// None where pods are not looked for.
    #[serde(default)]
    pub pods: Option<PodsStatus>,
}

/// Of the pods that the Kubernetes API wants enrolled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodsStatus {
    /// This node's name in the API.
    pub node: String,
    /// The API has told of all pods since the agent began; else they are those that an earlier agent knew.
    pub listed: bool,
    /// Why the API cannot be had, while it cannot.
    pub outage: Option<String>,
    /// How many are to be enrolled.
    pub wished: usize,
    /// Some of those that have no process here.
    pub not_found: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadStatus {
    pub name: String,
    pub namespace: String,
    pub netns: String,
    /// Only those that tell who enrolled it: whose names begin with [`OWNERSHIP`].
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    pub mode: StatusMode,
    pub mode_reason: String,
    pub state: WorkloadState,
    pub state_reason: String,
    /// Others' programs and rules where this workload is steered.
    #[serde(default)]
    pub notes: Vec<String>,
    pub listeners: Vec<ListenerStatus>,
    /// What `acceleration: auto` has learned: how many classes of its sockets there are, by verdict: `learning`,
    /// `proven`, `short`, `fault`.
    #[serde(default)]
    pub acceleration: BTreeMap<String, u64>,
    pub connections: Connections,
    pub bytes: BytesByPath,
}

/// What the names of labels begin with by which a program that enrols workloads knows its own again.
pub const OWNERSHIP: &str = "shunt.io/";
/// Whose a workload is that the CNI plugin enrolled: the runtime's id of the container, the name of the network.
pub const CNI_CONTAINER: &str = "shunt.io/cni-container";
pub const CNI_NETWORK: &str = "shunt.io/cni-network";

/// How a workload is steered right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatusMode {
    Ebpf,
    Iptables,
    /// Enrolment failed, or the workload was withdrawn.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadState {
    Ready,
    /// Being enrolled, or retried after a failure that may pass.
    Pending,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    pub direction: String,
    pub address: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    pub active: u64,
    pub total: u64,
}

/// Both directions together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BytesByPath {
    pub direct: u64,
    pub handoff: u64,
    pub sockmap: u64,
    pub splice: u64,
    pub copy: u64,
}

impl BytesByPath {
    pub fn add(&mut self, path: DataPath, bytes: u64) {
        match path {
            DataPath::Copy => self.copy += bytes,
            DataPath::Splice => self.splice += bytes,
            DataPath::Sockmap => self.sockmap += bytes,
            DataPath::Handoff => self.handoff += bytes,
            DataPath::Direct => self.direct += bytes,
        }
    }
}
