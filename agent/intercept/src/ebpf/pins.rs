//! What outlives the agent where a workload is to be refused without it: its links, pinned in a bpffs, and the map
//! that says whom to refuse. Whoever holds the lock on the directory lives. See docs/adr/0009.
//!
//! ```text
//! BPFFS/shunt-agent-PID-TIME/workloads     the dead agent's WORKLOADS
//!                            ID-PROGRAM    a link to the cgroup with this id, or to the namespace with this cookie
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use aya::maps::{HashMap as BpfHashMap, Map, MapData};
use nix::fcntl::{Flock, FlockArg};
use shunt_ebpf_common::maps::Workload;
use shunt_ebpf_common::scope::WorkloadKey;

use super::clock;
use super::kernel::Link;
use super::object::failed;
use crate::InterceptError;

/// Before the process id of the agent that pinned, and a time: in containers the next one may have the same id.
const PREFIX: &str = "shunt-agent-";
/// From linux/magic.h.
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;
const WORKLOADS: &str = "workloads";

/// This agent's directory, removed with everything in it when the agent ends in order.
#[derive(Debug)]
pub(super) struct Pins {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Pins {
    /// `workloads` is another pin of the map.
    pub(super) fn make(bpffs: &Path, workloads: &Path) -> Result<Self, InterceptError> {
        if !is_bpffs(bpffs) {
            return Err(InterceptError::Unsupported(format!(
                "{} is not in a bpffs (mount -t bpf bpf /sys/fs/bpf)",
                bpffs.display()
            )));
        }
        let (process, time) = (std::process::id(), clock::kernel_ns());
        let dir = bpffs.join(format!("{PREFIX}{process}-{time}"));
        let make = || {
            fs::create_dir_all(&dir)?;
            let lock = File::open(&dir)?;
            Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error.into())
        };
        let lock = make().map_err(|error| InterceptError::io("make", dir.display(), error))?;
        let pins = Self { dir, _lock: lock };
        MapData::from_pin(workloads)
            .map_err(|error| failed("open the map of workloads", &error))?
            .pin(pins.dir.join(WORKLOADS))
            .map_err(|error| failed(&format!("pin in {}", bpffs.display()), &error))?;
        Ok(pins)
    }

    /// What says whom to refuse is still there.
    pub(super) fn is_whole(&self) -> bool {
        self.dir.join(WORKLOADS).exists()
    }

    /// The link of `program` to the cgroup with this id, or to the namespace with this cookie, outlives us.
    pub(super) fn pin(
        &self,
        link: &mut Link,
        id: u64,
        program: &str,
    ) -> Result<(), InterceptError> {
        let path = self.dir.join(format!("{id}-{program}"));
        let shown = path.display().to_string();
        link.pin(path)
            .map_err(|error| InterceptError::io("pin", shown, error))
    }
}

impl std::fmt::Display for Pins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.dir.display().fmt(f)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        empty(&self.dir);
    }
}

/// What an agent that died has left.
#[derive(Debug)]
pub struct Remains {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Remains {
    /// Of every agent that is dead.
    pub fn find(bpffs: &Path) -> Vec<Self> {
        let entries = fs::read_dir(bpffs).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
            .filter_map(|entry| {
                let dir = entry.path();
                let lock = File::open(&dir).ok()?;
                let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).ok()?;
                Some(Self { dir, _lock: lock })
            })
            .collect()
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Goes on refusing for the workloads with these keys only. False: there was nothing left to do, all is removed.
    pub fn keep_only(&self, wanted: &[WorkloadKey]) -> bool {
        let kept = self.workloads().map(|mut map| {
            let keys: Vec<WorkloadKey> = map.keys().flatten().collect();
            let (keep, gone): (Vec<_>, Vec<_>) =
                keys.into_iter().partition(|key| wanted.contains(key));
            for key in &gone {
                let _ = map.remove(key);
            }
            !keep.is_empty()
        });
        // A map that is not understood is another version's: then nobody could be let go on his own.
        let kept = kept.unwrap_or(false);
        if !kept {
            empty(&self.dir);
        }
        kept
    }

    fn workloads(&self) -> Option<BpfHashMap<MapData, WorkloadKey, Workload>> {
        let map = MapData::from_pin(self.dir.join(WORKLOADS)).ok()?;
        BpfHashMap::try_from(Map::HashMap(map)).ok()
    }
}

/// Or would be, if it existed.
fn is_bpffs(path: &Path) -> bool {
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    let found = existing.and_then(|path| rustix::fs::statfs(path).ok());
    found.is_some_and(|found| found.f_type as u32 == BPF_FS_MAGIC)
}

/// The links first, the map that says what they are for last.
fn empty(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort_by_key(|file| file.ends_with(WORKLOADS));
    let removed = files.iter().try_for_each(fs::remove_file);
    if let Err(error) = removed.and_then(|()| fs::remove_dir(dir)) {
        tracing::warn!(%error, dir = %dir.display(), "pins stay");
    }
    // Others may have theirs there, or it is the mount itself.
    let _ = dir.parent().map(fs::remove_dir);
}
