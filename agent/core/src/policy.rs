//! L4 policy: who may connect to whom. The first rule that matches decides; without one a connection is allowed.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::flow::Direction;
use crate::workload::{PortRange, WorkloadName};

/// An entry of `policy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    pub action: Action,
    /// As the chosen workloads see it: inbound rules are about who connects to them, outbound ones about whom they
    /// connect to.
    #[serde(with = "crate::flow::direction")]
    pub direction: Direction,
    /// Whose connections; `None`: every enrolled workload's.
    pub workload: Option<Selector>,
    /// The other end; `None`: anybody.
    pub peer: Option<Peer>,
    /// The server's ports; empty: any.
    pub ports: Vec<PortRange>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Allow,
    Deny,
}

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    /// A workload that is enrolled on this node: the one whose namespace or address it is.
    Workload(Selector),
    Cidr(IpNet),
}

/// Workloads for which everything that is given is true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector {
    pub name: Option<String>,
    pub namespace: Option<String>,
    pub labels: BTreeMap<String, String>,
}

/// What rules may ask of an enrolled workload.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    pub name: &'a WorkloadName,
    pub labels: &'a BTreeMap<String, String>,
}

/// What the rules say of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub action: Action,
    /// Its index in `policy`; `None`: no rule matched, and the default allows.
    pub rule: Option<usize>,
}

/// What is said of a connection that an enrolled workload makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// By the rules about the client.
    pub outbound: Decision,
    /// By those about the server, where it is enrolled on this node and the client's rules allow the connection.
    pub inbound: Option<Decision>,
}

/// The rules in force, ready to be asked.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    rules: Vec<PolicyRule>,
    outbound: Index,
    inbound: Index,
}

/// Indices of one direction's rules, ascending.
#[derive(Clone, Debug, Default)]
struct Index {
    /// Of rules about workloads of this name: thousands of rules cost a connection only those of its workload.
    by_name: HashMap<String, Vec<usize>>,
    others: Vec<usize>,
}

impl Policy {
    pub fn new(rules: Vec<PolicyRule>) -> Self {
        let mut policy = Self::default();
        for (at, rule) in rules.iter().enumerate() {
            let index = match rule.direction {
                Direction::Outbound => &mut policy.outbound,
                Direction::Inbound => &mut policy.inbound,
            };
            let name = rule
                .workload
                .as_ref()
                .and_then(|chosen| chosen.name.as_ref());
            match name {
                Some(name) => index.by_name.entry(name.clone()).or_default().push(at),
                None => index.others.push(at),
            }
        }
        Self { rules, ..policy }
    }

    pub fn rules(&self) -> &[PolicyRule] {
        &self.rules
    }

    /// All that is asked when the enrolled workload `client` connects to `server`, where the workload `owner` may be. The
    /// client will use one of `client_addresses`.
    pub fn judge(
        &self,
        client: Identity<'_>,
        client_addresses: &[IpAddr],
        server: SocketAddr,
        owner: Option<Identity<'_>>,
    ) -> Judgement {
        let way = Direction::Outbound;
        let outbound = self.decide(way, client, owner, server.ip(), server.port());
        let owner = owner.filter(|_| !outbound.is_denied());
        let inbound =
            owner.map(|owner| self.decide_each(owner, Some(client), client_addresses, server));
        Judgement { outbound, inbound }
    }

    /// The first rule about `subject` that matches. `peer` is the other end, if it is enrolled on this node; `port` is
    /// the server's.
    pub fn decide(
        &self,
        direction: Direction,
        subject: Identity<'_>,
        peer: Option<Identity<'_>>,
        peer_address: IpAddr,
        port: u16,
    ) -> Decision {
        let index = match direction {
            Direction::Outbound => &self.outbound,
            Direction::Inbound => &self.inbound,
        };
        let first = index.of(&subject.name.name).find(|at| {
            let rule = &self.rules[*at];
            let about = rule.workload.as_ref();
            about.is_none_or(|chosen| chosen.fits(subject))
                && rule.has_peer(peer, peer_address)
                && rule.has_port(port)
        });
        Decision {
            action: first.map_or(Action::Allow, |at| self.rules[at].action),
            rule: first,
        }
    }

    /// Inbound, for a client which will use one of these addresses, and nobody knows which: allowed only if each of them
    /// is. Without any address, only rules about every address of the `server`'s family can match one.
    fn decide_each(
        &self,
        subject: Identity<'_>,
        client: Option<Identity<'_>>,
        addresses: &[IpAddr],
        server: SocketAddr,
    ) -> Decision {
        let decide =
            |address| self.decide(Direction::Inbound, subject, client, address, server.port());
        let family = |address: &&IpAddr| address.is_ipv4() == server.is_ipv4();
        let mut decisions = addresses.iter().filter(family).copied().map(decide);
        let Some(first) = decisions.next() else {
            return decide(unspecified(server));
        };
        if first.is_denied() {
            return first;
        }
        decisions.find(Decision::is_denied).unwrap_or(first)
    }
}

fn unspecified(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

impl Index {
    /// What may be about a workload of this name, in the order of the file.
    fn of(&self, name: &str) -> impl Iterator<Item = usize> {
        let mut named = self
            .by_name
            .get(name)
            .into_iter()
            .flatten()
            .copied()
            .peekable();
        let mut others = self.others.iter().copied().peekable();
        std::iter::from_fn(move || match (named.peek(), others.peek()) {
            (Some(one), Some(other)) if one < other => named.next(),
            (Some(_), None) => named.next(),
            _ => others.next(),
        })
    }
}

impl PolicyRule {
    fn has_peer(&self, peer: Option<Identity<'_>>, address: IpAddr) -> bool {
        match &self.peer {
            None => true,
            Some(Peer::Workload(chosen)) => peer.is_some_and(|peer| chosen.fits(peer)),
            Some(Peer::Cidr(net)) => net.contains(&address),
        }
    }

    fn has_port(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|range| range.contains(port))
    }
}

impl Selector {
    pub fn fits(&self, workload: Identity<'_>) -> bool {
        let Self {
            name,
            namespace,
            labels,
        } = self;
        let given = |wanted: &Option<String>, is: &String| wanted.as_ref().is_none_or(|w| w == is);
        given(name, &workload.name.name)
            && given(namespace, &workload.name.namespace)
            && labels
                .iter()
                .all(|(key, value)| workload.labels.get(key) == Some(value))
    }
}

impl Judgement {
    /// The decision that denies it, if one does, and whose rules it is by.
    pub fn denied(&self) -> Option<(Direction, Decision)> {
        let outbound = (Direction::Outbound, self.outbound);
        let inbound = self.inbound.map(|inbound| (Direction::Inbound, inbound));
        [Some(outbound), inbound]
            .into_iter()
            .flatten()
            .find(|(_, decision)| decision.is_denied())
    }
}

impl Decision {
    pub fn is_denied(&self) -> bool {
        self.action == Action::Deny
    }

    /// Of a denied connection, for people: `policy[2] denies, inbound of default/db`.
    pub fn denial(&self, direction: Direction, about: &WorkloadName) -> String {
        let rule = self.rule_name().unwrap_or_default();
        let direction = crate::flow::direction::as_str(direction);
        format!("{rule} denies, {direction} of {about}")
    }

    /// As the rule is named in messages about the configuration: `policy[2]`.
    pub fn rule_name(&self) -> Option<String> {
        self.rule.map(|at| format!("policy[{at}]"))
    }
}

#[cfg(test)]
mod tests;
