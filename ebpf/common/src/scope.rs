//! Workloads that share their network namespace with others: told apart by their cgroups.

use crate::maps::NetnsCookie;

/// Key of `WORKLOADS`: the [`NetnsCookie`] of a workload with a namespace of its own, else [`of_name`].
pub type WorkloadKey = u64;

/// Value of `SCOPES`: whose the sockets of a cgroup are that were made in one namespace. All zero: nobody's in particular.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    pub netns: NetnsCookie,
    pub workload: WorkloadKey,
}

#[cfg(feature = "user")]
#[expect(
    unsafe_code,
    reason = "promising the kernel that this type has no padding"
)]
// SAFETY: plain integers, no padding.
unsafe impl aya::Pod for Scope {}

/// No cookie has it: they count from 1.
const SHARING: u64 = 1 << 63;

/// The key of a workload that shares its namespace: the same in every agent, so that one finds what a dead one has left.
pub fn of_name(name: &str) -> WorkloadKey {
    // FNV-1a.
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, mix) | SHARING
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_names_differ_and_stay() {
        assert_eq!(of_name("default/a"), of_name("default/a"));
        assert_ne!(of_name("default/a"), of_name("default/b"));
        assert!(of_name("") > u64::MAX / 2);
    }
}
