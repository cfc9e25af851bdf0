//! What a connection must know when it starts: one immutable, numbered view, replaced as a whole.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

use crate::bootstrap::Tables;
use crate::config::{Limits, Timeouts};
use crate::counters::WorkloadCounters;
use crate::policy::{Identity, Policy};
use crate::service::Services;
use crate::workload::{CapturePolicy, Mode, WorkloadId, WorkloadName};

/// An enrolled workload as the data path sees it.
#[derive(Clone, Debug)]
pub struct Enrolled {
    pub id: WorkloadId,
    pub name: WorkloadName,
    pub labels: BTreeMap<String, String>,
    pub mode: Mode,
    /// The addresses of its namespace, loopback and link-local ones left out.
    pub addresses: Vec<IpAddr>,
    /// Nobody else has them: it has its namespace to itself.
    pub owns_addresses: bool,
    /// Which inbound connections are captured.
    pub inbound: CapturePolicy,
    /// Delivery with the client's own source address works in this namespace.
    pub transparent: bool,
    /// As in its acceleration.
    pub handoff: bool,
    /// A configuration of its own, in place of [`Snapshot::proxy`].
    pub proxy: Option<Arc<Tables>>,
    pub counters: Arc<WorkloadCounters>,
    /// Set when the workload was withdrawn: it takes no new connections.
    pub withdrawn: Arc<AtomicBool>,
}

/// The view. A connection loads it once and keeps it to its end.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub generation: u64,
    pub timeouts: Timeouts,
    pub limits: Limits,
    /// As in the configuration.
    pub splice_after: Option<u64>,
    pub services: Arc<Services>,
    pub policy: Arc<Policy>,
    /// What the proxy serves: in its own name, and of the workloads' connections.
    pub proxy: Arc<Tables>,
    pub workloads: BTreeMap<WorkloadId, Arc<Enrolled>>,
    by_address: HashMap<IpAddr, Owner>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Owner {
    One(WorkloadId),
    /// Two enrolled namespaces use this address: it proves nothing.
    Ambiguous,
}

impl Enrolled {
    /// The node itself, for what the agent serves in its own name.
    pub fn node(name: String) -> Self {
        Self {
            id: WorkloadId::NODE,
            name: WorkloadName {
                namespace: "node".to_owned(),
                name,
            },
            labels: BTreeMap::new(),
            mode: Mode::Iptables,
            addresses: Vec::new(),
            owns_addresses: true,
            inbound: CapturePolicy::default(),
            transparent: false,
            handoff: false,
            proxy: None,
            counters: Arc::default(),
            withdrawn: Arc::default(),
        }
    }

    /// What rules may ask of it.
    pub fn identity(&self) -> Identity<'_> {
        Identity {
            name: &self.name,
            labels: &self.labels,
        }
    }
}

impl Snapshot {
    /// Without services, policy and the proxy's own configuration.
    pub fn new(
        generation: u64,
        timeouts: Timeouts,
        limits: Limits,
        splice_after: Option<u64>,
        workloads: BTreeMap<WorkloadId, Arc<Enrolled>>,
    ) -> Self {
        let mut by_address = HashMap::new();
        for workload in workloads.values() {
            let own = workload
                .addresses
                .iter()
                .filter(|_| workload.owns_addresses);
            for address in own {
                by_address
                    .entry(*address)
                    .and_modify(|owner| *owner = Owner::Ambiguous)
                    .or_insert(Owner::One(workload.id));
            }
        }
        Self {
            generation,
            timeouts,
            limits,
            splice_after,
            services: Arc::default(),
            policy: Arc::default(),
            proxy: Arc::default(),
            workloads,
            by_address,
        }
    }

    /// The configuration of a workload's connections.
    pub fn tables<'a>(&'a self, workload: &'a Enrolled) -> &'a Arc<Tables> {
        workload.proxy.as_ref().unwrap_or(&self.proxy)
    }

    /// The enrolled workload that alone uses `address`. Another network may use the same address: this is what policy
    /// means by a workload's address, a name for people and a hint for the data path, but no proof.
    pub fn owner(&self, address: IpAddr) -> Option<&Arc<Enrolled>> {
        match self.by_address.get(&address)? {
            Owner::One(id) => self.workloads.get(id),
            Owner::Ambiguous => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enrolled(id: u32, addresses: &[&str]) -> (WorkloadId, Arc<Enrolled>) {
        let workload = Enrolled {
            id: WorkloadId(id),
            name: WorkloadName {
                namespace: "default".into(),
                name: format!("w{id}"),
            },
            labels: BTreeMap::new(),
            mode: Mode::Ebpf,
            addresses: addresses
                .iter()
                .map(|text| text.parse().expect("an address"))
                .collect(),
            inbound: CapturePolicy::default(),
            owns_addresses: true,
            transparent: true,
            handoff: true,
            proxy: None,
            counters: Arc::default(),
            withdrawn: Arc::default(),
        };
        (workload.id, Arc::new(workload))
    }

    #[test]
    fn an_address_of_two_workloads_belongs_to_none() {
        let workloads = [
            enrolled(1, &["10.0.0.1", "fd00::1"]),
            enrolled(2, &["10.0.0.1", "10.0.0.2"]),
        ]
        .into();
        let snapshot = Snapshot::new(1, Timeouts::default(), Limits::default(), None, workloads);
        let owner = |text: &str| {
            snapshot
                .owner(text.parse().expect("an address"))
                .map(|workload| workload.id.0)
        };
        assert_eq!(owner("10.0.0.1"), None);
        assert_eq!(owner("10.0.0.2"), Some(2));
        assert_eq!(owner("fd00::1"), Some(1));
        assert_eq!(owner("10.0.0.9"), None);
    }
}
