//! Rules as text for iptables-restore, in the order of the decision function. Pure: what goes in is data, what comes
//! out is text.

use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;
use shunt_core::flow::Direction;
use shunt_core::sockets::Family;
use shunt_core::workload::{CapturePolicy, OnFailure, PortRange};

use super::choice::Choice;
use super::dead_man::DeadMan;
use crate::{Enrolment, Marks};

/// How the names of our chains begin.
pub(super) const OURS: &str = "SHUNT_";

/// Our chains. A jump leads only to a later one.
pub(super) const CHAINS: [&str; 6] = [
    "SHUNT_OUTPUT",
    "SHUNT_OUT_ADDR",
    "SHUNT_TO_OUT",
    "SHUNT_PREROUTING",
    "SHUNT_IN_OPEN",
    "SHUNT_TO_IN",
];

/// What takes queries away, where the workload wants its DNS captured, and what leads there.
pub(super) const DNS_CHAINS: [&str; 2] = ["SHUNT_DNS", "SHUNT_TO_DNS"];
pub(super) const DNS_JUMP: (&str, &str) = ("OUTPUT", "SHUNT_DNS");
const DNS: u16 = 53;
const QUERIES: &str = "OUTPUT -p udp -m udp --dport 53 -j SHUNT_DNS";

/// All that there may be.
pub(super) fn all_chains() -> impl Iterator<Item = &'static str> {
    CHAINS.into_iter().chain(DNS_CHAINS)
}

/// As [`all_chains`].
pub(super) fn all_jumps() -> impl Iterator<Item = (&'static str, &'static str)> {
    JUMPS.into_iter().chain([DNS_JUMP])
}

/// tcpmux, on which nobody listens: the kernel refuses. If somebody did, the workload would talk to itself, and still
/// not past the agent. A nat table has no REJECT.
pub(super) const REFUSING: u16 = 1;

/// Holds for a SYN for which there is a listening socket, wherever that is bound.
pub(super) const LISTENING: &str = "-m socket --nowildcard ";

/// What leads into our chains, first in the built-in ones: the destination must be seen before anybody rewrites it.
/// SYNs only: the first packet that connection tracking sees of a connection that was there before is not its first.
pub(super) const JUMPS: [(&str, &str); 2] = [
    ("OUTPUT", "SHUNT_OUTPUT"),
    ("PREROUTING", "SHUNT_PREROUTING"),
];

/// Everything the rules of one family depend on.
#[derive(Clone, Debug)]
pub(super) struct Rendered<'a> {
    family: Family,
    marks: Marks,
    outbound_port: Option<u16>,
    inbound_port: Option<u16>,
    /// Where queries go.
    dns_port: Option<u16>,
    outbound: &'a CapturePolicy,
    inbound: &'a CapturePolicy,
    own: &'a [IpAddr],
    dead_man: Option<DeadMan>,
    asks_sockets: bool,
    on_failure: OnFailure,
}

impl<'a> Rendered<'a> {
    pub(super) fn of(
        enrolment: &'a Enrolment,
        marks: Marks,
        choice: &Choice,
        family: Family,
    ) -> Self {
        Self {
            family,
            marks,
            outbound_port: enrolment.port(Direction::Outbound, family),
            inbound_port: enrolment.port(Direction::Inbound, family),
            dns_port: dns_port(enrolment, family),
            outbound: &enrolment.spec.outbound,
            inbound: &enrolment.spec.inbound,
            own: &enrolment.addresses,
            dead_man: choice.dead_man,
            asks_sockets: choice.asks_sockets,
            on_failure: enrolment.spec.on_failure,
        }
    }

    pub(super) fn captures_nothing(&self) -> bool {
        self.outbound_port.is_none() && self.inbound_port.is_none()
    }

