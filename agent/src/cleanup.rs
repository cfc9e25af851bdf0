//! `shunt cleanup`: what agents that are gone have left in namespaces and cgroups. eBPF programs need none of this,
//! as they vanish with the process that loaded them; except those pinned for workloads that fail closed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use shunt_core::config::Config;
use shunt_core::config::file;
use shunt_intercept::ebpf::{Remains, battery};
use shunt_intercept::netns::Netns;
use shunt_intercept::{InterceptError, cgroup, iptables};

use crate::cli::{self, CleanupArgs, EX_USAGE};
use crate::run;
use crate::supervisor::{CGROUP_PREFIX, is_in_use};

/// Look, or remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    Look,
    Remove,
}

pub fn run(args: &CleanupArgs) -> ExitCode {
    let extent = if args.dry_run {
        Extent::Look
    } else {
        Extent::Remove
    };
    let bpffs = match run::config_path(args.config.as_deref()).map(|path| file::load(&path)) {
        None => Config::default().bpffs,
        Some(Ok(config)) => config.bpffs,
        Some(Err(error)) => {
            cli::complain(&format!(
                "the configuration is wrong, nothing was changed\n{error}"
            ));
            return ExitCode::from(EX_USAGE);
        }
    };
    let mut removed = remove_leftovers(extent, &[], &[]);
    removed.extend(pins(&bpffs, extent));
    let verb = if args.dry_run {
        "would remove"
    } else {
        "removed"
    };
    for what in &removed {
        cli::answer(&format!("{verb} {what}"));
    }
    if removed.is_empty() {
        cli::answer("nothing was left by an earlier agent");
    }
    ExitCode::SUCCESS
}

/// Everything found (and, if asked to, removed), one line each. Namespaces that a living agent serves,
/// or through which flows of one still go (`besides` those of these names), are left alone; and those to `spare`, by
/// their inodes.
pub fn remove_leftovers(extent: Extent, spare: &[u64], besides: &[String]) -> Vec<String> {
    let mut told = Vec::new();
    let found = namespaces().into_iter();
    for (_, path) in found.filter(|(inode, _)| !spare.contains(inode)) {
        match clean_namespace(&path, extent, besides) {
            Ok(removed) => {
                told.extend(
                    removed
                        .into_iter()
                        .map(|what| format!("{what} in {}", path.display())),
                );
            }
            Err(InterceptError::Unsupported(_)) => {}
            Err(error) => cli::complain(&format!("{}: {}", path.display(), error.chain())),
        }
    }
    told.extend(empty_cgroups(extent));
    told
}

fn clean_namespace(
    path: &Path,
    extent: Extent,
    besides: &[String],
) -> Result<Vec<String>, InterceptError> {
    let netns = Netns::open(path)?;
    if is_in_use(&netns, besides) {
        return Ok(Vec::new());
    }
    match extent {
        Extent::Look => Ok(iptables::leftovers(&netns)),
        Extent::Remove => iptables::cleanup(&netns),
    }
}

/// Every network namespace that has a name or a process, once each, the node's own left out.
pub(crate) fn namespaces() -> BTreeMap<u64, PathBuf> {
    let named = fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let of_processes = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .bytes()
                .all(|byte| byte.is_ascii_digit())
        })
        .map(|entry| entry.path().join("ns/net"));
    let own = fs::metadata("/proc/1/ns/net").map(|own| own.ino()).ok();
    let mut found = BTreeMap::new();
    for path in named.chain(of_processes) {
        // A process that ends meanwhile has no namespace left.
        if let Ok(metadata) = fs::metadata(&path)
            && Some(metadata.ino()) != own
        {
            found.entry(metadata.ino()).or_insert(path);
        }
    }
    found
}

/// What dead agents pinned so that their workloads stay refused. Not among what a start removes: there the workloads
/// are taken over first.
fn pins(bpffs: &Path, extent: Extent) -> Vec<String> {
    let remains = Remains::find(bpffs);
    let gone = |remains: &Remains| extent == Extent::Look || !remains.keep_only(&[]);
    remains
        .into_iter()
        .filter(gone)
        .map(|remains| format!("pins {}", remains.path().display()))
        .collect()
}

/// Cgroups that agents made for themselves and in which nobody is any more.
fn empty_cgroups(extent: Extent) -> Vec<String> {
    let Ok(root) = cgroup::mount_point() else {
        return Vec::new();
    };
    let entries = fs::read_dir(&root).into_iter().flatten().flatten();
    entries
        .filter(|entry| is_of_dead_agent(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .filter(|path| extent == Extent::Look || fs::remove_dir(path).is_ok())
        .map(|path| format!("cgroup {}", path.display()))
        .collect()
}

/// A cgroup of this name was made by an agent whose process is gone.
fn is_of_dead_agent(name: &str) -> bool {
    let pid = [CGROUP_PREFIX, battery::CGROUP_PREFIX]
        .into_iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .filter(|pid| pid.parse::<u32>().is_ok());
    pid.is_some_and(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true))
}
