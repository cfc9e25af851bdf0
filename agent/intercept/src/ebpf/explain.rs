//! What the hooks would say: their maps are read, and the decision function runs over them as it does in the kernel.

use std::cell::RefCell;
use std::net::SocketAddr;

use aya::maps::MapError;
use aya::maps::lpm_trie::{Key, LpmTrie};
use shunt_core::address::from_kernel;
use shunt_core::address::to_kernel;
use shunt_core::explain::{Condition, Explanation, Inquiry, Outcome, rule};
use shunt_core::flow::Direction;
use shunt_core::sockets::Family;
use shunt_core::status::StatusMode;
use shunt_ebpf_common::decision::{Address, Marks, Restricts, Rules, Verdict, decide_before};
use shunt_ebpf_common::maps::{GATE_STALE_NS, ListeningPort, RuleKey, RuleMarks, Workload};

use super::inbound::Inbound;
use super::{EbpfBackend, RuleEntry, clock, object, trie};
use crate::explain::{Case, Looked, listens};
use crate::local::is_local;
use crate::{Enrolment, InterceptError, cgroup};

type Rule = &'static str;

/// The maps as the hooks see them.
struct LiveRules<'a> {
    map: &'a LpmTrie<aya::maps::MapData, RuleKey, RuleMarks>,
    workload: Workload,
    direction: Direction,
    failure: RefCell<Option<MapError>>,
}

impl LiveRules<'_> {
    fn marks(&self, key: RuleKey, bits: u32) -> Marks {
        match self.map.get(&Key::new(bits, key), 0) {
            Ok(marks) => Marks(marks),
            Err(MapError::KeyNotFound) => Marks(0),
            Err(error) => {
                self.failure.replace(Some(error));
                Marks(0)
            }
        }
    }

    fn port_key(&self, port: u16) -> RuleKey {
        RuleKey::port(self.workload.rules, self.direction as u32, port)
    }

    fn address_key(&self, address: &Address) -> RuleKey {
        RuleKey::address(self.workload.rules, self.direction as u32, address)
    }
}

impl Rules for LiveRules<'_> {
    fn restricts(&self) -> Restricts {
        self.workload.restricts(self.direction)
    }
    fn port(&self, port: u16) -> Marks {
        self.marks(self.port_key(port), RuleKey::PORT_BITS)
    }
    fn address(&self, address: &Address) -> Marks {
        self.marks(self.address_key(address), RuleKey::ADDRESS_BITS)
    }
}

impl EbpfBackend {
    pub(super) fn explanation(
        &self,
        enrolment: &Enrolment,
        inquiry: &Inquiry,
    ) -> Result<Explanation, InterceptError> {
        let case = Case::new(enrolment, inquiry, &enrolment.addresses)?;
        let mut answer = Explanation::begin(&enrolment.spec.name, inquiry, StatusMode::Ebpf);
        answer.configured = Some(case.configured().as_str().to_owned());
        answer.gate = self.gate_condition()?;
        let key = enrolment.key();
        let live = match self.workloads.get(&key, 0) {
            Ok(workload) => Some(workload),
            Err(MapError::KeyNotFound) => None,
            Err(error) => return Err(object::failed("read the workload", &error)),
        };
        let decided = match live {
            Some(workload) => self.judge(&case, enrolment, workload, &mut answer)?,
            None => {
                let evidence = format!("SHUNT_WORKLOADS has no entry for its key {key}");
                answer.drift.push(evidence.clone());
                answer.step(rule::NOT_ENROLLED, true, evidence);
                rule::NOT_ENROLLED
            }
        };
        let closed = live.is_some_and(|live| live.flags & Workload::FAIL_CLOSED != 0);
        answer.outcome = match decided {
            rule if rule == Verdict::Capture.as_str() => Outcome::Captured,
            rule::GATE_STALE | rule::LISTENER_GONE if closed => Outcome::Refused,
            _ => Outcome::Direct,
        };
        if answer.outcome == Outcome::Captured {
            let (path, reason) = self.path(enrolment, inquiry);
            (answer.path, answer.path_reason) = (Some(path), Some(reason));
        }
        answer.rule = decided.to_owned();
        Ok(answer)
    }

