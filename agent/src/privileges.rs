//! Giving up what is not needed.

use anyhow::{Context, Result};
use caps::CapSet;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Drops every capability of this process for good. Call before any thread is started: capabilities are per thread.
///
/// # Errors
/// The kernel refuses; the data plane must not run then.
pub fn drop_all() -> Result<()> {
    // The bounding set first: dropping from it needs CAP_SETPCAP.
    if caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP)? {
        caps::clear(None, CapSet::Bounding).context("cannot empty the bounding set")?;
    }
    for set in [
        CapSet::Ambient,
        CapSet::Inheritable,
        CapSet::Effective,
        CapSet::Permitted,
    ] {
        caps::clear(None, set).with_context(|| format!("cannot empty capability set {set:?}"))?;
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
