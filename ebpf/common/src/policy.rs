//! L4 policy as the hooks read it: of each workload and direction the rules about it, in their order. The first that
//! matches decides; without one a connection is allowed.

use crate::decision::Address;

/// Value of `POLICY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    /// The peer's address under `mask`.
    pub address: Address,
    pub mask: [u32; 4],
    /// Of the server, host order, inclusive.
    pub first_port: u16,
    pub last_port: u16,
    /// The peer must be one of the workloads that [`Selected`] has under this number; 0: whoever it is.
    pub selector: u32,
    /// 1: denies.
    pub denies: u32,
    /// Index in the configuration's `policy`, for people.
    pub index: u32,
    /// 1: the address is an IPv6 one, which no IPv4 address in its mapped form is.
    pub v6_only: u32,
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// [`Workload::id`](crate::maps::Workload::id); 0: not enrolled here.
    pub workload: u32,
    pub address: Address,
}

impl PolicyRule {
    /// Rules of one workload and direction that the hooks go through; with more the agent decides.
    pub const MOST: usize = 32;

    /// `is_selected`: has `SELECTED` this?
    #[inline(always)]
    pub fn matches(&self, peer: &Peer, port: u16, is_selected: impl Fn(&Selected) -> bool) -> bool {
        let [a, b, c, d] = peer.address.0;
        let [m, n, o, p] = self.mask;
        if [a & m, b & n, c & o, d & p] != self.address.0
            || port < self.first_port
            || port > self.last_port
            || self.v6_only != 0 && peer.address.is_v4()
        {
            return false;
        }
        self.selector == 0
            || is_selected(&Selected {
                selector: self.selector,
                workload: peer.workload,
            })
    }
}

/// Key of `POLICY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PolicyKey {
    /// [`Workload::rules`](crate::maps::Workload::rules).
    pub set: u32,
    /// [`Direction`](crate::decision::Direction) in the upper half, from 0 in the lower.
    pub place: u32,
}

impl PolicyKey {
    #[inline(always)]
    pub fn new(set: u32, direction: crate::decision::Direction, index: u32) -> Self {
        Self {
            set,
            place: (direction as u32) << 16 | index,
        }
    }
}

/// Key of `SELECTED`: this selector chooses that workload.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Selected {
    /// Never used again for another one.
    pub selector: u32,
    pub workload: u32,
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "promising the kernel that there is no padding")]
mod pod {
    // SAFETY: repr(C), plain integers, the sizes of which add up: see the test.
    unsafe impl aya::Pod for super::PolicyRule {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PolicyKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Selected {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_has_no_padding() {
        assert_eq!(size_of::<PolicyRule>(), 16 + 16 + 2 + 2 + 4 + 4 + 4 + 4);
    }

    #[test]
    fn address_port_and_workload_must_all_match() {
        let rule = PolicyRule {
            address: Address::v4(u32::from_ne_bytes([10, 1, 0, 0])),
            mask: [!0, !0, !0, u32::from_ne_bytes([255, 255, 0, 0])],
            first_port: 80,
            last_port: 90,
            selector: 7,
            denies: 1,
            index: 0,
            v6_only: 0,
        };
        let matches = |last: [u8; 4], workload, port| {
            let address = Address::v4(u32::from_ne_bytes(last));
            let peer = Peer { workload, address };
            let seven = |selected: &Selected| selected.selector == 7 && selected.workload == 3;
            rule.matches(&peer, port, seven)
        };
        assert!(matches([10, 1, 2, 3], 3, 80));
        assert!(matches([10, 1, 2, 3], 3, 90));
        assert!(!matches([10, 2, 2, 3], 3, 80));
        assert!(!matches([10, 1, 2, 3], 4, 80));
        assert!(!matches([10, 1, 2, 3], 3, 91));
        assert!(!matches([10, 1, 2, 3], 3, 79));
    }
}
