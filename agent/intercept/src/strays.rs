//! Processes of a workload's namespace that are not in its cgroup: the hooks there do not see what they connect to.
//! Somebody moved them, or started them elsewhere; where a process belongs is not ours to say.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::cgroup;

/// So many are named; the rest is counted.
const NAMED: usize = 3;

/// A namespace's inode.
type Inode = u64;

/// One line for each namespace that has such processes. `hooked`: the configured cgroup of each namespace. One pass over
/// all processes, some 3 us each.
pub fn strays(hooked: &BTreeMap<Inode, PathBuf>) -> BTreeMap<Inode, String> {
    let mut lines = BTreeMap::new();
    let Ok(root) = cgroup::mount_point() else {
        return lines;
    };
    let mut found: BTreeMap<Inode, Vec<String>> = BTreeMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let process = process.path();
        // Whoever ended meanwhile is no stray, nor is what in /proc is no process.
        let Some(inode) = namespace(&process).filter(|inode| hooked.contains_key(inode)) else {
            continue;
        };
        found
            .entry(inode)
            .or_default()
            .extend(stray(&process, &root, &root.join(&hooked[&inode])));
    }
    for (inode, strays) in found.into_iter().filter(|(_, strays)| !strays.is_empty()) {
        let mut line = format!(
            "processes of its namespace are not in its cgroup, so what they connect to is not captured: {}",
            strays[..strays.len().min(NAMED)].join(", ")
        );
        if let Some(more @ 1..) = strays.len().checked_sub(NAMED) {
            let _ = write!(line, ", and {more} more");
        }
        lines.insert(inode, line);
    }
    lines
}

fn namespace(process: &Path) -> Option<Inode> {
    process.file_name()?.to_str()?.parse::<u32>().ok()?;
    Some(fs::metadata(process.join("ns/net")).ok()?.ino())
}

/// `None`: it is where it belongs, or that cannot be told, as from inside a cgroup namespace.
fn stray(process: &Path, root: &Path, hooked: &Path) -> Option<String> {
    let own = cgroup::of(process, root).ok()?;
    if own.starts_with(hooked) || own.components().any(|part| part.as_os_str() == "..") {
        return None;
    }
    let name = fs::read_to_string(process.join("comm")).ok()?;
    let pid = process.file_name()?.display();
    Some(format!("{} (pid {pid}) in {}", name.trim(), own.display()))
}
