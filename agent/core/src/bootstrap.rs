//! What the proxy serves: listeners and clusters, as the agent understood them from Envoy's configuration. Everything in
//! here has been validated: the data path has nothing to refuse any more.

use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::listener::Listener;

/// One configuration of the proxy, replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Names are unique, and so are addresses.
    pub listeners: Vec<Listener>,
    /// Names are unique; every cluster that a listener's filters name is here.
    pub clusters: Vec<Cluster>,
}

impl Bootstrap {
    pub fn is_empty(&self) -> bool {
        self.listeners.is_empty() && self.clusters.is_empty()
    }
}
