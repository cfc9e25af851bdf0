//! What supervisor and data plane say to each other: JSON messages over a SEQPACKET unix socket, descriptors beside
//! them (`SCM_RIGHTS`). Each message has the protocol's version and a number; the data plane acknowledges the numbers.

mod channel;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use shunt_core::bootstrap::Bootstrap;
use shunt_core::config::{Config, Limits, Timeouts};
use shunt_core::explain::{Explanation, Inquiry};
use shunt_core::policy::PolicyRule;
use shunt_core::service::Service;
use shunt_core::sockets::{DnsListenerSpec, ListenerSpec, SocketWant};
use shunt_core::status::{ListenerStatus, PodsStatus, StatusMode, WorkloadState};
use shunt_core::workload::{CapturePolicy, Mode, WorkloadId, WorkloadName, WorkloadSpec};

pub use self::channel::{Channel, ChannelError, pair};

/// Raised whenever a message changes its meaning: the two processes must be of one build line.
pub const VERSION: u32 = 5;

/// The kernel takes at most 253 descriptors with one message (SCM_MAX_FD).
pub const MAX_FDS: usize = 128;

/// Bytes of a text that is sent in pieces; the kernel wants about as much memory in one place.
const PART: usize = 128 << 10;

/// From the supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToWorker {
    /// First of all. One descriptor: the heartbeat page. The configuration's services and policy are left out, see
    /// [`ToWorker::Traffic`].
    Hello {
        config: Box<Config>,
        supervisor_pid: u32,
        /// The supervisor's.
        uptime_ms: u64,
        supervisor_version: String,
        /// The listeners do not close when both processes die: who comes later is the next agent's.
        #[serde(default)]
        keeps_listeners: bool,
    },
    /// Answer over the admin API from now on. Descriptors: the admin socket and, if configured, the admin TCP listener.
    Admin,
    /// The gates were refreshed on the strength of its signs of life: connections are captured from now on.
    Captures,
    /// Descriptors: the maps of accepted sockets' destinations, in place of those that were known.
    Destinations,
    /// One descriptor: the map of the resolvers that places for queries stand for.
    Resolvers,
    /// Descriptors: the maps of an [`shunt_intercept::ebpf::Shortcuts`].
    Shortcuts,
    /// One descriptor: what the hooks tell of direct connections.
    DirectEvents,
    /// Descriptors: the maps of an [`shunt_intercept::ebpf::MessageTap`].
    Tap,
    /// A workload is enrolled, with one descriptor to hold until its last flow has ended; or it changed, with none.
    Enrol(EnrolledView),
    /// Descriptors: one listening socket per worker thread.
    Listen(ListenerSpec),
    /// One descriptor: a socket that takes a workload's queries.
    TakeQueries(DnsListenerSpec),
    /// Answer to [`ToSupervisor::WhichResolver`] of the same ticket; the error is for people.
    Resolver {
        ticket: u64,
        resolver: Result<SocketAddr, String>,
    },
    /// Descriptors: ready sockets, for one worker thread.
    Stock {
        worker: usize,
        want: SocketWant,
    },
    /// No sockets could be made.
    StockFailed {
        worker: usize,
        want: SocketWant,
        error: String,
    },
    /// Take no new connections of this workload once its queues are empty, let its flows end in their own time, then
    /// say [`ToSupervisor::Drained`].
    Withdraw {
        id: WorkloadId,
    },
    /// Everything `status` shows beside the data plane's own numbers.
    States(States),
    /// What differs now from the states that were told before.
    StateChanges(StateChanges),
    Settings {
        timeouts: Timeouts,
        limits: Limits,
        splice_after: Option<u64>,
        log_level: String,
    },
    /// The next piece of a [`Traffic`]'s JSON text, which is too long for a message: thousands of services and rules. In
    /// force with the last one.
    Traffic {
        part: String,
        last: bool,
    },
    /// The next piece of a [`Bootstrap`]'s JSON text. In force with the last one.
    Bootstrap {
        part: String,
        last: bool,
    },
    /// The next piece of what `/config_dump` says of the bootstrap and of the files that it names, JSON.
    Dump {
        part: String,
        last: bool,
    },
    /// Descriptors: one listening socket per worker thread, for the bootstrap's listener of this address.
    Serve(SocketAddr),
    /// The bootstrap has no listener of this address any more.
    Unserve(SocketAddr),
    Counters(Counted),
    /// Answer to [`ToSupervisor::Change`] of the same ticket; the error says why it was refused.
    Changed {
        ticket: u64,
        result: Result<Outcome, String>,
    },
    /// Answer to [`ToSupervisor::Explain`] of the same ticket.
    Explained {
        ticket: u64,
        result: Result<Box<Explanation>, Unexplained>,
    },
    /// Another data plane accepts from the same sockets: accept nothing any more, let flows end for this long, then end.
    Retire {
        grace_ms: u64,
    },
    /// End in order.
    Stop {
        grace_ms: u64,
    },
}

