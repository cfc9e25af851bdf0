//! What `/explain` is asked and answers, and `shunt explain` prints.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::flow::{DataPath, Direction};
use crate::policy::Action;
use crate::service::Balance;
use crate::status::StatusMode;

/// Names of rules beside those of [`Verdict`](shunt_ebpf_common::decision::Verdict): what hooks and chains ask before
/// and after the decision function.
pub mod rule {
    /// Nothing in the kernel leads this workload's connections to the agent.
    pub const NOT_ENROLLED: &str = "not_enrolled";
    /// The agent does not listen in this family, or not for this direction.
    pub const NO_LISTENER: &str = "no_listener";
    /// Inbound: the destination is no address of the workload.
    pub const NOT_ARRIVING: &str = "not_arriving";
    /// Inbound: the client is the workload itself.
    pub const TO_ITSELF: &str = "to_itself";
    /// Inbound, eBPF mode: nobody listens on the port beyond loopback.
    pub const NOT_LISTENING: &str = "not_listening";
    /// The mark says that the socket is the agent's own.
    pub const OWN_SOCKET: &str = "own_socket";
    /// Somebody else's rule decides before ours.
    pub const FOREIGN_RULE: &str = "foreign_rule";
    pub const GATE_STALE: &str = "gate_stale";
    pub const LISTENER_GONE: &str = "listener_gone";
}

/// Would this connection be intercepted? Asked for a plain TCP socket of an application, as `connect(2)` is called now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inquiry {
    /// `namespace/name`, or `name` where that is enough.
    pub workload: String,
    #[serde(with = "crate::flow::direction")]
    pub direction: Direction,
    /// Inbound, an address of the workload.
    pub destination: SocketAddr,
    /// Inbound, who connects; outbound, nobody asks.
    pub client: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// `namespace/name`.
    pub workload: String,
    #[serde(with = "crate::flow::direction")]
    pub direction: Direction,
    pub destination: SocketAddr,
    pub client: Option<IpAddr>,
    pub mode: StatusMode,
    pub mode_reason: String,
    /// What the kernel does, right now.
    pub outcome: Outcome,
    /// The rule that decided: a name of `Verdict`, or of [`rule`].
    pub rule: String,
    /// Of captured connections, as far as it is known beforehand.
    pub path: Option<DataPath>,
    /// Why this path.
    pub path_reason: Option<String>,
    /// Of captured connections: the service whose address was dialled.
    pub service: Option<ServiceAnswer>,
    /// Of captured connections: what policy says, for each place where it may go, in the order in which it is asked.
    pub policy: Vec<PolicyAnswer>,
    /// In the order in which they are asked; the last one decided.
    pub steps: Vec<Step>,
    pub gate: Condition,
    /// The agent's listener to which the connection would go.
    pub listener: Condition,
    /// Inbound: somebody listens on the port beyond loopback.
    pub listening: Option<Condition>,
    /// The rule by which the configured policy decides; `None`: the workload is not served.
    pub configured: Option<String>,
    /// Where the kernel differs from the configuration.
    pub drift: Vec<String>,
    /// What could not be judged.
    pub doubts: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Captured,
    /// Past the agent.
    Direct,
    /// Neither: the agent cannot serve, and the workload wants nothing without it.
    Refused,
}

/// A service, for connections of the dialled address's family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAnswer {
    pub name: String,
    pub balance: Balance,
    pub endpoints: Vec<SocketAddr>,
}

/// What the rules about one workload say of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyAnswer {
    /// Where the connection goes: a service's endpoint, or what was dialled.
    pub server: SocketAddr,
    #[serde(with = "crate::flow::direction")]
    pub direction: Direction,
    /// Whose rules: `namespace/name`.
    pub workload: String,
    /// The other end, if it is enrolled on this node.
    pub peer: Option<String>,
    pub action: Action,
    /// As `policy[2]`; `None`: no rule matches, and the default allows.
    pub rule: Option<String>,
}

/// One rule that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub rule: String,
    pub matched: bool,
    pub evidence: String,
}

/// Something that must hold, `None` when it does not apply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    pub holds: Option<bool>,
    pub evidence: String,
}

impl Inquiry {
    /// A client that is nobody in particular: an address kept for documentation.
    pub fn somebody(destination: SocketAddr) -> IpAddr {
        match destination.ip().to_canonical() {
            IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
            IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        }
    }
}

impl Condition {
    pub fn new(holds: bool, evidence: impl Into<String>) -> Self {
        Self {
            holds: Some(holds),
            evidence: evidence.into(),
        }
    }

    pub fn not_applicable(evidence: impl Into<String>) -> Self {
        Self {
            holds: None,
            evidence: evidence.into(),
        }
    }
}

impl Explanation {
    /// Nothing is known yet: direct, by no rule.
    pub fn begin(workload: impl ToString, inquiry: &Inquiry, mode: StatusMode) -> Self {
        let unknown = || Condition::not_applicable("not looked at");
        Self {
            workload: workload.to_string(),
            direction: inquiry.direction,
            destination: inquiry.destination,
            client: inquiry.client,
            mode,
            mode_reason: String::new(),
            outcome: Outcome::Direct,
            rule: String::new(),
            path: None,
            path_reason: None,
            service: None,
            policy: Vec::new(),
            steps: Vec::new(),
            gate: unknown(),
            listener: unknown(),
            listening: None,
            configured: None,
            drift: Vec::new(),
            doubts: Vec::new(),
        }
    }

    /// Notes a step. `Some`, when it decides.
    pub fn step(
        &mut self,
        rule: &'static str,
        matched: bool,
        evidence: impl Into<String>,
    ) -> Option<&'static str> {
        self.steps.push(Step {
            rule: rule.to_owned(),
            matched,
            evidence: evidence.into(),
        });
        matched.then_some(rule)
    }
}
