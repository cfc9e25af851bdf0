//! Numbers that workers write and the control side reads. Writers add, nobody locks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::dns::DnsCounters;
use crate::flow::{CloseReason, DataPath, Direction};

/// One workload's connections and bytes in one direction.
#[derive(Debug, Default)]
pub struct FlowCounters {
    pub total: AtomicU64,
    pub ended: AtomicU64,
    paths: [PathCounters; DataPath::ALL.len()],
}

/// What one data path carries.
#[derive(Debug, Default)]
pub struct PathCounters {
    /// Connections that are on this path now.
    pub active: AtomicU64,
    /// Bytes from clients.
    pub received: AtomicU64,
    /// Bytes to clients.
    pub sent: AtomicU64,
    /// Messages from clients that went into a queue past the TCP stack and the agent.
    pub messages_received: AtomicU64,
    /// The same to clients.
    pub messages_sent: AtomicU64,
}

impl PathCounters {
    pub fn count_messages(&self, received: u64, sent: u64) {
        self.messages_received.fetch_add(received, Relaxed);
        self.messages_sent.fetch_add(sent, Relaxed);
    }
}

impl FlowCounters {
    pub fn active(&self) -> u64 {
        // Read in this order, a connection that starts in between cannot make the difference negative.
        let ended = self.ended.load(Relaxed);
        self.total.load(Relaxed).saturating_sub(ended)
    }

    /// Those that cost the agent descriptors.
    pub fn carried(&self) -> u64 {
        let direct = self.on(DataPath::Direct).active.load(Relaxed);
        self.active().saturating_sub(direct)
    }

    pub fn on(&self, path: DataPath) -> &PathCounters {
        &self.paths[path as usize]
    }
}

/// Both directions of a workload.
#[derive(Debug, Default)]
pub struct WorkloadCounters {
    pub outbound: FlowCounters,
    pub inbound: FlowCounters,
    pub dns: DnsCounters,
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
    /// DNS queries that wait for an answer.
    pub queries_active: AtomicU64,
    pub original_dst_misses: AtomicU64,
    pub loops_refused: AtomicU64,
    pub connections_refused_by_limit: AtomicU64,
    pub accept_errors: AtomicU64,
    /// Accepted with the last descriptor, to be refused.
    pub connections_refused_by_descriptors: AtomicU64,
    pub access_log_dropped: AtomicU64,
    /// Directions that began to splice.
    pub splice_begun: AtomicU64,
    /// Times a direction that should splice went on copying: all pipes the worker may have are in use.
    pub splice_pipes_in_use: AtomicU64,
    /// The same, because the kernel gave no pipe, or one too small.
    pub splice_pipe_refused: AtomicU64,
    closed: [AtomicU64; CloseReason::ALL.len()],
}

impl AgentCounters {
    /// Connections that ended for this reason.
    pub fn closed(&self, reason: CloseReason) -> &AtomicU64 {
        &self.closed[reason as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_and_reason_has_a_counter_of_its_own() {
        let flows = FlowCounters::default();
        for path in DataPath::ALL {
            assert_eq!(flows.on(path).active.fetch_add(1, Relaxed), 0);
        }
        let agent = AgentCounters::default();
        for reason in CloseReason::ALL {
            assert_eq!(agent.closed(reason).fetch_add(1, Relaxed), 0);
        }
    }
}
