//! The names of what is kept: whom it is for. Where it is, the descriptor itself says.

use std::fmt;
use std::net::SocketAddr;

use shunt_core::flow::Direction;
use shunt_core::workload::{Mode, WorkloadName};
use shunt_ebpf_common::scope::of_name;
use shunt_intercept::ebpf::LAYOUT;

/// What a descriptor in the store is for. Its name there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::supervisor) enum Kept {
    /// Of the workload whose name has this hash.
    Listeners(Mode, Direction, u64),
    /// Says to other agents that what the rules have done for connections is still needed.
    Flows(u64),
    /// The node's own, of the address that has this hash.
    Node(u64),
    /// Where connections that wait were going.
    Destinations,
}

impl Kept {
    pub(in crate::supervisor) fn node(addr: SocketAddr) -> Self {
        Self::Node(of_name(&addr.to_string()))
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        if name == Self::Destinations.to_string() {
            return Some(Self::Destinations);
        }
        let (kind, hash) = name.split_once('-')?;
        let hash = u64::from_str_radix(hash, 16).ok()?;
        let mut all = Kept::of_workload(hash)
            .into_iter()
            .chain([Self::Node(hash)]);
        all.find(|kept| kept.kind() == kind)
    }

    pub(super) fn of_workload(hash: u64) -> [Self; 5] {
        let (out, inb) = (Direction::Outbound, Direction::Inbound);
        [
            Self::Listeners(Mode::Ebpf, out, hash),
            Self::Listeners(Mode::Ebpf, inb, hash),
            Self::Listeners(Mode::Iptables, out, hash),
            Self::Listeners(Mode::Iptables, inb, hash),
            Self::Flows(hash),
        ]
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Listeners(Mode::Ebpf, Direction::Outbound, _) => "eo",
            Self::Listeners(Mode::Ebpf, Direction::Inbound, _) => "ei",
            Self::Listeners(Mode::Iptables, Direction::Outbound, _) => "io",
            Self::Listeners(Mode::Iptables, Direction::Inbound, _) => "ii",
            Self::Flows(_) => "flows",
            Self::Node(_) => "node",
            Self::Destinations => "destinations",
        }
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listeners(_, _, hash) | Self::Flows(hash) | Self::Node(hash) => {
                write!(f, "{}-{hash:016x}", self.kind())
            }
            Self::Destinations => write!(f, "{}-{LAYOUT}", self.kind()),
        }
    }
}

/// Whom a name is about.
pub(super) fn hash(name: &WorkloadName) -> u64 {
    of_name(&name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood_again() {
        let hash = of_name("default/web");
        let mut all = Kept::of_workload(hash).to_vec();
        let node = Kept::node("192.0.2.1:80".parse().expect("an address"));
        all.extend([node, Kept::Destinations]);
        for kept in all {
            let name = kept.to_string();
            assert_eq!(Kept::parse(&name), Some(kept), "{name}");
            // With what stands between them in the environment.
            assert!(name.len() < 32, "{name}");
        }
        for name in ["", "stored", "eo-", "eo-x", "ex-00", "destinations-0"] {
            assert_eq!(Kept::parse(name), None, "{name}");
        }
    }
}
