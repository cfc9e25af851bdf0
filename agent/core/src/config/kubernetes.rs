//! Pods that are enrolled by what the Kubernetes API says of them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kubernetes {
    /// This node's name in the API; `None`: the environment's `NODE_NAME`.
    pub node_name: Option<String>,
    /// `None`: the service account of the pod in which the agent runs.
    pub kubeconfig: Option<PathBuf>,
    /// Are pods enrolled about which neither they nor their namespaces say anything?
    pub default_on: bool,
    /// `enabled` or `disabled`, on pods and namespaces.
    pub inject_label: String,
    /// Istio's: `ambient` or `none`.
    pub dataplane_mode_label: String,
    /// Pods of these are never enrolled.
    pub exempt_namespaces: Vec<String>,
}

impl Kubernetes {
    pub fn exempts(&self, namespace: &str) -> bool {
        self.exempt_namespaces.iter().any(|name| name == namespace)
    }
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            node_name: None,
            kubeconfig: None,
            default_on: false,
            inject_label: "shunt.io/inject".into(),
            dataplane_mode_label: "istio.io/dataplane-mode".into(),
            exempt_namespaces: vec!["kube-system".into(), "shunt-system".into()],
        }
    }
}
