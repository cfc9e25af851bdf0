//! The two ways of steering, made ready when first wanted, and the choice between them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use shunt_core::behaviour::Behaviour;
use shunt_core::config::Config;
use shunt_core::policy::Policy;
use shunt_core::service::Service;
use shunt_core::workload::{Mode, ModeSetting, WorkloadId, WorkloadSpec};
use shunt_intercept::ebpf::EbpfBackend;
use shunt_intercept::ebpf::battery::Trial;
use shunt_intercept::iptables::IptablesBackend;
use shunt_intercept::{Backend, Enrolment, InterceptError, Marks};

use super::home::OwnCgroup;
use super::inherited::Inherited;
use crate::will::{Leaving, Steering, Will};

#[derive(Debug)]
pub(super) struct Backends {
    pub(super) marks: Marks,
    bpffs: PathBuf,
    ebpf: Slot<EbpfBackend>,
    iptables: Slot<IptablesBackend>,
    /// Where the agent's own sockets are made, for the hook that knows them.
    cgroup: Option<OwnCgroup>,
    services: Vec<Service>,
    policy: Arc<Policy>,
    state_dir: PathBuf,
    /// What this kernel does to accelerated connections, once somebody wanted to have one. Or why it is not known.
    behaviour: Option<Result<Behaviour, String>>,
    /// The data plane has not been told of the maps as they are now.
    pub(super) maps_are_new: bool,
    /// From the supervisor before this one.
    pub(super) inherited: Inherited,
}

#[derive(Debug)]
enum Slot<T> {
    Untried,
    Ready(T),
    /// Why not. Asked once: a kernel does not learn eBPF while it runs.
    Broken(String),
}

