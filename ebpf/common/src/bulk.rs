//! Services whose connections are bulk. TCP moves large messages in a row faster than the kernel's queues do, also once a
//! connection has gone back to it, as its sockets stay ready for the queues. So those of such a service are not paired.

/// Value of the map of services, by workload and port: of direct connections that were paired, how many were bulk. Two CPUs
/// at once may lose a count.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BulkShare {
    /// Moving average, an eighth for each connection, in [`ONE`](Self::ONE)ths.
    pub share: u32,
    /// Connections that were counted.
    pub seen: u32,
    /// Connections that were not paired since.
    pub skipped: u32,
}

impl BulkShare {
    pub const ONE: u32 = 256;
    /// Connections to see first.
    const ENOUGH: u32 = 4;
    const MOSTLY: u32 = Self::ONE * 3 / 4;
    /// One of so many is paired all the same: a service may change its ways.
    pub const SAMPLE: u32 = 8;
    /// Bytes by TCP below which a connection is none of bulk.
    const LEAST: u64 = 1 << 20;

    #[inline(always)]
    pub fn is_mostly_bulk(&self) -> bool {
        self.seen >= Self::ENOUGH && self.share >= Self::MOSTLY
    }

    /// A paired connection has ended.
    #[inline(always)]
    pub fn learn(&mut self, by_tcp: u64, by_queue: u64) {
        let bulk = by_tcp >= Self::LEAST && by_tcp > by_queue;
        let value = if bulk { Self::ONE } else { 0 };
        self.share = if self.seen == 0 {
            value
        } else {
            self.share - self.share / 8 + value / 8
        };
        self.seen = self.seen.saturating_add(1);
    }
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "promising the kernel that it has no padding")]
// SAFETY: repr(C), three integers of one size.
unsafe impl aya::Pod for BulkShare {}

#[cfg(test)]
mod tests {
    use super::*;

    const BULK: (u64, u64) = (10 << 20, 1 << 20);
    const TALK: (u64, u64) = (0, 10 << 20);

    fn after(connections: &[(u64, u64)]) -> BulkShare {
        let mut share = BulkShare::default();
        for (by_tcp, by_queue) in connections {
            share.learn(*by_tcp, *by_queue);
        }
        share
    }

    #[test]
    fn a_few_of_nothing_else_are_enough() {
        assert!(!after(&[BULK; 3]).is_mostly_bulk());
        assert!(after(&[BULK; 4]).is_mostly_bulk());
    }

    #[test]
    fn a_mixed_service_is_no_bulk_service() {
        let mixed = [[BULK; 2], [TALK; 2]].concat().repeat(20);
        assert!(!after(&mixed).is_mostly_bulk());
        assert!(!after(&[TALK; 100]).is_mostly_bulk());
    }

    #[test]
    fn it_is_forgotten_by_those_that_are_tried() {
        let changed = [&[BULK; 100][..], &[TALK; 3]].concat();
        assert!(!after(&changed).is_mostly_bulk());
        let back = [&changed[..], &[BULK; 8]].concat();
        assert!(after(&back).is_mostly_bulk());
    }

    #[test]
    fn a_little_by_tcp_is_not_much() {
        assert!(!after(&[(1 << 19, 0); 10]).is_mostly_bulk());
    }
}
