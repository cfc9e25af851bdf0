//! Giving up what is not needed.

use anyhow::{Context, Result};
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A capability of the supervisor.
#[derive(Debug)]
pub struct Need {
    pub capability: Capability,
    /// What does not work without it.
    pub without: &'static str,
    /// Only until its loop runs.
    at_start: bool,
}

/// All that the supervisor needs: `CAP_SYS_ADMIN` includes `CAP_BPF` and `CAP_PERFMON`, `CAP_DAC_OVERRIDE` includes
/// `CAP_DAC_READ_SEARCH`. The service file and the DaemonSet give the same.
pub const NEEDS: [Need; 8] = [
    Need::of(
        Capability::CAP_SYS_ADMIN,
        "no namespace can be entered and no program be loaded",
    ),
    Need::of(
        Capability::CAP_NET_ADMIN,
        "no rule can be written, clients' addresses are not kept, nothing is accelerated",
    ),
    Need::of(
        Capability::CAP_NET_RAW,
        "iptables' legacy tables can neither be read nor written",
    ),
    Need::of(
        Capability::CAP_NET_BIND_SERVICE,
        "listeners of the bootstrap cannot have ports below 1024",
    ),
    Need::of(
        Capability::CAP_SYS_PTRACE,
        "namespaces cannot be found by processes that hold other capabilities or are other users'",
    ),
    Need::of(
        Capability::CAP_DAC_OVERRIDE,
        "cgroups and directories of other users are out of reach",
    ),
    Need::of(
        Capability::CAP_SETPCAP,
        "bounding sets stay as they are, which gives nobody anything",
    ),
    Need {
        capability: Capability::CAP_SYS_RESOURCE,
        without: "the hard limit of open files stays as it is: two for each connection",
        at_start: true,
    },
];

impl Need {
    const fn of(capability: Capability, without: &'static str) -> Self {
        Self {
            capability,
            without,
            at_start: false,
        }
    }
}

/// What of [`NEEDS`] this process has not been given.
///
/// # Errors
/// The kernel does not say.
pub fn missing() -> Result<Vec<&'static Need>> {
    let held = caps::read(None, CapSet::Permitted).context("cannot read the permitted set")?;
    let missing = NEEDS.iter();
    Ok(missing
        .filter(|need| !held.contains(&need.capability))
        .collect())
}

/// The same, without those that are needed at the start alone.
///
/// # Errors
/// As [`missing`].
pub fn missing_at_work() -> Result<Vec<&'static Need>> {
    let missing = missing()?.into_iter();
    Ok(missing.filter(|need| !need.at_start).collect())
}

/// Drops for good what the running supervisor does not need. Call before any thread is started: capabilities are per
/// thread.
///
/// # Errors
/// The kernel refuses.
pub fn drop_to_needed() -> Result<()> {
    let needed = NEEDS.iter().filter(|need| !need.at_start);
    drop_to(&needed.map(|need| need.capability).collect())
}

/// Drops every capability of this process for good. As [`drop_to_needed`].
///
/// # Errors
/// The kernel refuses; the data plane must not run then.
pub fn drop_all() -> Result<()> {
    drop_to(&CapsHashSet::new())
}

fn drop_to(kept: &CapsHashSet) -> Result<()> {
    // The bounding set first: dropping from it needs CAP_SETPCAP.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        let bounding =
            caps::read(None, CapSet::Bounding).context("cannot read the bounding set")?;
        for capability in bounding.difference(kept) {
            caps::drop(None, CapSet::Bounding, *capability)
                .with_context(|| format!("cannot drop {capability} from the bounding set"))?;
        }
    }
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        caps::clear(None, set).with_context(|| format!("cannot empty capability set {set:?}"))?;
    }
    let permitted = caps::read(None, CapSet::Permitted).context("cannot read the permitted set")?;
    let kept = permitted.intersection(kept).copied().collect();
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &kept)
            .with_context(|| format!("cannot reduce capability set {set:?}"))?;
    }
    nix::sys::prctl::set_no_new_privs().context("cannot set no_new_privs")
}

/// As many descriptors as the hard limit lets us have: each connection takes two.
///
/// # Errors
/// The limits cannot be read or raised.
pub fn raise_descriptor_limit() -> Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read RLIMIT_NOFILE")?;
    // Privileged, the hard limit may be raised too; not being allowed to is fine.
    let wanted = hard.max(1 << 20);
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_ok() {
        return Ok(wanted);
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise RLIMIT_NOFILE")?;
    Ok(hard)
}
