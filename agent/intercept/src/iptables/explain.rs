//! What the namespace's live rules would do, rule by rule.

use std::net::IpAddr;

use shunt_core::explain::{Condition, Explanation, Inquiry, Outcome, rule};
use shunt_core::flow::{DataPath, Direction};
use shunt_core::status::StatusMode;
use shunt_ebpf_common::decision::Verdict;

use super::evaluate::{End, Holds, Match, Packet, Rule, Table, Visit};
use super::render::OURS;
use super::render::REFUSING;
use super::{IptablesBackend, dead_man};
use crate::explain::{Case, listened, listens, never, served_by};
use crate::local::is_local;
use crate::{Enrolment, InterceptError};

/// The chain in which destinations are looked for that are included.
const ADDRESSES: &str = "SHUNT_OUT_ADDR";

/// What the rules of one kind say together.
struct Kind {
    name: &'static str,
    /// The decision function's rule which they render.
    verdict: Option<Verdict>,
    /// They lead on towards capture: the rule of that name matched when none of them holds.
    leads_on: bool,
}

/// Rules of one kind that were looked at.
struct Group<'a> {
    kind: Kind,
    looked: usize,
    held: Option<&'a str>,
    last: &'a str,
}

impl IptablesBackend {
    pub(super) fn explanation(
        &self,
        enrolment: &Enrolment,
        inquiry: &Inquiry,
    ) -> Result<Explanation, InterceptError> {
        let destination = inquiry.destination.ip().to_canonical();
        let local = is_local(&enrolment.netns, destination)?;
        // addrtype knows more of them than we do, link-local ones for example.
        let mut own = enrolment.addresses.clone();
        own.extend(local.then_some(destination));
        let case = Case::new(enrolment, inquiry, &own)?;
        let mut answer = Explanation::begin(&enrolment.spec.name, inquiry, StatusMode::Iptables);
        answer.configured = Some(case.configured().as_str().to_owned());
        let Some(installed) = self.installed.get(&enrolment.id) else {
            let evidence = "no rules were installed for it";
            answer.drift.push(evidence.into());
            answer.step(rule::NOT_ENROLLED, true, evidence);
            answer.rule = rule::NOT_ENROLLED.into();
            return Ok(answer);
        };
        answer.gate = match installed.choice.dead_man {
            Some(kind) => dead_man::state(&enrolment.netns, case.family(), kind)?,
            None => Condition::not_applicable("on_failure is closed: the rules have no gate"),
        };
        let variant = installed.choice.variant;
        let saved = self.tools.save(&enrolment.netns, variant, case.family())?;
        if case.direction == Direction::Inbound {
            answer.listening = Some(listened(enrolment, case.destination.port())?);
        }
        let listening = answer.listening.as_ref();
        let packet = Packet {
            source: (case.direction == Direction::Inbound).then_some(case.client),
            destination,
            port: case.destination.port(),
            mark: 0,
            local,
            alive: answer.gate.holds.unwrap_or(true),
            listening: listening.is_none_or(|listening| listening.holds != Some(false)),
        };
        if case.direction == Direction::Inbound {
            let itself = is_local(&enrolment.netns, case.client)?;
            let evidence = format!("{} connects to {destination}", case.client);
            if let Some(decided) = answer.step(rule::TO_ITSELF, itself, evidence) {
                answer.rule = decided.into();
                return Ok(answer);
            }
        }
        judge(&case, &Table::parse(&saved), &packet, &mut answer);
        settle(&case, enrolment, &mut answer)?;
        Ok(answer)
    }
}

