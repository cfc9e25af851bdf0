//! What the DNS hooks must know: where the agent takes a workload's queries, and which resolver each of these places
//! stands for.

/// Value of `DNS`, by network namespace: the agent's sockets for queries. A namespace without an entry is left alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DnsListeners {
    /// As [`Workload::id`](crate::maps::Workload::id).
    pub workload: u32,
    pub reserved: u32,
    /// Ports on 127.0.0.1 and ::1, by slot; 0: that family is not captured.
    pub ports_v4: [u16; Self::SLOTS],
    pub ports_v6: [u16; Self::SLOTS],
}

impl DnsListeners {
    /// Resolvers of one family that a workload can ask through the agent. Each has a socket of its own, by which its
    /// queries are known as its own; the C library knows three.
    pub const SLOTS: usize = 8;
}

/// Key of `RESOLVERS`. Value: the resolver that a slot stands for, as long as the workload is enrolled.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResolverKey {
    pub workload: u32,
    /// Those of IPv6 come after [`DnsListeners::SLOTS`].
    pub slot: u32,
}

impl ResolverKey {
    #[inline(always)]
    pub fn new(workload: u32, v4: bool, index: usize) -> Self {
        let first = if v4 { 0 } else { DnsListeners::SLOTS };
        Self {
            workload,
            slot: (first + index) as u32,
        }
    }
}

#[cfg(feature = "user")]
#[expect(
    unsafe_code,
    reason = "promising the kernel that these types have no padding"
)]
mod pod {
    // SAFETY: repr(C), plain integers only, and no padding: the test below adds up the fields.
    unsafe impl aya::Pod for super::DnsListeners {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ResolverKey {}
}

#[cfg(test)]
mod tests {
    use core::mem::size_of;

    use super::*;

    #[test]
    fn no_map_type_has_padding() {
        assert_eq!(size_of::<DnsListeners>(), 4 + 4 + 16 + 16);
        assert_eq!(size_of::<ResolverKey>(), 4 + 4);
    }

    #[test]
    fn families_have_slots_of_their_own() {
        assert_eq!(ResolverKey::new(1, true, 7).slot, 7);
        assert_eq!(ResolverKey::new(1, false, 0).slot, 8);
    }
}
