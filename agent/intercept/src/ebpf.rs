//! The eBPF backend: connect hooks on the workload's cgroup, `sk_lookup` in its namespace.
//!
//! Nothing is pinned where anybody could see it: when this process ends, however it ends, every program is detached
//! and connections go directly. Except for workloads that are to be refused then: see [`pins`].

mod acceleration;
pub mod battery;
mod classes;
mod clock;
mod destinations;
mod direct_events;
mod dns;
mod element;
mod estate;
mod explain;
pub(crate) mod foreign;
mod hooks;
mod inbound;
mod inspection;
mod kernel;
mod leftovers;
mod listening_ports;
mod neighbours;
mod object;
mod observer;
mod offsets;
mod path;
mod pins;
mod policies;
mod probe;
mod proxied;
mod rules;
mod scopes;
mod services;
mod sharing;
mod shortcuts;
mod tap;
mod trie;
mod value;

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap as BpfHashMap, MapData, PerCpuArray};
use shunt_core::explain::{Explanation, Inquiry};
use shunt_core::listener::Captured;
use shunt_core::workload::{Mode, OnFailure, WorkloadId};
use shunt_ebpf_common::maps::{NetnsCookie, RuleKey, RuleMarks, Workload};
use shunt_ebpf_common::scope::WorkloadKey;

use self::acceleration::Acceleration;
pub use self::destinations::Destinations;
pub use self::direct_events::DirectEvents;
use self::dns::Dns;
pub use self::dns::Resolvers;
pub use self::estate::{Estate, LAYOUT};
use self::hooks::Hooks;
use self::listening_ports::ListeningPorts;
use self::neighbours::Neighbours;
use self::object::Object;
use self::pins::Pins;
pub use self::pins::Remains;
use self::policies::Policies;
pub use self::probe::probe;
use self::scopes::Place;
pub use self::scopes::workload_key;
use self::services::Services;
pub use self::shortcuts::Shortcuts;
pub use self::tap::{Message, MessageTap};
use crate::drift::{Drift, Look};
use crate::{Backend, Enrolment, InterceptError, Marks, cgroup};

/// How often the kernel's count of listening ports is compared with the sockets of some workloads.
const LISTENING_LOOK: Duration = Duration::from_secs(1);
/// How long replaced rules stay: a program that read the workload just before the change may still look them up.
const RETIREMENT: Duration = Duration::from_millis(100);

type RuleEntry = (Key<RuleKey>, RuleMarks);

/// See the head of this module.
pub struct EbpfBackend {
    object: Object,
    hooks: Hooks,
    dns: Dns,
    workloads: BpfHashMap<MapData, WorkloadKey, Workload>,
    rules: LpmTrie<MapData, RuleKey, RuleMarks>,
    /// Replaced rules and when they were.
    retired: Vec<(Instant, Vec<RuleEntry>)>,
    listening: ListeningPorts,
    gate: Array<MapData, u64>,
    events: PerCpuArray<MapData, u64>,
    direct_events: MapData,
    tap: Result<tap::TapMaps, String>,
    services: Services,
    policies: Policies,
    enrolled: HashMap<WorkloadId, Enrolled>,
    next_rules: u32,
    last_look: Instant,
    /// Or why no connection can be accelerated.
    acceleration: Result<Acceleration, String>,
    /// Is it known where the kernel has what the books of direct connections need?
    counts_exactly: bool,
    neighbours: Neighbours,
    /// Why it is not used, although it could be.
    refusal: Option<String>,
    bpffs: PathBuf,
    /// Made when the first workload needs it.
    pins: Option<Pins>,
}

struct Enrolled {
    netns: NetnsCookie,
    /// Of its entry in `workloads`.
    key: WorkloadKey,
    /// What the hooks read of it.
    value: Workload,
    handoff: bool,
    captured: Arc<Captured<String>>,
    addresses: Vec<IpAddr>,
    rules: Vec<RuleEntry>,
    /// Where the round of looks at them is.
    rules_looked: usize,
    /// `None`: it has no inbound listener.
    inbound: Option<inbound::Inbound>,
    /// Where the hooks are.
    cgroup: PathBuf,
}

