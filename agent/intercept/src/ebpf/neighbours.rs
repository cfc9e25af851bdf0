//! Whose address is whose on this node, for hooks that meet a connection between two workloads.

use std::collections::{BTreeMap, HashMap as Map};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use aya::maps::{HashMap, MapData};
use shunt_core::address::to_kernel;
use shunt_ebpf_common::decision::Address;
use shunt_ebpf_common::maps::{FlowOwner, NetnsCookie, OwnFlow};
use shunt_ebpf_common::scope::WorkloadKey;

use super::EbpfBackend;
use super::object::{Object, failed};
use crate::InterceptError;

/// A look at every connection takes a while, and what it finds only takes up room.
const SWEEP: Duration = Duration::from_secs(60);

pub(super) struct Neighbours {
    addresses: HashMap<MapData, Address, NetnsCookie>,
    own_flows: HashMap<MapData, OwnFlow, FlowOwner>,
    /// Who has each address.
    owners: BTreeMap<IpAddr, Vec<NetnsCookie>>,
    /// Of workloads that other rules than ours steer.
    unhooked: BTreeMap<NetnsCookie, Vec<IpAddr>>,
    /// Since then nothing was swept, although a workload was released.
    unswept: Option<Instant>,
}

impl Neighbours {
    pub(super) fn load(object: &mut Object) -> Result<Self, InterceptError> {
        Ok(Self {
            addresses: object.map("SHUNT_ADDRESSES")?,
            own_flows: object.map("SHUNT_OWN_FLOWS")?,
            owners: BTreeMap::new(),
            unhooked: BTreeMap::new(),
            unswept: None,
        })
    }

    /// These addresses are this namespace's, in place of `before`. One that two namespaces have is nobody's: it proves
    /// nothing.
    pub(super) fn move_in(
        &mut self,
        before: &[IpAddr],
        now: &[IpAddr],
        netns: NetnsCookie,
    ) -> Result<(), InterceptError> {
        for address in before.iter().filter(|address| !now.contains(address)) {
            self.move_out(*address, netns);
        }
        for address in now {
            let owners = self.owners.entry(*address).or_default();
            if !owners.contains(&netns) {
                owners.push(netns);
            }
            self.write_owner(*address)?;
        }
        Ok(())
    }

    pub(super) fn move_out(&mut self, address: IpAddr, netns: NetnsCookie) {
        if let Some(owners) = self.owners.get_mut(&address) {
            owners.retain(|owner| *owner != netns);
        }
        if let Err(error) = self.write_owner(address) {
            let error = error.chain();
            tracing::warn!(%address, error, "connections to it are not recognised");
        }
    }

    fn write_owner(&mut self, address: IpAddr) -> Result<(), InterceptError> {
        let key = to_kernel(address);
        match self.owners.get(&address).map(Vec::as_slice) {
            Some([owner]) => self
                .addresses
                .insert(key, owner, 0)
                .map_err(|error| failed("write a workload's address", &error)),
            owners => {
                if owners.is_none_or(<[_]>::is_empty) {
                    self.owners.remove(&address);
                }
                // It fails when it was nobody's before.
                let _ = self.addresses.remove(&key);
                Ok(())
            }
        }
    }

    /// These namespaces' workloads have no hooks: whoever connects to them is the agent's.
    pub(super) fn note_unhooked(
        &mut self,
        now: BTreeMap<NetnsCookie, Vec<IpAddr>>,
    ) -> Result<(), InterceptError> {
        if self.unhooked == now {
            return Ok(());
        }
        let before = std::mem::take(&mut self.unhooked);
        let gone = before.iter().filter(|(netns, _)| !now.contains_key(netns));
        for (netns, addresses) in gone {
            self.move_in(addresses, &[], *netns)?;
        }
        for (netns, addresses) in &now {
            let before = before.get(netns).map_or(&[][..], Vec::as_slice);
            self.move_in(before, addresses, *netns)?;
        }
        self.unhooked = now;
        Ok(())
    }

    pub(super) fn owner(&self, address: IpAddr) -> Option<NetnsCookie> {
        self.addresses.get(&to_kernel(address), 0).ok()
    }

    /// Nobody tells any more when direct connections of this workload end. sk_lookup does not believe them; their entries
    /// are removed later.
    pub(super) fn released(&mut self, netns: NetnsCookie, addresses: &[IpAddr]) {
        for address in addresses {
            self.move_out(*address, netns);
        }
        self.unswept.get_or_insert_with(Instant::now);
    }

    /// `enrolled`: the workloads' ids, by key.
    pub(super) fn sweep(&mut self, enrolled: impl Fn() -> Map<WorkloadKey, u32>) {
        if self.unswept.is_none_or(|since| since.elapsed() < SWEEP) {
            return;
        }
        self.unswept = None;
        let enrolled = enrolled();
        let flows = self.own_flows.iter().filter_map(Result::ok);
        let is_gone = |(_, by): &(OwnFlow, FlowOwner)| {
            *by != FlowOwner::AGENT && enrolled.get(&by.key) != Some(&by.workload)
        };
        let gone: Vec<(OwnFlow, FlowOwner)> = flows.filter(is_gone).collect();
        for (flow, _) in gone {
            let _ = self.own_flows.remove(&flow);
        }
    }
}

impl EbpfBackend {
    /// The namespaces, by cookie, and addresses of workloads that are steered without hooks: what connects to them does
    /// not go past the agent.
    pub fn steered_by_rules(&mut self, workloads: BTreeMap<NetnsCookie, Vec<IpAddr>>) {
        if let Err(error) = self.neighbours.note_unhooked(workloads) {
            let error = error.chain();
            tracing::error!(
                error,
                "connections to workloads in iptables mode are told of twice"
            );
        }
    }
}
