//! What both backends' explanations share: the question as the decision function asks it, and the policy's part of the
//! evidence. The order of rules is the decision function's own: it tells a [`Witness`].

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};

use shunt_core::address::to_kernel;
use shunt_core::explain::{Condition, Inquiry};
use shunt_core::flow::Direction;
use shunt_core::rules::PolicyRules;
use shunt_core::sockets::Family;
use shunt_core::workload::PortRange;
use shunt_ebpf_common::decision::{Question, Verdict, Witness, decide};

use crate::listening::ListeningSockets;
use crate::{Enrolment, InterceptError};

/// One question about one enrolment, and the policy as configured.
#[derive(Debug)]
pub(crate) struct Case<'a> {
    pub(crate) direction: Direction,
    pub(crate) destination: SocketAddr,
    pub(crate) client: IpAddr,
    pub(crate) question: Question,
    pub(crate) rules: PolicyRules<'a>,
}

impl<'a> Case<'a> {
    /// `own`: what counts as the workload's own addresses.
    pub(crate) fn new(
        enrolment: &'a Enrolment,
        inquiry: &Inquiry,
        own: &'a [IpAddr],
    ) -> Result<Self, InterceptError> {
        let destination = shunt_core::address::canonical(inquiry.destination);
        let client = inquiry.client.map(|client| client.to_canonical());
        let (client, rules) = match inquiry.direction {
            Direction::Outbound => {
                let policy = &enrolment.spec.outbound;
                (destination.ip(), PolicyRules { policy, own })
            }
            Direction::Inbound => {
                let policy = &enrolment.spec.inbound;
                let client = client.ok_or_else(|| {
                    InterceptError::Unsupported("inbound, the client's address is needed".into())
                })?;
                (client, PolicyRules { policy, own: &[] })
            }
        };
        if client.is_ipv4() != destination.is_ipv4() {
            return Err(InterceptError::Unsupported(format!(
                "{client} cannot connect to {destination}: they are of two address families"
            )));
        }
        let address = match inquiry.direction {
            Direction::Outbound => destination.ip(),
            Direction::Inbound => client,
        };
        Ok(Self {
            direction: inquiry.direction,
            destination,
            client,
            question: Question {
                direction: inquiry.direction,
                address: to_kernel(address),
                port: destination.port(),
                bound_to_device: false,
            },
            rules,
        })
    }

    pub(crate) fn family(&self) -> Family {
        Family::of(self.destination)
    }

    /// What the configured policy says.
    pub(crate) fn configured(&self) -> Verdict {
        decide(&self.question, &self.rules)
    }

    /// The address that rules look at.
    pub(crate) fn address(&self) -> IpAddr {
        match self.direction {
            Direction::Outbound => self.destination.ip(),
            Direction::Inbound => self.client,
        }
    }

    /// Which range, prefix or address of the policy is behind a rule, or that none is.
    pub(crate) fn policy_says(&self, rule: Verdict) -> String {
        let (ip, port, policy) = (self.address(), self.question.port, self.rules.policy);
        let in_ports = |name, ranges: &[PortRange]| {
            let found = ranges.iter().find(|range| range.contains(port));
            membership(&format!("port {port}"), name, ranges, found)
        };
        let in_nets = |name, nets: &[ipnet::IpNet]| {
            let found = nets.iter().find(|net| net.contains(&ip));
            membership(&ip.to_string(), name, nets, found)
        };
        match rule {
            Verdict::Capture => String::new(),
            Verdict::BoundToDevice => "asked for a socket that is bound to no device".into(),
            Verdict::Loopback => kind(ip, rule, "loopback (127.0.0.0/8, ::1)"),
            Verdict::Unspecified => kind(ip, rule, "unspecified (0.0.0.0/8, ::)"),
            Verdict::Multicast => kind(ip, rule, "multicast (224.0.0.0/4, ff00::/8)"),
            Verdict::Broadcast => kind(ip, rule, "the broadcast address"),
            Verdict::OwnAddress => {
                let own = self.rules.own;
                let found = own.iter().find(|own| **own == ip);
                membership(&ip.to_string(), "own addresses", own, found)
            }
            Verdict::ExcludedPort => in_ports("exclude_ports", &policy.exclude_ports),
            Verdict::ExcludedAddress => in_nets("exclude_cidrs", &policy.exclude_cidrs),
            Verdict::PortNotIncluded => in_ports("include_ports", &policy.include_ports),
            Verdict::AddressNotIncluded => in_nets("include_cidrs", &policy.include_cidrs),
        }
    }
}

/// Why a connection goes through the agent.
pub(crate) fn served_by(listener: &str) -> String {
    format!("listener `{listener}` of the configuration is for it")
}

/// Is it one of the kinds of address that are never captured? Asked of the decision function itself.
fn kind(ip: IpAddr, rule: Verdict, what: &str) -> String {
    let is = if never(ip) == Some(rule) {
        "is"
    } else {
        "is not"
    };
    format!("{ip} {is} {what}")
}

/// The rule which leaves an address alone whatever the policy is.
pub(crate) fn never(ip: IpAddr) -> Option<Verdict> {
    let question = Question {
        direction: Direction::Outbound,
        address: to_kernel(ip),
        port: 0,
        bound_to_device: false,
    };
    let rules = PolicyRules {
        policy: &Default::default(),
        own: &[],
    };
    Some(decide(&question, &rules)).filter(|verdict| *verdict != Verdict::Capture)
}

fn membership<T: Display>(what: &str, name: &str, all: &[T], found: Option<&T>) -> String {
    match found {
        Some(found) => format!("{what} is in {name}: {found}"),
        None if all.is_empty() => format!("no {name}"),
        None => format!("{what} is not in {name}: {}", listed(all)),
    }
}

/// A few of many.
fn listed<T: Display>(all: &[T]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = all.iter().take(SHOWN).map(T::to_string).collect();
    let more = match all.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    shown.join(", ") + &more
}

/// Keeps what the decision function looked at.
#[derive(Debug, Default)]
pub(crate) struct Looked(pub(crate) Vec<(Verdict, bool)>);

impl Witness for Looked {
    fn saw(&mut self, rule: Verdict, holds: bool) {
        self.0.push((rule, holds));
    }
}

/// Does anybody listen at `addr`, also by listening everywhere?
pub(crate) fn listens(
    enrolment: &Enrolment,
    addr: SocketAddr,
) -> Result<Condition, InterceptError> {
    let sockets = ListeningSockets::open(&enrolment.netns)?.addresses()?;
    let serves = |bound: &&SocketAddr| {
        bound.port() == addr.port()
            && bound.is_ipv4() == addr.is_ipv4()
            && (bound.ip() == addr.ip() || bound.ip().is_unspecified())
    };
    let count = sockets.iter().filter(serves).count();
    Ok(Condition::new(
        count > 0,
        format!("{count} sockets listen on {addr} in the workload's namespace"),
    ))
}

/// Does anybody listen on this port beyond loopback, in whichever family?
pub(crate) fn listened(enrolment: &Enrolment, port: u16) -> Result<Condition, InterceptError> {
    let ports = ListeningSockets::open(&enrolment.netns)?.ports()?;
    let count = ports.get(&port).copied().unwrap_or(0);
    let evidence = format!("{count} sockets listen on port {port} beyond loopback");
    Ok(Condition::new(count > 0, evidence))
}