/// Walks the table and tells it in steps. The rule that decided is the last step's.
pub(super) fn judge(case: &Case<'_>, table: &Table<'_>, packet: &Packet, answer: &mut Explanation) {
    let builtin = match case.direction {
        Direction::Outbound => "OUTPUT",
        Direction::Inbound => "PREROUTING",
    };
    let mut visits = Vec::new();
    let end = table.walk(builtin, packet, &mut visits);
    // What comes after ours is none of our business.
    let before = visits.iter().rposition(|visit| is_ours(visit.rule));
    let before = &visits[..before.unwrap_or(visits.len())];
    for visit in before.iter().filter(|visit| visit.held == Holds::Unknown) {
        let text = visit.rule.text;
        let doubt =
            format!("this rule cannot be judged, if it holds the answer may be wrong: {text}");
        answer.doubts.push(doubt);
    }
    let into = visits
        .iter()
        .find(|visit| visit.rule.target.starts_with(OURS) && visit.held == Holds::Yes);
    if into.is_none() {
        let (name, evidence) = match &end {
            End::Decided(rule) | End::Redirected(rule) => (rule::FOREIGN_RULE, rule.text.into()),
            End::Through => {
                let why = format!("nothing in {builtin} leads to a chain of ours");
                (rule::NOT_ENROLLED, why)
            }
        };
        answer.drift.push(evidence.clone());
        answer.step(name, true, evidence);
        answer.rule = name.into();
        return;
    }
    if let Some(jump) = into {
        answer.step(rule::NOT_ENROLLED, false, jump.rule.text);
    }
    for group in grouped(case, &visits) {
        let matched = group.held.is_some() != group.kind.leads_on;
        let policy = group.kind.verdict.map(|verdict| case.policy_says(verdict));
        let rules = match (group.held, group.looked) {
            (Some(held), _) => format!("`{held}` holds"),
            (None, 1) => format!("`{}` does not hold", group.last),
            (None, looked) => format!("none of {looked} rules holds"),
        };
        let evidence = match policy {
            Some(policy) => format!("{policy}; {rules}"),
            None => rules,
        };
        if let Some(decided) = answer.step(group.kind.name, matched, evidence) {
            answer.rule = decided.into();
            if matches!(end, End::Redirected(rule) if rule.to_port == Some(REFUSING)) {
                answer.outcome = Outcome::Refused;
            }
            return;
        }
    }
    match end {
        End::Redirected(_) => answer.rule = Verdict::Capture.as_str().into(),
        End::Decided(other) => {
            answer
                .drift
                .push(format!("a changed rule decides: {}", other.text));
            answer.step(rule::FOREIGN_RULE, true, other.text);
            answer.rule = rule::FOREIGN_RULE.into();
        }
        // Chains that are there but were emptied.
        End::Through => {
            let evidence = "the chains lead to no REDIRECT";
            answer.drift.push(evidence.into());
            answer.step(rule::NOT_ENROLLED, true, evidence);
            answer.rule = rule::NOT_ENROLLED.into();
        }
    }
}

fn is_ours(rule: &Rule<'_>) -> bool {
    rule.chain.starts_with(OURS)
}

fn grouped<'a>(case: &Case<'_>, visits: &'a [Visit<'a, '_>]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for visit in visits.iter().filter(|visit| is_ours(visit.rule)) {
        let Some(kind) = kind(case, visit.rule) else {
            continue;
        };
        let held = (visit.held == Holds::Yes).then_some(visit.rule.text);
        match groups.iter_mut().find(|group| group.kind.name == kind.name) {
            Some(group) => {
                group.looked += 1;
                group.held = group.held.or(held);
                group.last = visit.rule.text;
            }
            None => groups.push(Group {
                kind,
                looked: 1,
                held,
                last: visit.rule.text,
            }),
        }
    }
    // Where all prefixes are of the other family, nothing leads on from there.
    let reached =
        |visit: &Visit<'_, '_>| visit.held == Holds::Yes && visit.rule.target == ADDRESSES;
    let empty = !visits.iter().any(|visit| visit.rule.chain == ADDRESSES);
    if empty && visits.iter().any(reached) {
        groups.push(Group {
            kind: Kind::of(Verdict::AddressNotIncluded, true),
            looked: 0,
            held: None,
            last: "",
        });
    }
    groups
}

impl Kind {
    fn of(verdict: Verdict, leads_on: bool) -> Self {
        Self {
            name: verdict.as_str(),
            verdict: Some(verdict),
            leads_on,
        }
    }

    fn named(name: &'static str, leads_on: bool) -> Self {
        Self {
            name,
            verdict: None,
            leads_on,
        }
    }
}