impl Backends {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            marks: Marks {
                upstream: config.mark,
                delivery: config.delivery_mark(),
            },
            bpffs: config.bpffs.clone(),
            ebpf: Slot::Untried,
            iptables: Slot::Untried,
            cgroup: None,
            state_dir: config.state_dir.clone(),
            behaviour: None,
            inherited: Inherited::default(),
            maps_are_new: false,
            services: config.services.clone(),
            policy: Arc::new(Policy::new(config.policy.clone())),
        }
    }

    /// Of the L4 services and policy, what the hooks decide. Workloads have the policy with their next update.
    pub(super) fn govern(&mut self, config: &Config) {
        self.services.clone_from(&config.services);
        self.policy = Arc::new(Policy::new(config.policy.clone()));
        if let Slot::Ready(backend) = &mut self.ebpf {
            govern(backend, &self.services, &self.policy);
        }
    }

    /// The rules in force.
    pub(super) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Before a workload is served as `spec` says: when it wants to be accelerated, is that right on this kernel? Asked
    /// once, some tenths of a second, and not again until the host boots anew.
    pub(super) fn prepare(&mut self, spec: &WorkloadSpec) {
        if self.behaviour.is_some()
            || spec.mode == ModeSetting::Iptables
            || !(spec.acceleration.is_any() || spec.acceleration.learns())
        {
            return;
        }
        self.learn();
    }

    /// What every first workload would have to wait for: the programs are loaded.
    pub(super) fn make_ready(&mut self, wish: ModeSetting) {
        for mode in Self::candidates(wish) {
            if self.get(*mode).is_ok() {
                return;
            }
        }
    }

    fn learn(&mut self) {
        let trial = Trial {
            state_dir: &self.state_dir,
            remember: true,
        };
        let learned = trial.learn();
        if let Ok(behaviour) = &learned {
            let milliseconds = behaviour.milliseconds;
            tracing::info!(milliseconds, "it is known what the kernel's queues do");
        }
        if let Slot::Ready(backend) = &mut self.ebpf {
            backend.heed(&learned);
        }
        self.maps_are_new = true;
        self.behaviour = Some(learned);
    }

    /// The modes to try for a wish, best first.
    pub(super) fn candidates(wish: ModeSetting) -> &'static [Mode] {
        match wish {
            ModeSetting::Auto => &[Mode::Ebpf, Mode::Iptables],
            ModeSetting::Ebpf => &[Mode::Ebpf],
            ModeSetting::Iptables => &[Mode::Iptables],
        }
    }

    /// # Errors
    /// Why this mode does not work on this host.
    pub(super) fn get(&mut self, mode: Mode) -> Result<&mut dyn Backend, String> {
        match mode {
            Mode::Ebpf => {
                if matches!(self.ebpf, Slot::Untried) {
                    self.ebpf = Slot::from(self.load_ebpf());
                }
                match &mut self.ebpf {
                    Slot::Ready(backend) => Ok(backend),
                    Slot::Broken(reason) => Err(reason.clone()),
                    Slot::Untried => Err("not tried".into()),
                }
            }
            Mode::Iptables => {
                if matches!(self.iptables, Slot::Untried) {
                    let tables = std::mem::take(&mut self.inherited.tables);
                    let backend = IptablesBackend::new(self.marks).map(|mut backend| {
                        backend.inherit(tables);
                        backend
                    });
                    self.iptables = Slot::from(backend);
                }
                match &mut self.iptables {
                    Slot::Ready(backend) => Ok(backend),
                    Slot::Broken(reason) => Err(reason.clone()),
                    Slot::Untried => Err("not tried".into()),
                }
            }
        }
    }

    fn load_ebpf(&mut self) -> Result<EbpfBackend, InterceptError> {
        let cgroup = OwnCgroup::find_or_make()?;
        let mut backend = EbpfBackend::load(self.marks, cgroup.path(), &self.bpffs)?;
        govern(&mut backend, &self.services, &self.policy);
        if let Some(learned) = &self.behaviour {
            backend.heed(learned);
        }
        self.cgroup = Some(cgroup);
        self.maps_are_new = true;
        tracing::info!("eBPF programs loaded");
        Ok(backend)
    }

    /// Of every mode that was used: an earlier enrolment of the namespace may have left to the last what it had.
    pub(super) fn finish(&mut self, enrolment: &Enrolment) -> Result<(), String> {
        let ebpf = match &mut self.ebpf {
            Slot::Ready(backend) => backend.finish(enrolment),
            Slot::Untried | Slot::Broken(_) => Ok(()),
        };
        let iptables = match &mut self.iptables {
            Slot::Ready(backend) => backend.finish(enrolment),
            Slot::Untried | Slot::Broken(_) => Ok(()),
        };
        ebpf.and(iptables).map_err(|error| error.chain())
    }

    pub(super) fn keep_alive(&mut self) {
        if let Slot::Ready(backend) = &mut self.ebpf {
            backend.keep_alive();
        }
        if let Slot::Ready(backend) = &mut self.iptables {
            backend.keep_alive();
        }
    }

    /// The maps of destinations for the data plane, once the programs are loaded.
    pub(super) fn destinations(&self) -> Vec<OwnedFd> {
        let own = match &self.ebpf {
            Slot::Ready(backend) => Some(backend.destinations_fd()),
            _ => None,
        };
        let before = self.inherited.destinations.as_ref();
        let before = before.map(OwnedFd::try_clone);
        let maps = own.into_iter().chain(before);
        let maps: std::io::Result<Vec<OwnedFd>> = maps.collect();
        maps.inspect_err(|error| tracing::error!(%error, "cannot share the map of destinations"))
            .unwrap_or_default()
    }

    /// The map of resolvers for the data plane, once the programs are loaded.
    pub(super) fn resolvers(&self) -> Option<OwnedFd> {
        let Slot::Ready(backend) = &self.ebpf else {
            return None;
        };
        let map = backend.resolvers_fd();
        map.inspect_err(|error| tracing::error!(%error, "cannot share the map of resolvers"))
            .ok()
    }

    /// What the hooks tell of direct connections, for the data plane, once the programs are loaded.
    pub(super) fn direct_events(&self) -> Option<OwnedFd> {
        let Slot::Ready(backend) = &self.ebpf else {
            return None;
        };
        let events = backend.direct_events_fd();
        events
            .inspect_err(|error| tracing::error!(%error, "cannot share the books of direct flows"))
            .ok()
    }

    /// The maps of acceleration for the data plane, where the kernel can do it.
    pub(super) fn shortcuts(&self) -> Vec<OwnedFd> {
        let Slot::Ready(backend) = &self.ebpf else {
            return Vec::new();
        };
        let maps = backend.shortcut_fds();
        maps.inspect_err(|error| tracing::error!(%error, "cannot share the maps of acceleration"))
            .unwrap_or_default()
    }

    /// The maps of a tap for the data plane, where something goes past the TCP stack.
    pub(super) fn tap(&self) -> Vec<OwnedFd> {
        let Slot::Ready(backend) = &self.ebpf else {
            return Vec::new();
        };
        let maps = backend.tap_fds();
        maps.inspect_err(|error| tracing::error!(%error, "cannot share the maps of a tap"))
            .unwrap_or_default()
    }

    /// Are the programs loaded?
    pub(super) fn has_hooks(&self) -> bool {
        matches!(self.ebpf, Slot::Ready(_))
    }

    /// The namespaces of workloads in iptables mode, by cookie, and their addresses.
    pub(super) fn steered_by_rules(&mut self, workloads: BTreeMap<u64, Vec<IpAddr>>) {
        if let Slot::Ready(backend) = &mut self.ebpf {
            backend.steered_by_rules(workloads);
        }
    }

    /// A data plane is gone, and with it its flows.
    pub(super) fn forget_flows(&mut self) {
        if let Slot::Ready(backend) = &mut self.ebpf {
            backend.forget_flows();
        }
    }

    pub(super) fn events(&self) -> BTreeMap<String, u64> {
        match &self.ebpf {
            Slot::Ready(backend) => backend
                .events()
                .into_iter()
                .map(|(name, count)| (name.to_owned(), count))
                .collect(),
            _ => BTreeMap::new(),
        }
    }

    /// What was learned of a workload's sockets.
    pub(super) fn classes(&self, id: WorkloadId) -> BTreeMap<String, u64> {
        match &self.ebpf {
            Slot::Ready(backend) => backend.classes(id),
            _ => BTreeMap::new(),
        }
    }

    /// Has [`Backends::classes`] changed since this was asked last?
    pub(super) fn have_learned(&mut self) -> bool {
        match &mut self.ebpf {
            Slot::Ready(backend) => backend.has_learned(),
            _ => false,
        }
    }

    /// What nobody has taken over of the supervisor before this one. `connections_are_gone` as in [`Inherited::let_go`].
    pub(super) fn let_go(&mut self, connections_are_gone: bool) -> bool {
        let gone = self.inherited.let_go(connections_are_gone);
        if gone && let Slot::Ready(backend) = &mut self.iptables {
            backend.disinherit();
        }
        gone
    }

    /// For the next supervisor: what steers now.
    ///
    /// # Errors
    /// Descriptors ran out.
    pub(super) fn bequeath(&self, leaving: &mut Leaving, will: &mut Will) -> std::io::Result<()> {
        if let Slot::Ready(backend) = &self.ebpf {
            let estate = backend.estate()?;
            let mut attending = leaving.leave_all(&estate.attending)?;
            attending.extend(leaving.leave_all(self.inherited.attending())?);
            will.steering = Some(Steering {
                gate: leaving.leave(&estate.gate)?,
                destinations: leaving.leave(&estate.destinations)?,
                capturing: leaving.leave_all(&estate.capturing)?,
                attending,
            });
        }
        if let Slot::Ready(backend) = &self.iptables {
            for (inode, socket) in backend.tables()? {
                will.tables.push((inode, leaving.leave(&socket)?));
            }
            for (family, switch) in backend.switches()? {
                will.switches.push((family, leaving.leave(&switch)?));
            }
        }
        Ok(())
    }

    /// Detaches and forgets everything.
    pub(super) fn unload(&mut self) {
        self.ebpf = Slot::Untried;
        self.iptables = Slot::Untried;
        self.cgroup = None;
    }
}

fn govern(backend: &mut EbpfBackend, services: &[Service], policy: &Arc<Policy>) {
    let services = backend.set_services(services);
    let governed = services.and(backend.set_policy(Arc::clone(policy)));
    if let Err(error) = governed {
        let error = error.chain();
        tracing::error!(error, "not every service or policy rule is in force");
    }
}

impl<T> From<Result<T, InterceptError>> for Slot<T> {
    fn from(result: Result<T, InterceptError>) -> Self {
        match result {
            Ok(backend) => Self::Ready(backend),
            Err(error) => Self::Broken(error.chain()),
        }
    }
}
