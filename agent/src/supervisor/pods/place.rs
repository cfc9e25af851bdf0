//! Where a pod is on the node.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use shunt_core::workload::{OWN_NETNS, WorkloadSpec};
use shunt_workload::processes::{Leader, Life};

/// A pod's network namespace is held open: its number is nobody else's while we know it, whoever of the pod ends. One in
/// the agent's own is its cgroup.
#[derive(Debug)]
pub(super) struct Place {
    /// Of its oldest process.
    life: Life,
    netns: File,
    inode: u64,
    shares_netns: bool,
    /// The pod's, with all its containers.
    pub(super) cgroup: Option<PathBuf>,
}

impl Place {
    /// Of a pod that is to be enrolled as `wished`. The error is for people.
    pub(super) fn of(
        leader: Leader,
        wished: &WorkloadSpec,
        cgroups: Option<&Path>,
    ) -> Result<Self, String> {
        let pid = leader.pid();
        let failed =
            |error| format!("cannot open the network namespace of its process {pid}: {error}");
        let netns = leader.netns().map_err(failed)?;
        let inode = netns.metadata().map_err(failed)?.ino();
        let is = |path: &str| fs::metadata(path).is_ok_and(|known| known.ino() == inode);
        let cgroup = cgroups.and_then(|mount| leader.cgroup(mount));
        let shares_netns = wished.shares_netns();
        if shares_netns && !is(OWN_NETNS) {
            return Err(format!(
                "it has hostNetwork, and its process {pid} is not in the network namespace of the agent"
            ));
        }
        if shares_netns && cgroup.is_none() {
            return Err("it has hostNetwork, and no cgroup of its own in cgroup2: \
                        the connections of others cannot be told from its own"
                .into());
        }
        let known = ["/proc/1/ns/net", OWN_NETNS];
        if let Some(known) = known.iter().find(|path| !shares_netns && is(path)) {
            return Err(format!(
                "its process {pid} is in the node's own network namespace ({known}), which is not captured"
            ));
        }
        Ok(Self {
            cgroup,
            shares_netns,
            life: leader.into_life(),
            netns,
            inode,
        })
    }

    /// Of a network namespace that is its own.
    pub(super) fn inode(&self) -> Option<u64> {
        (!self.shares_netns).then_some(self.inode)
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.inode == other.inode && self.cgroup == other.cgroup
    }

    /// Another process of the same namespace is the oldest now.
    pub(super) fn led_by(&mut self, other: Self) {
        self.life = other.life;
    }

    pub(super) fn life(&self) -> &Life {
        &self.life
    }

    /// The wish with the place that it left empty. The path leads to the namespace that is held, and to no other.
    pub(super) fn given(&self, wished: &WorkloadSpec) -> WorkloadSpec {
        let (pid, fd) = (std::process::id(), self.netns.as_raw_fd());
        WorkloadSpec {
            netns: match self.shares_netns {
                true => OWN_NETNS.into(),
                false => format!("/proc/{pid}/fd/{fd}").into(),
            },
            cgroup: self.cgroup.clone(),
            ..wished.clone()
        }
    }
}