impl EbpfBackend {
    /// Loads the programs. `agent_cgroup` is where the agent's own sockets are made; `bpffs` is where links are
    /// pinned that must outlive the agent.
    ///
    /// # Errors
    /// This host does not let us, see [`probe()`].
    pub fn load(marks: Marks, agent_cgroup: &Path, bpffs: &Path) -> Result<Self, InterceptError> {
        let mut object = Object::load(marks)?;
        let hooks = Hooks::load(&mut object, agent_cgroup)?;
        let counts_exactly = object.offsets.is_ok();
        let acceleration = Acceleration::load(&mut object).map_err(|error| error.chain());
        kernel::give_memory_back();
        Ok(Self {
            acceleration,
            counts_exactly,
            neighbours: Neighbours::load(&mut object)?,
            dns: Dns::new(&mut object)?,
            refusal: None,
            workloads: object.map("SHUNT_WORKLOADS")?,
            rules: object.map("SHUNT_RULES")?,
            retired: Vec::new(),
            listening: ListeningPorts::new(object.map("SHUNT_LISTENING")?),
            gate: object.map("SHUNT_GATE")?,
            events: object.map("SHUNT_EVENTS")?,
            direct_events: object.ring("SHUNT_DIRECT")?,
            tap: tap::TapMaps::load(&mut object).map_err(|error| error.chain()),
            services: Services::load(&mut object)?,
            policies: Policies::load(&mut object)?,
            object,
            hooks,
            enrolled: HashMap::new(),
            next_rules: 1,
            last_look: Instant::now(),
            bpffs: bpffs.to_owned(),
            pins: None,
        })
    }

    fn try_install(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError> {
        // First what costs little to miss: it is tried again and again.
        let cgroup = cgroup::of_workload(&enrolment.spec)?;
        self.refuse_overlap(enrolment, &cgroup)?;
        let (netns, key) = (enrolment.netns.cookie(), enrolment.key());
        let rules_set = self.next_rules;
        self.next_rules += 1;
        self.policies.choose(enrolment.id, &enrolment.spec)?;
        self.learn(enrolment);
        let rules = self.write_rules(enrolment, rules_set)?;
        let value = self.workload_value(enrolment, rules_set);
        self.enrolled.insert(
            enrolment.id,
            Enrolled {
                netns,
                key,
                value,
                handoff: enrolment.spec.acceleration.handoff,
                captured: Arc::clone(&enrolment.captured),
                addresses: own_addresses(enrolment).to_owned(),
                rules,
                rules_looked: 0,
                inbound: None,
                cgroup: PathBuf::new(),
            },
        );
        self.workloads
            .insert(key, value, 0)
            .map_err(|error| object::failed("write the workload", &error))?;
        self.neighbours
            .move_in(&[], own_addresses(enrolment), netns)?;
        if !enrolment.spec.shares_netns() {
            self.listening.add(enrolment.id, &enrolment.netns)?;
        }
        let pinned = enrolment.spec.on_failure == OnFailure::Closed && self.can_pin();
        let pins = self.pins.as_ref().filter(|_| pinned);
        let inbound = self.object.attach_sk_lookup(enrolment, pins)?;
        self.hooks
            .attach(enrolment.id, Place::of(enrolment, &cgroup), pins)?;
        self.dns
            .install(&mut self.object, enrolment, &cgroup, pins)?;
        if let Some(enrolled) = self.enrolled.get_mut(&enrolment.id) {
            (enrolled.inbound, enrolled.cgroup) = (inbound, cgroup);
        }
        Ok(())
    }

    /// Without a bpffs a workload that is to be refused is refused only as long as this process lives.
    fn can_pin(&mut self) -> bool {
        if self.pins.is_none() {
            let workloads = self.object.private_pin("SHUNT_WORKLOADS");
            match Pins::make(&self.bpffs, &workloads) {
                Ok(pins) => self.pins = Some(pins),
                Err(error) => {
                    let error = error.chain();
                    tracing::warn!(
                        error,
                        "on_failure: closed does not outlive the agent: `bpffs` is not in a bpffs"
                    );
                }
            }
        }
        self.pins.is_some()
    }

    fn workload_value(&self, enrolment: &Enrolment, rules: u32) -> Workload {
        let mut value = value::of(enrolment, rules, self.possible(enrolment).flags());
        value.policy = self.policies.counts(rules);
        value
    }
}

impl Backend for EbpfBackend {
    fn mode(&self) -> Mode {
        Mode::Ebpf
    }

