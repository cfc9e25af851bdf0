//! Numbers that workers write and the control side reads. Writers add, nobody locks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::flow::Direction;

/// One workload's connections and bytes in one direction.
#[derive(Debug, Default)]
pub struct FlowCounters {
    pub total: AtomicU64,
    pub ended: AtomicU64,
    /// From the client.
    pub bytes_received: AtomicU64,
    /// To the client.
    pub bytes_sent: AtomicU64,
}

impl FlowCounters {
    pub fn active(&self) -> u64 {
        // Read in this order, a connection that starts in between cannot make the difference negative.
        let ended = self.ended.load(Relaxed);
        self.total.load(Relaxed).saturating_sub(ended)
    }
}

/// Both directions of a workload.
#[derive(Debug, Default)]
pub struct WorkloadCounters {
    pub outbound: FlowCounters,
    pub inbound: FlowCounters,
}

impl WorkloadCounters {
    pub fn of(&self, direction: Direction) -> &FlowCounters {
        match direction {
            Direction::Outbound => &self.outbound,
            Direction::Inbound => &self.inbound,
        }
    }
}

/// The agent as a whole.
#[derive(Debug, Default)]
pub struct AgentCounters {
    /// Connections that have begun and not ended.
    pub connections_active: AtomicU64,
    pub original_dst_misses: AtomicU64,
    pub loops_refused: AtomicU64,
    pub connections_refused_by_limit: AtomicU64,
    pub accept_errors: AtomicU64,
    pub access_log_dropped: AtomicU64,
}