    /// One transaction: our chains are replaced, the jumps in `present` stay.
    pub(super) fn transaction(&self, present: &[&str]) -> String {
        let mut text = String::from("*nat\n");
        for chain in CHAINS {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        if self.captures_queries() {
            for chain in DNS_CHAINS {
                let _ = writeln!(text, ":{chain} - [0:0]");
            }
        }
        for (builtin, chain) in JUMPS {
            if !present.contains(&chain) {
                let _ = writeln!(text, "-I {builtin} 1 -p tcp -m tcp --syn -j {chain}");
            }
        }
        match (self.captures_queries(), present.contains(&DNS_JUMP.1)) {
            (true, false) => {
                let _ = writeln!(text, "-I {}", QUERIES.replacen("OUTPUT", "OUTPUT 1", 1));
            }
            (false, true) => {
                let _ = writeln!(text, "-D {QUERIES}");
            }
            _ => {}
        }
        for rule in self.rules() {
            let _ = writeln!(text, "-A {rule}");
        }
        text.push_str("COMMIT\n");
        text
    }

    /// The rules of our chains, each as `CHAIN MATCHES -j TARGET`.
    pub(super) fn rules(&self) -> Vec<String> {
        let mut rules = Vec::new();
        if let Some(port) = self.outbound_port {
            self.outbound_rules(port, &mut rules);
        }
        if let Some(port) = self.inbound_port {
            self.inbound_rules(port, &mut rules);
        }
        if let Some(port) = self.dns_port.filter(|_| self.captures_queries()) {
            self.query_rules(port, &mut rules);
        }
        rules
    }

    /// Not where the rules for ports leave 53 alone.
    pub(super) fn captures_queries(&self) -> bool {
        let holds = |ranges: &[PortRange]| ranges.iter().any(|range| range.contains(DNS));
        let CapturePolicy {
            include_ports,
            exclude_ports,
            ..
        } = self.outbound;
        let wanted = include_ports.is_empty() || holds(include_ports);
        self.dns_port.is_some() && wanted && !holds(exclude_ports)
    }

    fn query_rules(&self, port: u16, rules: &mut Vec<String>) {
        self.destinations(rules, "SHUNT_DNS");
        for net in self.nets(&self.outbound.exclude_cidrs) {
            rules.push(format!("SHUNT_DNS -d {net} -j RETURN"));
        }
        if self.outbound.include_cidrs.is_empty() {
            rules.push("SHUNT_DNS -j SHUNT_TO_DNS".into());
        }
        for net in self.nets(&self.outbound.include_cidrs) {
            rules.push(format!("SHUNT_DNS -d {net} -j SHUNT_TO_DNS"));
        }
        self.redirect(rules, "SHUNT_TO_DNS", "udp", port);
    }

    /// Those that nothing is captured of.
    fn destinations(&self, rules: &mut Vec<String>, chain: &str) {
        self.never(rules, chain, "-d");
        rules.push(format!("{chain} -m addrtype --dst-type LOCAL -j RETURN"));
        let own: Vec<IpNet> = self.own.iter().copied().map(IpNet::from).collect();
        for own in self.nets(&own) {
            rules.push(format!("{chain} -d {own} -j RETURN"));
        }
    }

    fn outbound_rules(&self, port: u16, rules: &mut Vec<String>) {
        self.destinations(rules, "SHUNT_OUTPUT");
        for range in &self.outbound.exclude_ports {
            rules.push(format!(
                "SHUNT_OUTPUT -p tcp -m tcp {} -j RETURN",
                ports(*range)
            ));
        }
        for net in self.nets(&self.outbound.exclude_cidrs) {
            rules.push(format!("SHUNT_OUTPUT -d {net} -j RETURN"));
        }
        included(
            rules,
            "SHUNT_OUTPUT",
            &self.outbound.include_ports,
            "SHUNT_OUT_ADDR",
        );
        if self.outbound.include_cidrs.is_empty() {
            rules.push("SHUNT_OUT_ADDR -j SHUNT_TO_OUT".into());
        }
        for net in self.nets(&self.outbound.include_cidrs) {
            rules.push(format!("SHUNT_OUT_ADDR -d {net} -j SHUNT_TO_OUT"));
        }
        self.redirect(rules, "SHUNT_TO_OUT", "tcp", port);
    }

    fn inbound_rules(&self, port: u16, rules: &mut Vec<String>) {
        rules.push("SHUNT_PREROUTING -m addrtype ! --dst-type LOCAL -j RETURN".into());
        self.never(rules, "SHUNT_PREROUTING", "-s");
        for range in &self.inbound.exclude_ports {
            rules.push(format!(
                "SHUNT_PREROUTING -p tcp -m tcp {} -j RETURN",
                ports(*range)
            ));
        }
        included(
            rules,
            "SHUNT_PREROUTING",
            &self.inbound.include_ports,
            "SHUNT_IN_OPEN",
        );
        // Where nobody listens the kernel refuses, as without us.
        let listening = if self.asks_sockets { LISTENING } else { "" };
        rules.push(format!("SHUNT_IN_OPEN -p tcp {listening}-j SHUNT_TO_IN"));
        self.redirect(rules, "SHUNT_TO_IN", "tcp", port);
    }

    /// The agent's own sockets, and the addresses that are never captured.
    fn never(&self, rules: &mut Vec<String>, chain: &str, side: &str) {
        for mark in [self.marks.upstream, self.marks.delivery] {
            rules.push(format!("{chain} -m mark --mark {mark:#x} -j RETURN"));
        }
        let nets: &[&str] = match self.family {
            Family::V4 => &[
                "127.0.0.0/8",
                "0.0.0.0/8",
                "224.0.0.0/4",
                "255.255.255.255/32",
            ],
            Family::V6 => &["::1/128", "::/128", "ff00::/8"],
        };
        for net in nets {
            rules.push(format!("{chain} {side} {net} -j RETURN"));
        }
    }

    fn redirect(&self, rules: &mut Vec<String>, chain: &str, protocol: &str, port: u16) {
        let Some(dead_man) = self.dead_man else {
            rules.push(format!(
                "{chain} -p {protocol} -j REDIRECT --to-ports {port}"
            ));
            return;
        };
        let alive = dead_man.matching(self.family);
        rules.push(format!(
            "{chain} -p {protocol} {alive}-j REDIRECT --to-ports {port}"
        ));
        if self.on_failure == OnFailure::Closed {
            rules.push(format!(
                "{chain} -p {protocol} -j REDIRECT --to-ports {REFUSING}"
            ));
        }
    }

    fn nets<'b>(&self, nets: &'b [IpNet]) -> impl Iterator<Item = &'b IpNet> {
        let v4 = self.family == Family::V4;
        nets.iter()
            .filter(move |net| matches!(net, IpNet::V4(_)) == v4)
    }
}