    fn install(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError> {
        self.release(enrolment)?;
        self.try_install(enrolment).inspect_err(|_| {
            if let Err(error) = self.release(enrolment) {
                tracing::error!(error = error.chain(), "cannot undo a failed enrolment");
            }
        })
    }

    fn update(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError> {
        if !self.enrolled.contains_key(&enrolment.id) {
            return self.install(enrolment);
        }
        self.remove_retired_rules();
        let set = self.next_rules;
        self.next_rules += 1;
        self.policies.choose(enrolment.id, &enrolment.spec)?;
        self.learn(enrolment);
        let rules = self.write_rules(enrolment, set)?;
        let value = self.workload_value(enrolment, set);
        if let Err(error) = self.workloads.insert(enrolment.key(), value, 0) {
            self.retired.push((Instant::now(), rules));
            self.policies.retire(set);
            return Err(object::failed("write the workload", &error));
        }
        if let Some(enrolled) = self.enrolled.get_mut(&enrolment.id) {
            self.policies.retire(enrolled.value.rules);
            enrolled.value = value;
            enrolled.handoff = enrolment.spec.acceleration.handoff;
            enrolled.captured = Arc::clone(&enrolment.captured);
            let replaced = std::mem::replace(&mut enrolled.rules, rules);
            self.retired.push((Instant::now(), replaced));
            let now = own_addresses(enrolment);
            self.neighbours
                .move_in(&enrolled.addresses, now, enrolled.netns)?;
            enrolled.addresses = now.to_owned();
        }
        Ok(())
    }

    fn release(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError> {
        self.dns.release(enrolment.id);
        self.hooks.detach(enrolment.id);
        let Some(enrolled) = self.enrolled.remove(&enrolment.id) else {
            return Ok(());
        };
        let ours = |workload: &Workload| workload.id == enrolment.id.0;
        if self
            .workloads
            .get(&enrolled.key, 0)
            .is_ok_and(|workload| ours(&workload))
        {
            self.workloads
                .remove(&enrolled.key)
                .map_err(|error| object::failed("remove the workload", &error))?;
        }
        self.unlearn(enrolment.id);
        for (key, _) in &enrolled.rules {
            let _ = self.rules.remove(key);
        }
        self.policies.retire(enrolled.value.rules);
        self.policies.forget(enrolment.id);
        self.neighbours
            .released(enrolled.netns, &enrolled.addresses);
        if let Ok(acceleration) = &mut self.acceleration {
            acceleration.released();
        }
        self.listening.remove(enrolment.id);
        Ok(())
    }

    fn finish(&mut self, _enrolment: &Enrolment) -> Result<(), InterceptError> {
        // Flows need no program once they are established.
        Ok(())
    }

    fn inspect(&mut self, enrolment: &Enrolment, look: Look) -> Result<Vec<Drift>, InterceptError> {
        self.inspect_installed(enrolment, look)
    }

    fn repair(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError> {
        self.repair_installed(enrolment)
    }

    fn describe(&self, enrolment: &Enrolment) -> String {
        let mut text = match &enrolment.spec.cgroup {
            Some(cgroup) => format!("eBPF: hooks at cgroup {}", cgroup.display()),
            None => "eBPF: no cgroup is configured, so the hooks are at the cgroup2 root and run for every process"
                .into(),
        };
        if enrolment.spec.shares_netns() {
            text.push_str(" in the agent's own namespace, for outbound connections alone");
        }
        text.push_str(&self.without_acceleration(&enrolment.spec.acceleration));
        text
    }

    fn shortcoming(&self, enrolment: &Enrolment) -> Option<String> {
        self.ungoverned(enrolment)
            .or_else(|| self.unheard(enrolment))
    }

    fn explain(
        &self,
        enrolment: &Enrolment,
        inquiry: &Inquiry,
    ) -> Result<Explanation, InterceptError> {
        self.explanation(enrolment, inquiry)
    }

    fn keep_alive(&mut self) {
        if let Err(error) = self.gate.set(0, clock::kernel_ns(), 0) {
            tracing::error!(%error, "cannot refresh the gate: connections go directly");
        }
        self.object.drain_log();
        if self.last_look.elapsed() >= LISTENING_LOOK {
            self.last_look = Instant::now();
            self.listening.look_at_some();
            if let Ok(acceleration) = &mut self.acceleration {
                acceleration.classes.look();
                acceleration.sweep();
            }
            let enrolled = || {
                let all = self.enrolled.iter();
                all.map(|(id, enrolled)| (enrolled.key, id.0)).collect()
            };
            self.neighbours.sweep(enrolled);
        }
        self.remove_retired_rules();
    }
}

impl std::fmt::Debug for EbpfBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EbpfBackend")
            .field("enrolled", &self.enrolled.keys())
            .finish_non_exhaustive()
    }
}

/// The addresses that are nobody else's.
fn own_addresses(enrolment: &Enrolment) -> &[IpAddr] {
    match enrolment.spec.shares_netns() {
        true => &[],
        false => &enrolment.addresses,
    }
}

/// For raw system calls that want a number.
fn raw(fd: &impl AsFd) -> i32 {
    fd.as_fd().as_raw_fd()
}
