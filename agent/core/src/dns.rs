//! A workload's DNS queries through the agent, and what is told of them.

mod places;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

pub use self::places::{Places, Taken};
use crate::workload::WorkloadName;

/// What became of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryOutcome {
    /// The resolver's answer was passed on as it is.
    Answered,
    /// No answer came in time. The client was told nothing: its own patience counts.
    TimedOut,
    /// The resolver cannot be reached; the client was told SERVFAIL.
    Unreachable,
    /// Nobody knew which resolver was meant, or no socket could be had. Dropped.
    Failed,
    /// Too many queries were under way. Dropped.
    Limit,
}

impl QueryOutcome {
    pub const ALL: [Self; 5] = [
        Self::Answered,
        Self::TimedOut,
        Self::Unreachable,
        Self::Failed,
        Self::Limit,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::Failed => "failed",
            Self::Limit => "limit",
        }
    }
}

/// The response code of a DNS message's header, four bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rcode(u8);

impl Rcode {
    const NAMES: [&'static str; 16] = [
        "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET",
        "NXRRSET", "NOTAUTH", "NOTZONE", "RCODE11", "RCODE12", "RCODE13", "RCODE14", "RCODE15",
    ];

    /// Only the lower four bits count.
    pub fn new(bits: u8) -> Self {
        Self(bits & 0xf)
    }

    pub fn all() -> impl Iterator<Item = Self> {
        (0..16).map(Self)
    }

    /// As in the registry of RFC 6895.
    pub fn as_str(self) -> &'static str {
        Self::NAMES[usize::from(self.0)]
    }
}

/// A workload's queries.
#[derive(Debug, Default)]
pub struct DnsCounters {
    /// Of those that wait for an answer now.
    pub places: Places,
    /// Those that no DNS message begins like. They are passed on all the same.
    pub malformed: AtomicU64,
    /// Datagrams from a resolver that answer another question than was asked. They are ignored.
    pub mismatched: AtomicU64,
    outcomes: [AtomicU64; QueryOutcome::ALL.len()],
    rcodes: [AtomicU64; 16],
}

impl DnsCounters {
    pub fn outcome(&self, outcome: QueryOutcome) -> &AtomicU64 {
        &self.outcomes[outcome as usize]
    }

    /// Answers that were passed on.
    pub fn answers(&self, rcode: Rcode) -> &AtomicU64 {
        &self.rcodes[usize::from(rcode.0)]
    }

    pub fn is_used(&self) -> bool {
        self.outcomes.iter().any(|count| count.load(Relaxed) > 0)
    }
}

/// The access log's line about a query.
#[derive(Clone, Debug)]
pub struct QueryRecord {
    pub started: SystemTime,
    pub workload: WorkloadName,
    pub client: SocketAddr,
    /// `None`: nobody knew.
    pub resolver: Option<SocketAddr>,
    /// With every byte that is not printable escaped. Empty where the query is malformed, like [`QueryRecord::kind`].
    pub name: String,
    /// `A`, `AAAA`, `TXT` and the like.
    pub kind: String,
    pub outcome: QueryOutcome,
    /// `None`: no answer, or one that is too short to have any.
    pub rcode: Option<Rcode>,
    /// The answer was cut off: the client may ask again by TCP.
    pub truncated: bool,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub duration: Duration,
}