/// Of the enrolment's socket for the queries of this family.
fn dns_port(enrolment: &Enrolment, family: Family) -> Option<u16> {
    let mut addresses = enrolment.dns.iter().map(|listener| listener.spec.addr);
    let found = addresses.find(|addr| Family::of(*addr) == family);
    found.map(|addr| addr.port())
}

fn included(rules: &mut Vec<String>, chain: &str, include: &[PortRange], target: &str) {
    if include.is_empty() {
        rules.push(format!("{chain} -j {target}"));
    }
    for range in include {
        rules.push(format!(
            "{chain} -p tcp -m tcp {} -j {target}",
            ports(*range)
        ));
    }
}

fn ports(range: PortRange) -> String {
    if range.first == range.last {
        format!("--dport {}", range.first)
    } else {
        format!("--dport {}:{}", range.first, range.last)
    }
}

/// Our chains to which a built-in chain of `saved` already jumps.
pub(super) fn jumps(saved: &str) -> Vec<&'static str> {
    let present = |chain: &str| saved.lines().any(|line| is_jump(line, chain));
    all_jumps()
        .map(|(_, chain)| chain)
        .filter(|chain| present(chain))
        .collect()
}

pub(super) fn has_chains(saved: &str) -> bool {
    saved
        .lines()
        .any(|line| line.starts_with(":SHUNT_") || line.contains("-j SHUNT_"))
}

/// One transaction that leaves our chains without anything leading to them; `None`: nothing does.
pub(super) fn unhooking(saved: &str) -> Option<String> {
    let deletions = jump_deletions(saved);
    (!deletions.is_empty()).then(|| format!("*nat\n{deletions}COMMIT\n"))
}

fn jump_deletions(saved: &str) -> String {
    saved
        .lines()
        .filter(|line| all_jumps().any(|(_, chain)| is_jump(line, chain)))
        .map(|jump| format!("-D {}\n", jump.trim_start_matches("-A ")))
        .collect()
}

/// One transaction that removes what `saved` has of ours, chains of other versions too; `None`: nothing.
pub(super) fn removal(saved: &str) -> Option<String> {
    if !has_chains(saved) {
        return None;
    }
    let mut text = format!("*nat\n{}", jump_deletions(saved));
    for verb in ["-F", "-X"] {
        for chain in chains(saved) {
            let _ = writeln!(text, "{verb} {chain}");
        }
    }
    text.push_str("COMMIT\n");
    Some(text)
}

/// One transaction that brings our chains from the state `now` back to what they were in `before`.
pub(super) fn return_to(before: &str, now: &str) -> Option<String> {
    if !has_chains(before) {
        return removal(now);
    }
    let mut text = format!("*nat\n{}", jump_deletions(now));
    for chain in CHAINS
        .into_iter()
        .chain(chains(before).filter(|chain| !CHAINS.contains(chain)))
    {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    for line in before.lines() {
        if let Some(jump) = all_jumps().find_map(|(_, chain)| is_jump(line, chain).then_some(line))
        {
            let rule = jump.trim_start_matches("-A ");
            let (builtin, rest) = rule.split_once(' ').unwrap_or((rule, ""));
            let _ = writeln!(text, "-I {builtin} 1 {rest}");
        } else if line.starts_with("-A SHUNT_") {
            let _ = writeln!(text, "{line}");
        }
    }
    text.push_str("COMMIT\n");
    Some(text)
}

/// Our chains in `saved`.
fn chains(saved: &str) -> impl Iterator<Item = &str> {
    let names = saved
        .lines()
        .filter_map(|line| line.strip_prefix(':')?.split(' ').next());
    names.filter(|name| name.starts_with("SHUNT_"))
}

fn is_jump(line: &str, chain: &str) -> bool {
    !line.starts_with("-A SHUNT_") && line.ends_with(&format!(" -j {chain}"))
}

#[cfg(test)]
mod tests;