    /// As `choose` in the connect hooks and `shunt_sk_lookup` go. Gives the rule that decides.
    fn judge(
        &self,
        case: &Case<'_>,
        enrolment: &Enrolment,
        workload: Workload,
        answer: &mut Explanation,
    ) -> Result<Rule, InterceptError> {
        let Workload { id, rules, .. } = workload;
        let mut evidence = format!("SHUNT_WORKLOADS has workload {id} with rule set {rules}");
        let mut hooked = true;
        if case.direction == Direction::Outbound {
            let cgroup = cgroup::of_workload(&enrolment.spec)?;
            hooked = self.hooks.is_connecting(&cgroup, case.family())?;
            let is = if hooked { "is" } else { "is not" };
            evidence += &format!("; the connect hook {is} attached to {}", cgroup.display());
        }
        if let Some(decided) = answer.step(rule::NOT_ENROLLED, !hooked, &evidence) {
            answer.drift.push(evidence);
            return Ok(decided);
        }
        let wanted = self.workload_value(enrolment, rules);
        if workload != wanted {
            answer.drift.push(format!(
                "SHUNT_WORKLOADS holds {workload:?}, the configuration means {wanted:?}"
            ));
        }
        let before = match case.direction {
            Direction::Outbound => before_outbound(case, enrolment, &workload, answer)?,
            Direction::Inbound => self.before_inbound(case, enrolment, &workload, answer)?,
        };
        if let Some(decided) = before {
            return Ok(decided);
        }
        let verdict = self.decide_live(case, enrolment, workload, answer)?;
        if verdict != Verdict::Capture {
            return Ok(verdict.as_str());
        }
        let (gate, listener) = (answer.gate.clone(), answer.listener.clone());
        let decided = answer
            .step(rule::GATE_STALE, gate.holds != Some(true), gate.evidence)
            .or_else(|| {
                let gone = listener.holds != Some(true);
                answer.step(rule::LISTENER_GONE, gone, listener.evidence)
            });
        Ok(decided.unwrap_or(Verdict::Capture.as_str()))
    }

    /// The decision function over the maps, each step with its entry.
    fn decide_live(
        &self,
        case: &Case<'_>,
        enrolment: &Enrolment,
        workload: Workload,
        answer: &mut Explanation,
    ) -> Result<Verdict, InterceptError> {
        let live = LiveRules {
            map: &self.rules,
            workload,
            direction: case.direction,
            failure: RefCell::default(),
        };
        let mut looked = Looked::default();
        let verdict = decide_before(&case.question, &live, &mut looked);
        let written = self.enrolled.get(&enrolment.id);
        let written = written.map_or(&[][..], |enrolled| enrolled.rules.as_slice());
        let (port, address) = (case.question.port, &case.question.address);
        let by_port = entry(written, &live.port_key(port), live.port(port));
        let by_address = entry(written, &live.address_key(address), live.address(address));
        if let Some(error) = live.failure.take() {
            return Err(object::failed("read the capture rules", &error));
        }
        for (step, holds) in looked.0 {
            let map = match step {
                Verdict::OwnAddress | Verdict::ExcludedAddress | Verdict::AddressNotIncluded => {
                    &by_address.text
                }
                Verdict::ExcludedPort | Verdict::PortNotIncluded => &by_port.text,
                _ => "",
            };
            let map = match map {
                "" => String::new(),
                text => format!("; {text}"),
            };
            answer.step(
                step.as_str(),
                holds,
                format!("{}{map}", case.policy_says(step)),
            );
        }
        answer
            .drift
            .extend([by_port.drift, by_address.drift].into_iter().flatten());
        let configured = case.configured();
        if verdict != configured {
            answer.drift.push(format!(
                "the kernel's rules say {}, the configured policy says {}",
                verdict.as_str(),
                configured.as_str()
            ));
        }
        Ok(verdict)
    }

    fn before_inbound(
        &self,
        case: &Case<'_>,
        enrolment: &Enrolment,
        workload: &Workload,
        answer: &mut Explanation,
    ) -> Result<Option<Rule>, InterceptError> {
        let (ip, port) = (case.destination.ip(), case.destination.port());
        let key = ListeningPort {
            workload: workload.id,
            port: u32::from(port),
        };
        let listening = match self.listening.count(&key) {
            Ok(count) => Condition::new(
                count.is_some(),
                match count {
                    Some(count) => format!("SHUNT_LISTENING counts {count} listeners on {port}"),
                    None => format!("SHUNT_LISTENING has nobody on {port} beyond loopback"),
                },
            ),
            Err(error) => return Err(object::failed("read the listening ports", &error)),
        };
        answer.listening = Some(listening.clone());
        let wanted = workload.flags & Workload::CAPTURE_INBOUND != 0;
        let attached = self
            .enrolled
            .get(&enrolment.id)
            .is_some_and(|enrolled| enrolled.inbound.as_ref().is_some_and(Inbound::is_attached));
        let listener = enrolment.listener(Direction::Inbound, case.family());
        answer.listener = match listener {
            Some(listener) => listens(enrolment, listener.spec.addr)?,
            None => Condition::new(false, "the agent has no inbound listener of this family"),
        };
        let local = is_local(&enrolment.netns, ip)?;
        let itself = case.client == ip || case.client.is_loopback() || ip.is_loopback();
        Ok(answer
            .step(rule::NOT_ARRIVING, !local, whose(ip, local))
            .or_else(|| {
                let evidence = format!("{} connects to {ip}", case.client);
                answer.step(rule::TO_ITSELF, itself, evidence)
            })
            .or_else(|| {
                let why = match enrolment.spec.shares_netns() {
                    true => ": others are there too, and it cannot tell whose a connection is",
                    false => "",
                };
                let evidence = format!(
                    "inbound capture is {} in SHUNT_WORKLOADS, sk_lookup is {} the namespace{why}",
                    if wanted { "on" } else { "off" },
                    if attached {
                        "attached to"
                    } else {
                        "not attached to"
                    }
                );
                answer.step(rule::NO_LISTENER, !(wanted && attached), evidence)
            })
            .or_else(|| {
                let nobody = listening.holds != Some(true);
                answer.step(rule::NOT_LISTENING, nobody, listening.evidence)
            }))
    }

