//! One application connection through the agent, and what is told of it when it ends.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
pub use shunt_ebpf_common::decision::Direction;

use crate::address::{ClientAddr, OriginalDst, UpstreamAddr};
use crate::status::BytesByPath;
use crate::workload::{Mode, WorkloadName};

/// How a connection's bytes move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataPath {
    /// A copy loop in user space. Every connection begins so.
    Copy,
    /// splice(2) through a pipe: the bytes stay in the kernel.
    Splice,
    /// Copied by the agent, but what it and the applications of this node send goes straight into the receiver's queue.
    Sockmap,
    /// From one application's socket into the other's queue, past the agent.
    Handoff,
    /// Decided in the kernel when the application connected; its own socket goes to the destination.
    Direct,
}

impl DataPath {
    /// Each is faster than the one before.
    pub const ALL: [Self; 5] = [
        Self::Copy,
        Self::Splice,
        Self::Sockmap,
        Self::Handoff,
        Self::Direct,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Splice => "splice",
            Self::Sockmap => "sockmap",
            Self::Handoff => "handoff",
            Self::Direct => "direct",
        }
    }
}

/// Why a connection ended. [`CloseReason::flag`] is Envoy's response flag of the same meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// Both sides ended in order.
    Finished,
    ClientReset,
    UpstreamReset,
    ConnectFailed,
    ConnectTimeout,
    /// One side ended, and the other neither sent nor ended within `timeouts.half_close`.
    HalfCloseTimeout,
    IdleTimeout,
    /// The agent was told to stop and `timeouts.drain` passed.
    Drained,
    OriginalDstMissing,
    /// The destination is the agent's own listener.
    Loop,
    /// A rule of `policy` denies it.
    PolicyDenied,
    /// A connection limit was reached.
    Limit,
    /// No filter chain of the listener is for it, or what it was to send first did not come in time.
    NoFilterChain,
    InternalError,
}

impl CloseReason {
    pub const ALL: [Self; 14] = [
        Self::Finished,
        Self::ClientReset,
        Self::UpstreamReset,
        Self::ConnectFailed,
        Self::ConnectTimeout,
        Self::HalfCloseTimeout,
        Self::IdleTimeout,
        Self::Drained,
        Self::OriginalDstMissing,
        Self::Loop,
        Self::PolicyDenied,
        Self::Limit,
        Self::NoFilterChain,
        Self::InternalError,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::ClientReset => "client_reset",
            Self::UpstreamReset => "upstream_reset",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::HalfCloseTimeout => "half_close_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::Drained => "drained",
            Self::OriginalDstMissing => "original_dst_missing",
            Self::Loop => "loop",
            Self::PolicyDenied => "policy_denied",
            Self::Limit => "limit",
            Self::NoFilterChain => "no_filter_chain",
            Self::InternalError => "internal_error",
        }
    }

    /// As in Envoy's access log documentation, `%RESPONSE_FLAGS%`.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Finished => "-",
            Self::ClientReset => "DC",
            Self::UpstreamReset => "UC",
            Self::ConnectFailed | Self::ConnectTimeout => "UF",
            Self::HalfCloseTimeout | Self::IdleTimeout => "SI",
            Self::Drained => "LR",
            Self::OriginalDstMissing | Self::Loop | Self::NoFilterChain => "NR",
            // Envoy has no flag for a connection that its RBAC filter closed; this is the one for "not allowed".
            Self::PolicyDenied => "UAEX",
            Self::Limit => "UO",
            Self::InternalError => "LR",
        }
    }
}

/// The access log's line. `bytes_received` came from the client, `bytes_sent` went to it.
#[derive(Clone, Debug)]
pub struct FlowRecord {
    pub started: SystemTime,
    pub workload: WorkloadName,
    pub peer_workload: Option<WorkloadName>,
    pub direction: Direction,
    pub mode: Mode,
    pub client: ClientAddr,
    /// `None`: it could not be recovered, and the connection was refused.
    pub original_dst: Option<OriginalDst>,
    pub upstream: Option<UpstreamAddr>,
    /// The agent's own address towards the upstream.
    pub upstream_local: Option<SocketAddr>,
    /// The fastest that it took.
    pub path: DataPath,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// Messages that went from application to application past the TCP stack, from the client and to it.
    pub messages_received: u64,
    pub messages_sent: u64,
    /// Both directions together.
    pub bytes_by_path: BytesByPath,
    pub duration: Duration,
    pub close_reason: CloseReason,
    /// The error behind the reason, for people.
    pub detail: Option<String>,
}

/// [`Direction`] as `"outbound"` and `"inbound"`, for serde's `with`.
pub mod direction {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::Direction;

    pub fn as_str(direction: Direction) -> &'static str {
        match direction {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
        }
    }

    pub fn serialize<S: Serializer>(direction: &Direction, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(as_str(*direction))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Direction, D::Error> {
        match String::deserialize(from)?.as_str() {
            "outbound" => Ok(Direction::Outbound),
            "inbound" => Ok(Direction::Inbound),
            other => Err(serde::de::Error::custom(format!("no direction `{other}`"))),
        }
    }
}
