//! L4 policy for the hooks: of each workload the rules about it, and whom their selectors choose.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{HashMap as BpfHashMap, MapData};
use ipnet::IpNet;
use shunt_core::address::to_kernel;
use shunt_core::flow::Direction;
use shunt_core::policy::{Action, Peer, Policy, PolicyRule};
use shunt_core::workload::{PortRange, WorkloadId, WorkloadSpec};
use shunt_ebpf_common::decision::Address;
use shunt_ebpf_common::maps::Workload;
use shunt_ebpf_common::policy::{PolicyKey, PolicyRule as Value, Selected};

use super::object::{Object, failed};
use super::trie::MAPPED_BITS;
use crate::InterceptError;

const ANY_PORT: PortRange = PortRange {
    first: 0,
    last: u16::MAX,
};

pub(super) struct Policies {
    rules: BpfHashMap<MapData, PolicyKey, Value>,
    selected: BpfHashMap<MapData, Selected, u32>,
    policy: Arc<Policy>,
    /// The number of each rule's selector; 0: it has none.
    selectors: Vec<u32>,
    /// Of the policy before, which some workloads may still have.
    replaced: Vec<u32>,
    next_selector: u32,
    /// By the number of a workload's rule set.
    written: HashMap<u32, Written>,
    retired: Vec<(Instant, u32)>,
    /// The workloads that are in `selected`.
    members: HashMap<WorkloadId, WorkloadSpec>,
}

struct Written {
    keys: Vec<PolicyKey>,
    /// [`Workload::policy`].
    counts: [u32; 2],
}

impl Policies {
    pub(super) fn load(object: &mut Object) -> Result<Self, InterceptError> {
        Ok(Self {
            rules: object.map("SHUNT_POLICY")?,
            selected: object.map("SHUNT_SELECTED")?,
            policy: Arc::default(),
            selectors: Vec::new(),
            replaced: Vec::new(),
            next_selector: 1,
            written: HashMap::new(),
            retired: Vec::new(),
            members: HashMap::new(),
        })
    }

    /// Workloads have it once their rules are [written](Self::write) anew.
    pub(super) fn set(&mut self, policy: Arc<Policy>) -> Result<(), InterceptError> {
        let before = std::mem::take(&mut self.replaced);
        for selector in before {
            for member in self.members.keys() {
                let _ = self.selected.remove(&selected(selector, *member));
            }
        }
        self.replaced = std::mem::take(&mut self.selectors);
        for rule in policy.rules() {
            let number = match &rule.peer {
                Some(Peer::Workload(_)) => self.next_selector,
                Some(Peer::Cidr(_)) | None => 0,
            };
            self.next_selector += u32::from(number != 0);
            self.selectors.push(number);
        }
        self.policy = policy;
        let members: Vec<(WorkloadId, WorkloadSpec)> = self.members.clone().into_iter().collect();
        for (id, spec) in &members {
            self.choose(*id, spec)?;
        }
        Ok(())
    }

    /// Whom the selectors choose of this workload, which is new or has other labels.
    pub(super) fn choose(
        &mut self,
        id: WorkloadId,
        spec: &WorkloadSpec,
    ) -> Result<(), InterceptError> {
        self.members.insert(id, spec.clone());
        let rules = self.policy.rules().iter().zip(&self.selectors);
        for (rule, number) in rules {
            let Some(Peer::Workload(selector)) = &rule.peer else {
                continue;
            };
            let key = selected(*number, id);
            if selector.fits(spec.identity()) {
                let written = self.selected.insert(key, 1, 0);
                written.map_err(|error| failed("write whom a policy chooses", &error))?;
            } else {
                // It fails when the workload was not chosen before either.
                let _ = self.selected.remove(&key);
            }
        }
        Ok(())
    }

    pub(super) fn forget(&mut self, id: WorkloadId) {
        self.members.remove(&id);
        for selector in self.selectors.iter().chain(&self.replaced) {
            if *selector != 0 {
                let _ = self.selected.remove(&selected(*selector, id));
            }
        }
    }