    fn gate_condition(&self) -> Result<Condition, InterceptError> {
        let beat = self
            .gate
            .get(&0, 0)
            .map_err(|error| object::failed("read the gate", &error))?;
        let age = clock::kernel_ns().wrapping_sub(beat);
        let (age_ms, most_ms) = (age / 1_000_000, GATE_STALE_NS / 1_000_000);
        let evidence = match beat {
            0 => "SHUNT_GATE was never refreshed".to_owned(),
            _ => format!("SHUNT_GATE was refreshed {age_ms} ms ago, which holds for {most_ms} ms"),
        };
        Ok(Condition::new(age <= GATE_STALE_NS, evidence))
    }
}

fn before_outbound(
    case: &Case<'_>,
    enrolment: &Enrolment,
    workload: &Workload,
    answer: &mut Explanation,
) -> Result<Option<Rule>, InterceptError> {
    let (ports, loopback) = match case.family() {
        Family::V4 => (workload.outbound_ports_v4, "127.0.0.1"),
        Family::V6 => (workload.outbound_ports_v6, "::1"),
    };
    let (ip, port) = (case.destination.ip(), case.destination.port());
    let port = ports[Workload::spread(&to_kernel(ip), port)];
    let there = format!("SHUNT_WORKLOADS names the listener {loopback} port {port}");
    answer.listener = match loopback.parse() {
        Ok(ip) if port != 0 => listens(enrolment, SocketAddr::new(ip, port))?,
        _ => Condition::new(false, "SHUNT_WORKLOADS names no listener of this family"),
    };
    Ok(answer.step(rule::NO_LISTENER, port == 0, there))
}

pub(crate) fn whose(ip: std::net::IpAddr, local: bool) -> String {
    let is = if local { "is" } else { "is not" };
    format!("{ip} {is} an address of the workload's namespace")
}

/// The entry behind an answer of the trie.
struct Entry {
    text: String,
    drift: Option<String>,
}

/// The kernel does not say which entry answered; the agent knows what it wrote, and whether the answer is that.
fn entry(written: &[RuleEntry], key: &RuleKey, live: Marks) -> Entry {
    let found = trie::longest(written, key);
    let recorded = Marks(found.map_or(0, |(_, marks)| *marks));
    let text = match found {
        Some((key, _)) => format!("SHUNT_RULES[{}] = {}", shown(key), marks(live)),
        None if live == Marks(0) => "no entry of SHUNT_RULES covers it".to_owned(),
        None => format!("SHUNT_RULES = {}", marks(live)),
    };
    let drift = (live != recorded).then(|| {
        let (live, recorded) = (marks(live), marks(recorded));
        format!("{text}, but the agent wrote {recorded}: somebody changed the map (now {live})")
    });
    Entry { text, drift }
}

fn shown(entry: &Key<RuleKey>) -> String {
    let RuleKey { set, table, data } = entry.data();
    let bits = entry.prefix_len().saturating_sub(RuleKey::FIXED_BITS);
    let name = match table {
        RuleKey::OUTBOUND_PORTS => "outbound ports",
        RuleKey::INBOUND_PORTS => "inbound ports",
        RuleKey::OUTBOUND_ADDRESSES => "outbound addresses",
        _ => "inbound addresses",
    };
    let value = if table < RuleKey::OUTBOUND_ADDRESSES {
        let first = u32::from_be(data[0]) >> 16;
        match 1 << 16_u32.saturating_sub(bits) {
            1 => first.to_string(),
            size => format!("{first}-{}", first + (size - 1)),
        }
    } else {
        match from_kernel(Address(data)) {
            ip if ip.is_ipv4() && bits >= trie::MAPPED_BITS => {
                format!("{ip}/{}", bits - trie::MAPPED_BITS)
            }
            _ => format!(
                "{}/{bits}",
                std::net::Ipv6Addr::from(Address(data).octets())
            ),
        }
    };
    format!("set {set}, {name}, {value}")
}

fn marks(marks: Marks) -> String {
    let names = [
        (Marks::OWN, "own"),
        (Marks::EXCLUDED, "excluded"),
        (Marks::INCLUDED, "included"),
    ];
    let held: Vec<&str> = names
        .into_iter()
        .filter(|(bit, _)| marks.has(*bit))
        .map(|(_, name)| name)
        .collect();
    if held.is_empty() {
        "nothing".to_owned()
    } else {
        held.join(" and ")
    }
}
