//! Who is enrolled, and how.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::policy::Identity;

/// Identifies one enrolment of a workload while the agent runs; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkloadId(pub u32);

impl WorkloadId {
    /// No workload: the node itself, in whose namespace the agent runs.
    pub const NODE: Self = Self(0);
}

/// A workload's name, unique on the node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkloadName {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The one of `all` that is called `wanted`: `namespace/name` or, where that is clear, `name`.
///
/// # Errors
/// There is none, or there are several; for people.
pub fn called<T>(
    all: impl Iterator<Item = T>,
    name: impl Fn(&T) -> &WorkloadName,
    wanted: &str,
) -> Result<T, String> {
    let fits = |one: &T| name(one).name == wanted || name(one).to_string() == wanted;
    let mut found: Vec<T> = all.filter(fits).collect();
    if found.len() > 1 {
        let names: Vec<String> = found.iter().map(|one| name(one).to_string()).collect();
        let names = names.join(", ");
        return Err(format!("{wanted} may be one of {names}: say which"));
    }
    found.pop().ok_or_else(|| format!("no workload {wanted}"))
}

/// How connections are steered into the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Ebpf,
    Iptables,
}

impl Mode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Iptables => "iptables",
        }
    }
}

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModeSetting {
    /// eBPF where it works, else iptables.
    #[default]
    Auto,
    Ebpf,
    Iptables,
}

impl FromStr for ModeSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "ebpf" => Ok(Self::Ebpf),
            "iptables" => Ok(Self::Iptables),
            other => Err(format!("`{other}` is not one of auto, ebpf, iptables")),
        }
    }
}

/// What happens to new connections while the agent cannot serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// They go directly to their destination.
    #[default]
    Open,
    /// They are refused.
    Closed,
}

/// May same-node connections take a path past the TCP stack?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceleration {
    Off,
    /// Where it was learned from an application's sockets that it sees nothing different.
    #[default]
    Auto,
    /// Also where blocking and splicing applications see differences, see docs/semantics.md.
    Always,
}

/// [`Acceleration`] by the server's port; the two workloads of a connection must agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccelerationPolicy {
    /// Of ports without a rule of their own.
    pub default: Acceleration,
    /// No two of them overlap.
    pub ports: Vec<(PortRange, Acceleration)>,
    /// May connections that need no proxy, to ports whose acceleration is not off, go past the agent altogether?
    pub direct: bool,
    /// May the agent leave an accelerated connection to the two applications, both of which must say so? Else every byte
    /// passes it, from queue to queue.
    pub handoff: bool,
}

impl Default for AccelerationPolicy {
    fn default() -> Self {
        Acceleration::default().into()
    }
}

impl AccelerationPolicy {
    pub fn of(&self, port: u16) -> Acceleration {
        let ruled = self.ports.iter().find(|(range, _)| range.contains(port));
        ruled.map_or(self.default, |(_, acceleration)| *acceleration)
    }

    /// May anything be accelerated at all?
    pub fn is_any(&self) -> bool {
        self.all().any(|wish| wish != Acceleration::Off)
    }

    /// Is anything to be learned about its sockets? What goes directly is not accelerated by what was learned.
    pub fn learns(&self) -> bool {
        !self.direct && self.all().any(|wish| wish == Acceleration::Auto)
    }

    fn all(&self) -> impl Iterator<Item = Acceleration> {
        let ruled = self.ports.iter().map(|(_, acceleration)| *acceleration);
        ruled.chain([self.default])
    }
}

impl From<Acceleration> for AccelerationPolicy {
    fn from(default: Acceleration) -> Self {
        Self {
            default,
            ports: Vec::new(),
            direct: true,
            handoff: true,
        }
    }
}

/// What becomes of a workload's DNS queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsPolicy {
    /// Datagrams to port 53 go through the agent, which asks the same resolver and tells of it.
    pub capture: bool,
}

/// An inclusive range of ports, 1..=65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl FromStr for PortRange {
    type Err = String;

    /// `"80"` or `"8000-8100"`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a port (1-65535) or a range like 8000-8100");
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let parse = |part: &str| part.trim().parse::<u16>().map_err(|_| wrong());
        let (first, last) = (parse(first)?, parse(last)?);
        if first == 0 || first > last {
            return Err(wrong());
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// Which connections of one direction are captured. Exclusion wins; an empty include list includes everything.
/// Inbound has no address rules: its lists of CIDRs are always empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturePolicy {
    pub include_ports: Vec<PortRange>,
    pub exclude_ports: Vec<PortRange>,
    pub include_cidrs: Vec<IpNet>,
    pub exclude_cidrs: Vec<IpNet>,
}

/// The namespace of the agent itself, usually the node's: the one that workloads share which have none of their own.
pub const OWN_NETNS: &str = "/proc/self/ns/net";

/// A workload as configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadSpec {
    pub name: WorkloadName,
    /// Path of the network namespace; a bare name has become `/run/netns/NAME`, nothing [`OWN_NETNS`].
    pub netns: PathBuf,
    /// Absolute, or relative to the cgroup2 mount.
    pub cgroup: Option<PathBuf>,
    pub labels: BTreeMap<String, String>,
    /// The workload's own wish, or the global one.
    pub mode: ModeSetting,
    pub acceleration: AccelerationPolicy,
    pub on_failure: OnFailure,
    #[serde(default)]
    pub dns: DnsPolicy,
    pub outbound: CapturePolicy,
    pub inbound: CapturePolicy,
}

impl WorkloadSpec {
    /// Is its network namespace the agent's own? Then others are there too, and its cgroup says which sockets are its own.
    pub fn shares_netns(&self) -> bool {
        // Letter by letter: as a path, each of its parts would be compared, for every workload at every tick.
        self.netns.as_os_str() == OWN_NETNS
    }

    /// What policy may ask of it.
    pub fn identity(&self) -> Identity<'_> {
        Identity {
            name: &self.name,
            labels: &self.labels,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges() {
        assert_eq!(
            "22".parse(),
            Ok(PortRange {
                first: 22,
                last: 22
            })
        );
        assert_eq!(
            "8000-8100".parse(),
            Ok(PortRange {
                first: 8000,
                last: 8100
            })
        );
        for wrong in ["", "0", "65536", "9-8", "a-b", "1-2-3", "-5"] {
            assert!(wrong.parse::<PortRange>().is_err(), "{wrong}");
        }
    }
}