    /// The rules about this workload, as a set of its own. On failure nothing of it stays.
    pub(super) fn write(&mut self, set: u32, spec: &WorkloadSpec) -> Result<(), InterceptError> {
        let mut keys = Vec::new();
        let mut counts = [0; 2];
        for direction in [Direction::Outbound, Direction::Inbound] {
            let Some(values) = about(&self.policy, &self.selectors, spec, direction) else {
                counts[direction as usize] = Workload::POLICY_ELSEWHERE;
                continue;
            };
            let by_address = values.iter().any(|value| value.mask != [0; 4]);
            for (value, index) in values.iter().zip(0..) {
                let key = PolicyKey::new(set, direction, index);
                if let Err(error) = self.rules.insert(key, value, 0) {
                    keys.iter().for_each(|key| drop(self.rules.remove(key)));
                    return Err(failed("write the policy", &error));
                }
                keys.push(key);
                counts[direction as usize] += 1;
            }
            if by_address {
                counts[direction as usize] |= Workload::POLICY_BY_ADDRESS;
            }
        }
        self.written.insert(set, Written { keys, counts });
        Ok(())
    }

    /// [`Workload::policy`] of this set.
    pub(super) fn counts(&self, set: u32) -> [u32; 2] {
        self.written
            .get(&set)
            .map_or([0; 2], |written| written.counts)
    }

    pub(super) fn retire(&mut self, set: u32) {
        self.retired.push((Instant::now(), set));
    }

    pub(super) fn remove_retired(&mut self, longer_than: Duration) {
        let due = |(since, _): &mut (Instant, u32)| since.elapsed() >= longer_than;
        let gone: Vec<(Instant, u32)> = self.retired.extract_if(.., due).collect();
        for written in gone.iter().filter_map(|(_, set)| self.written.remove(set)) {
            for key in written.keys {
                let _ = self.rules.remove(&key);
            }
        }
    }
}

/// The rules about a workload, as the hooks read them. `None`: they cannot go through so many.
fn about(
    policy: &Policy,
    selectors: &[u32],
    spec: &WorkloadSpec,
    direction: Direction,
) -> Option<Vec<Value>> {
    let about = |rule: &PolicyRule| {
        let chosen = rule.workload.as_ref();
        rule.direction == direction && chosen.is_none_or(|chosen| chosen.fits(spec.identity()))
    };
    let rules = policy.rules().iter().zip(0..).zip(selectors);
    let mut values = Vec::new();
    for ((rule, index), selector) in rules.filter(|((rule, _), _)| about(rule)) {
        let (address, mask, v6_only) = prefix(rule.peer.as_ref());
        let ports = match rule.ports.as_slice() {
            [] => &[ANY_PORT],
            ports => ports,
        };
        values.extend(ports.iter().map(|range| Value {
            address,
            mask,
            first_port: range.first,
            last_port: range.last,
            selector: *selector,
            denies: u32::from(rule.action == Action::Deny),
            index,
            v6_only: u32::from(v6_only),
        }));
    }
    (values.len() <= Value::MOST).then_some(values)
}

/// Address, mask, and whether it is about IPv6 only.
fn prefix(peer: Option<&Peer>) -> (Address, [u32; 4], bool) {
    let Some(Peer::Cidr(net)) = peer else {
        return (Address::UNSPECIFIED, [0; 4], false);
    };
    let (bits, v6_only) = match net {
        IpNet::V4(v4) => (MAPPED_BITS + u32::from(v4.prefix_len()), false),
        IpNet::V6(v6) => (u32::from(v6.prefix_len()), true),
    };
    let ones = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    let mask = Address::from_octets(ones.to_be_bytes()).0;
    let network: IpAddr = net.network();
    (to_kernel(network), mask, v6_only)
}

fn selected(selector: u32, workload: WorkloadId) -> Selected {
    Selected {
        selector,
        workload: workload.0,
    }
}

#[cfg(test)]
mod tests;
