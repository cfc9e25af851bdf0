//! Services of a host: processes in a namespace that others share, each service in a cgroup of its own.

use std::fs;
use std::ops::Deref;
use std::path::Path;

use crate::AgentBuilder;
use crate::world::{Pod, World, remove_cgroup};

/// A service of a host. Its processes are killed when it is dropped.
#[derive(Debug)]
pub struct Unit(Pod);

impl Unit {
    /// # Panics
    /// There is no cgroup to be had.
    pub fn of(world: &World, host: &Pod, name: &str) -> Self {
        let unit = Self(Pod {
            netns: host.netns.clone(),
            v4: host.v4.clone(),
            v6: host.v6.clone(),
            cgroup: world.cgroup().join(name),
        });
        unit.start();
        unit
    }

    /// As a service manager does before it starts a service.
    ///
    /// # Panics
    /// Its cgroup cannot be made.
    pub fn start(&self) {
        fs::create_dir(&self.cgroup).expect("a cgroup");
    }

    /// As a service manager does after it has stopped one.
    ///
    /// # Panics
    /// Its cgroup stays.
    pub fn stop(&self) {
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        remove_cgroup(&self.cgroup);
        assert!(!Path::new(&self.cgroup).exists(), "the cgroup is in use");
    }

    /// A line of the list of workloads.
    pub fn entry(&self, name: &str, more: &str) -> String {
        let cgroup = self.cgroup.display();
        format!("  - {{name: {name}, cgroup: {cgroup}, {more}}}\n")
    }
}

impl Deref for Unit {
    type Target = Pod;

    fn deref(&self) -> &Pod {
        &self.0
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        remove_cgroup(&self.cgroup);
    }
}

impl AgentBuilder<'_> {
    /// The agent is a service of this host too.
    #[must_use]
    pub fn on(self, host: &Pod) -> Self {
        let netns = format!("--net=/run/netns/{}", host.netns);
        self.behind(["nsenter".into(), netns].into())
    }

    /// Enrols a service; `more` are further fields as in the YAML flow mapping.
    #[must_use]
    pub fn enrol_unit(self, name: &str, unit: &Unit, more: &str) -> Self {
        self.listed(unit.entry(name, more))
    }
}
