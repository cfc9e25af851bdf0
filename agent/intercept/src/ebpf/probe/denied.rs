//! Why bpf(2) is not permitted. `EPERM` alone does not tell.
#![expect(unsafe_code, reason = "bpf(2) with arguments that no binding makes")]

use std::error::Error;
use std::fs;
use std::io;

/// From linux/capability.h.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;
/// Longer than what bpf(2) takes, which it says before it looks at anything else.
const TOO_LONG: usize = 1 << 20;

/// Did the kernel say `EPERM` or `EACCES`?
pub(super) fn is_denial(error: &(dyn Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.any(|cause| {
        let error = cause.downcast_ref::<io::Error>();
        error.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    })
}

/// What stands in the way, most certain first; `None` when nothing is seen to.
pub(super) fn by_what() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if may_not(&status) {
        let disabled = fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled");
        let disabled = disabled.unwrap_or_default();
        return Some(format!(
            "CAP_SYS_ADMIN (or CAP_BPF) is missing, and kernel.unprivileged_bpf_disabled is {}",
            disabled.trim()
        ));
    }
    if !reaches_the_kernel() {
        return Some(
            "a seccomp filter refuses bpf(2): the container's seccompProfile, or SystemCallFilter= of the service"
                .into(),
        );
    }
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let lockdown = read("/sys/kernel/security/lockdown");
    if lockdown.contains("[confidentiality]") {
        return Some("the kernel is locked down (confidentiality)".into());
    }
    let modules = read("/sys/kernel/security/lsm");
    let label = read("/proc/self/attr/current");
    let label = label.trim_matches(['\0', '\n']);
    (!modules.is_empty()).then(|| {
        format!("capabilities and seccomp permit it: a security module does not ({modules}; this process is `{label}`)")
    })
}

/// Neither capability that lets a process use bpf(2) is held.
fn may_not(status: &str) -> bool {
    let mut lines = status.lines();
    let held = lines.find_map(|line| line.strip_prefix("CapEff:"));
    let held = held.and_then(|held| u64::from_str_radix(held.trim(), 16).ok());
    held.is_some_and(|held| held & (1 << CAP_SYS_ADMIN | 1 << CAP_BPF) == 0)
}

/// A call that can do nothing comes back with the kernel's own complaint, unless a filter was before it.
fn reaches_the_kernel() -> bool {
    // SAFETY: a length that is refused before anything is read.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, 0, std::ptr::null::<u8>(), TOO_LONG) };
    answer < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::E2BIG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_capability_is_enough() {
        for (held, missing) in [
            ("0000000000000000", true),
            ("0000000000200000", false),
            ("0000008000000000", false),
            ("000001ff7fdfffff", false),
            ("0000017fffdfffff", true),
        ] {
            assert_eq!(may_not(&format!("Name:\tx\nCapEff:\t{held}\n")), missing);
        }
    }

    #[test]
    fn here_it_reaches_the_kernel() {
        assert!(reaches_the_kernel());
    }
}
