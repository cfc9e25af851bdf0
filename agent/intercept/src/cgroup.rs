//! The cgroup2 hierarchy: where it is mounted and where a process stands in it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use shunt_core::workload::WorkloadSpec;

use crate::InterceptError;

/// Where cgroup2 is mounted: /sys/fs/cgroup on most hosts, /sys/fs/cgroup/unified on hybrid ones, nowhere on some.
///
/// # Errors
/// It is not mounted.
pub fn mount_point() -> Result<PathBuf, InterceptError> {
    let failed = |error| InterceptError::io("read", "/proc/self/mountinfo", error);
    // Only as far as needed: each named network namespace is a mount, and most come later.
    for line in BufReader::new(File::open("/proc/self/mountinfo").map_err(failed)?).lines() {
        if let Some(point) = cgroup2_mount(&line.map_err(failed)?) {
            return Ok(point);
        }
    }
    Err(InterceptError::Unsupported(
        "no cgroup2 mount in /proc/self/mountinfo: the connect hooks are attached to cgroups; \
         mount it (mount -t cgroup2 none /sys/fs/cgroup/unified) or use iptables mode"
            .into(),
    ))
}

/// Of a line as in proc(5): the fifth field is the mount point, the type follows the lone `-`.
fn cgroup2_mount(line: &str) -> Option<PathBuf> {
    let (left, right) = line.split_once(" - ")?;
    let kind = right.split(' ').next()?;
    let point = left.split(' ').nth(4)?;
    (kind == "cgroup2").then(|| PathBuf::from(point.replace("\\040", " ")))
}

/// Where a workload's connect hooks are attached: at the root when it has no cgroup.
///
/// # Errors
/// There is no such cgroup, or no cgroup2.
pub fn of_workload(spec: &WorkloadSpec) -> Result<PathBuf, InterceptError> {
    match &spec.cgroup {
        Some(configured) => resolve(configured),
        None => mount_point(),
    }
}

/// This process's cgroup below `root`.
///
/// # Errors
/// /proc/self/cgroup has no cgroup2 line.
pub fn of_this_process(root: &Path) -> Result<PathBuf, InterceptError> {
    of(Path::new("/proc/self"), root)
}

/// As [`of_this_process`], of the one with this directory.
pub(crate) fn of(process: &Path, root: &Path) -> Result<PathBuf, InterceptError> {
    let file = process.join("cgroup");
    let text = fs::read_to_string(&file)
        .map_err(|error| InterceptError::io("read", file.display(), error))?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .ok_or_else(|| {
            InterceptError::io(
                "find the cgroup2 line in",
                file.display(),
                io::ErrorKind::NotFound.into(),
            )
        })?;
    let path = path.trim_start_matches('/');
    Ok(if path.is_empty() {
        root.to_owned()
    } else {
        root.join(path)
    })
}

/// A configured cgroup: absolute, or below the mount.
///
/// # Errors
/// It does not exist, or cgroup2 is not mounted.
pub fn resolve(configured: &Path) -> Result<PathBuf, InterceptError> {
    // `join` keeps an absolute path as it is.
    let path = mount_point()?.join(configured);
    match fs::metadata(path.join("cgroup.procs")) {
        Ok(_) => Ok(path),
        Err(error) => Err(InterceptError::io("find cgroup", path.display(), error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_wherever_it_is() {
        let hybrid = "30 25 0:26 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro,mode=755\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw\n";
        let found: Vec<PathBuf> = hybrid.lines().filter_map(cgroup2_mount).collect();
        assert_eq!(found, [PathBuf::from("/sys/fs/cgroup/unified")]);
    }
}
