//! What the command line adds to the file, and which workloads exclude each other.

use std::path::{Path, PathBuf};

use super::workloads::DEFAULT_NAMESPACE;
use super::{ConfigError, Fault, values};
use crate::config::Config;
use crate::workload::{
    AccelerationPolicy, CapturePolicy, DnsPolicy, ModeSetting, OnFailure, WorkloadName,
    WorkloadSpec,
};

/// Puts `--mode` and `--workload NAME=NETNS` into a configuration. `mode` replaces the global mode and that of every
/// workload which has the global one. `NAME` may be `NAMESPACE/NAME`.
///
/// # Errors
/// Every fault in the flags, a workload that clashes with another one among them.
pub fn apply_flags(
    mut config: Config,
    mode: Option<ModeSetting>,
    workloads: &[(String, String)],
) -> Result<Config, ConfigError> {
    if let Some(mode) = mode {
        for workload in &mut config.workloads {
            if workload.mode == config.mode {
                workload.mode = mode;
            }
        }
        config.mode = mode;
    }
    let mut faults = Vec::new();
    for (name, netns) in workloads {
        let mut fault = |message| {
            faults.push(Fault {
                line: None,
                field: format!("--workload {name}={netns}"),
                message,
            });
        };
        match flag_workload(name, netns, config.mode) {
            Ok(spec) => {
                config
                    .workloads
                    .iter()
                    .filter_map(|other| clash(other, &spec))
                    .for_each(|(_, message)| fault(message));
                config.workloads.push(spec);
            }
            Err(messages) => messages.into_iter().for_each(fault),
        }
    }
    if faults.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError::new("command line", faults))
    }
}

/// Why `spec` cannot be enrolled beside `others`, if it cannot. One of its own name is what it would replace, and no
/// reason.
pub fn conflict<'a>(
    others: impl IntoIterator<Item = &'a WorkloadSpec>,
    spec: &WorkloadSpec,
) -> Option<String> {
    others
        .into_iter()
        .filter(|other| other.name != spec.name)
        .find_map(|other| clash(other, spec))
        .map(|(_, message)| message)
}

/// The key in which `spec` collides with `other`, and the message.
pub(super) fn clash(other: &WorkloadSpec, spec: &WorkloadSpec) -> Option<(&'static str, String)> {
    if other.name == spec.name {
        return Some(("name", format!("workload `{}` is given twice", spec.name)));
    }
    if other.shares_netns() && spec.shares_netns() {
        return overlap(other, spec).map(|message| ("cgroup", message));
    }
    if same_place(&other.netns) == same_place(&spec.netns) {
        let message = format!(
            "`{}` is the network namespace of workload `{}` already (one workload each)",
            spec.netns.display(),
            other.name
        );
        return Some(("netns", message));
    }
    None
}

/// Of two workloads that share a namespace each socket is one's.
fn overlap(other: &WorkloadSpec, spec: &WorkloadSpec) -> Option<String> {
    let (theirs, own) = (other.cgroup.as_ref()?, spec.cgroup.as_ref()?);
    let overlaps = theirs.starts_with(own) || own.starts_with(theirs);
    overlaps.then(|| {
        format!(
            "`{}` overlaps with `{}` of workload `{}` (each process is one workload's)",
            own.display(),
            theirs.display(),
            other.name
        )
    })
}

/// `/var/run` is `/run` on every current system. Other aliases show only when the namespace is opened.
fn same_place(path: &Path) -> PathBuf {
    let tidy: PathBuf = path.components().collect();
    match tidy.strip_prefix("/var/run") {
        Ok(rest) => Path::new("/run").join(rest),
        Err(_) => tidy,
    }
}

fn flag_workload(name: &str, netns: &str, mode: ModeSetting) -> Result<WorkloadSpec, Vec<String>> {
    let (namespace, name) = name.split_once('/').unwrap_or((DEFAULT_NAMESPACE, name));
    let namespace = values::name(namespace);
    let name = values::name(name);
    match (namespace, name, values::netns(netns)) {
        (Ok(namespace), Ok(name), Ok(netns)) => Ok(WorkloadSpec {
            name: WorkloadName { namespace, name },
            netns,
            cgroup: None,
            labels: [].into(),
            mode,
            acceleration: AccelerationPolicy::default(),
            on_failure: OnFailure::default(),
            dns: DnsPolicy::default(),
            outbound: CapturePolicy::default(),
            inbound: CapturePolicy::default(),
        }),
        (namespace, name, netns) => Err([namespace.err(), name.err(), netns.err()]
            .into_iter()
            .flatten()
            .collect()),
    }
}
