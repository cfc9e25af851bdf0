//! Where a pod is on the node.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use shunt_core::workload::WorkloadSpec;
use shunt_workload::processes::{Leader, Life};

/// A pod's network namespace is held open: its number is nobody else's while we know it, whoever of the pod ends.
#[derive(Debug)]
pub(super) struct Place {
    /// Of its oldest process.
    life: Life,
    netns: File,
    inode: u64,
    /// The pod's, with all its containers.
    pub(super) cgroup: Option<PathBuf>,
}

impl Place {
    /// The error is for people.
    pub(super) fn of(leader: Leader, cgroups: Option<&Path>) -> Result<Self, String> {
        let pid = leader.pid();
        let failed =
            |error| format!("cannot open the network namespace of its process {pid}: {error}");
        let netns = leader.netns().map_err(failed)?;
        let inode = netns.metadata().map_err(failed)?.ino();
        let node = |path: &&str| fs::metadata(path).is_ok_and(|known| known.ino() == inode);
        if let Some(known) = ["/proc/1/ns/net", "/proc/self/ns/net"]
            .iter()
            .find(|path| node(path))
        {
            return Err(format!(
                "its process {pid} is in the node's own network namespace ({known}), which is not captured"
            ));
        }
        Ok(Self {
            cgroup: cgroups.and_then(|mount| leader.cgroup(mount)),
            life: leader.into_life(),
            netns,
            inode,
        })
    }

    pub(super) fn inode(&self) -> u64 {
        self.inode
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
            netns: format!("/proc/{pid}/fd/{fd}").into(),
            cgroup: self.cgroup.clone(),
            ..wished.clone()
        }
    }
}