/// From the data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToSupervisor {
    /// The message with this number was carried out, or why not.
    Ack { number: u64, error: Option<String> },
    NeedSockets {
        worker: usize,
        want: SocketWant,
        count: usize,
    },
    /// The withdrawn workload's listeners are closed and nobody waits in their queues.
    ListenersClosed { id: WorkloadId },
    /// The withdrawn workload has no flow left.
    Drained { id: WorkloadId },
    /// Somebody changed something over the admin API.
    Change { ticket: u64, change: Change },
    /// Whom was a query for, which rules led from `client` to `listener`?
    WhichResolver {
        ticket: u64,
        workload: WorkloadId,
        listener: SocketAddr,
        client: SocketAddr,
    },
    /// Somebody asks what would happen to a connection.
    Explain { ticket: u64, inquiry: Inquiry },
}

/// Why a question has no answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unexplained {
    /// No workload has that name, or several have.
    Unknown(String),
    Failed(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    Put(Box<WorkloadSpec>),
    Delete(WorkloadName),
    /// Of the supervisor's log; the data plane has set its own.
    LogLevel(String),
    /// Stop the agent as SIGTERM does.
    Drain,
    /// Put a data plane of the program on disk in the place of this one.
    UpgradeDataPlane,
    /// Put the program on disk in the place of the supervisor, and then of the data plane.
    UpgradeAgent,
}

/// What became of an accepted change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every new connection sees it.
    InForce,
    /// It was tried and did not work, for this reason; it is retried.
    Later(String),
}

/// What connections are told by `services` and `policy`: always changed together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    pub services: Vec<Service>,
    pub policy: Vec<PolicyRule>,
}

impl Traffic {
    /// The messages that say it.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn messages(&self) -> serde_json::Result<Vec<ToWorker>> {
        let text = serde_json::to_string(self)?;
        Ok(in_parts(&text, |part, last| ToWorker::Traffic {
            part,
            last,
        }))
    }
}

impl ToWorker {
    /// The messages that say a bootstrap.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn bootstrap(bootstrap: &Bootstrap) -> serde_json::Result<Vec<Self>> {
        let text = serde_json::to_string(bootstrap)?;
        Ok(in_parts(&text, |part, last| Self::Bootstrap { part, last }))
    }

    /// The messages that say a dump.
    pub fn dump(text: &str) -> Vec<Self> {
        in_parts(text, |part, last| Self::Dump { part, last })
    }
}

fn in_parts(text: &str, message: impl Fn(String, bool) -> ToWorker) -> Vec<ToWorker> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let (part, after) = rest.split_at(rest.floor_char_boundary(PART));
        rest = after;
        parts.push(message(part.to_owned(), rest.is_empty()));
        if rest.is_empty() {
            return parts;
        }
    }
}

/// What others than the data plane count, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Events of the kernel programs.
    pub kernel: BTreeMap<String, u64>,
    pub repairs: BTreeMap<String, u64>,
    /// By what became of them.
    pub upgrades: BTreeMap<String, u64>,
}

/// See [`ToWorker::States`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct States {
    pub workloads: Vec<WorkloadInfo>,
    pub pods: Option<PodsStatus>,
    /// Process ids of earlier data planes that let their flows end.
    pub retired: Vec<u32>,
}

/// See [`ToWorker::StateChanges`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateChanges {
    /// New ones too.
    pub changed: Vec<WorkloadInfo>,
    pub gone: Vec<WorkloadName>,
    /// All of it, as in [`States`].
    pub pods: Option<PodsStatus>,
    pub retired: Vec<u32>,
}

/// An enrolled workload as the data plane needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolledView {
    pub id: WorkloadId,
    pub name: WorkloadName,
    pub labels: BTreeMap<String, String>,
    pub mode: Mode,
    pub addresses: Vec<std::net::IpAddr>,
    pub inbound: CapturePolicy,
    pub transparent: bool,
    /// As [`shunt_core::snapshot::Enrolled::owns_addresses`].
    pub owns_addresses: bool,
    pub handoff: bool,
}

/// A configured workload as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadInfo {
    pub name: WorkloadName,
    pub netns: String,
    /// As [`shunt_core::status::WorkloadStatus::labels`].
    pub labels: BTreeMap<String, String>,
    pub mode: StatusMode,
    pub mode_reason: String,
    pub state: WorkloadState,
    pub state_reason: String,
    pub notes: Vec<String>,
    pub listeners: Vec<ListenerStatus>,
    /// As [`shunt_core::status::WorkloadStatus::acceleration`].
    pub acceleration: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use shunt_core::service::Balance;

    use super::*;

    #[test]
    fn services_and_policy_of_any_size_arrive_in_pieces() {
        for count in [0, 1, 10_000] {
            let service = |at: usize| Service {
                name: format!("service-{at}-\u{e9}"),
                addresses: vec!["10.96.0.1:80".parse().expect("an address")],
                endpoints: Vec::new(),
                balance: Balance::Random,
            };
            let traffic = Traffic {
                services: (0..count).map(service).collect(),
                policy: Vec::new(),
            };
            let mut text = String::new();
            let mut ended = Vec::new();
            for message in traffic.messages().expect("messages") {
                let sent = serde_json::to_vec(&message).expect("a message");
                assert!(sent.len() < 2 * PART);
                let ToWorker::Traffic { part, last } = message else {
                    panic!("{message:?}")
                };
                text.push_str(&part);
                ended.push(last);
            }
            assert_eq!(ended.iter().position(|last| *last), Some(ended.len() - 1));
            assert_eq!(
                serde_json::from_str::<Traffic>(&text).expect("traffic"),
                traffic
            );
        }
    }
}