/// What a rule of our chains is there for, read from its form.
fn kind(case: &Case<'_>, rule: &Rule<'_>) -> Option<Kind> {
    let has = |what: fn(&Match<'_>) -> bool| rule.matches.iter().any(|(_, found)| what(found));
    let net = rule.matches.iter().find_map(|(_, found)| match found {
        Match::Destination(net) | Match::Source(net) => Some(*net),
        _ => None,
    });
    Some(match rule.target {
        "REDIRECT" if rule.to_port == Some(REFUSING) => return None,
        "REDIRECT" => Kind::named(rule::GATE_STALE, true),
        "RETURN" if has(|found| matches!(found, Match::Mark { .. })) => {
            Kind::named(rule::OWN_SOCKET, false)
        }
        "RETURN" if has(|found| *found == Match::LocalDestination) => match case.direction {
            Direction::Outbound => Kind::of(Verdict::OwnAddress, false),
            Direction::Inbound => Kind::named(rule::NOT_ARRIVING, false),
        },
        "RETURN" if has(|found| matches!(found, Match::Ports(..))) => {
            Kind::of(Verdict::ExcludedPort, false)
        }
        // A prefix that covers everything is left out by iptables-save.
        "RETURN" if rule.matches.is_empty() => Kind::of(Verdict::ExcludedAddress, false),
        "RETURN" => Kind::of(address_kind(case, net?), false),
        "SHUNT_TO_IN" if has(|found| *found == Match::Listening) => {
            Kind::named(rule::NOT_LISTENING, true)
        }
        "SHUNT_TO_IN" => return None,
        // From the first chain of a direction the ports lead on, from the next the addresses.
        target if target.starts_with(OURS) => {
            let ports = rule.chain == "SHUNT_OUTPUT" || rule.chain == "SHUNT_PREROUTING";
            let verdict = match ports {
                true => Verdict::PortNotIncluded,
                false => Verdict::AddressNotIncluded,
            };
            Kind::of(verdict, true)
        }
        _ => return None,
    })
}

/// Why addresses in `net` are left alone.
fn address_kind(case: &Case<'_>, net: ipnet::IpNet) -> Verdict {
    let ends: [IpAddr; 2] = [net.network(), net.broadcast()];
    match ends.map(never) {
        [Some(first), Some(last)] if first == last => first,
        _ if case
            .rules
            .own
            .iter()
            .any(|own| ipnet::IpNet::from(*own) == net) =>
        {
            Verdict::OwnAddress
        }
        _ => Verdict::ExcludedAddress,
    }
}

/// From the rule to what happens, and whether that is what was meant.
fn settle(
    case: &Case<'_>,
    enrolment: &Enrolment,
    answer: &mut Explanation,
) -> Result<(), InterceptError> {
    answer.listener = match enrolment.listener(case.direction, case.family()) {
        Some(listener) => listens(enrolment, listener.spec.addr)?,
        None => Condition::new(false, "the agent has no listener of this family"),
    };
    let to_capture = answer.rule == Verdict::Capture.as_str();
    let by_policy =
        to_capture || [rule::GATE_STALE, rule::NOT_LISTENING].contains(&answer.rule.as_str());
    let arrives = answer.rule != rule::NOT_ARRIVING;
    let configured = case.configured();
    if arrives && by_policy != (configured == Verdict::Capture) {
        answer.drift.push(format!(
            "the rules in the kernel say {}, the configured policy says {}",
            answer.rule,
            configured.as_str()
        ));
    }
    if !to_capture {
        return Ok(());
    }
    let listener = answer.listener.clone();
    let gone = listener.holds != Some(true);
    // REDIRECT does not ask: without a listener the kernel refuses.
    answer.outcome = match answer.step(rule::LISTENER_GONE, gone, listener.evidence) {
        Some(decided) => {
            answer.rule = decided.into();
            Outcome::Refused
        }
        None => Outcome::Captured,
    };
    if answer.outcome == Outcome::Captured {
        answer.path = Some(DataPath::Copy);
        let captured = enrolment.captured.of(case.direction);
        let reason = match captured.find(case.destination) {
            Some(listener) => served_by(listener),
            None => "iptables mode accelerates nothing".into(),
        };
        answer.path_reason = Some(reason);
    }
    Ok(())
}
