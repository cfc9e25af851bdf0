//! The decision function's rules, looked up in `RULES`.

use aya_ebpf::maps::lpm_trie::Key;
use shunt_ebpf_common::decision::{
    Address, Direction, Marks, Question, Restricts, Rules, Verdict, decide,
};
use shunt_ebpf_common::maps::{Destination, RuleKey, RuleMarks, Workload};

use crate::maps::RULES;

pub struct WorkloadRules<'a> {
    pub workload: &'a Workload,
    pub direction: Direction,
}

impl WorkloadRules<'_> {
    #[inline(always)]
    fn marks(&self, bits: u32, key: RuleKey) -> Marks {
        Marks(RULES.get(Key::new(bits, key)).copied().unwrap_or(0))
    }
}

impl Rules for WorkloadRules<'_> {
    #[inline(always)]
    fn restricts(&self) -> Restricts {
        self.workload.restricts(self.direction)
    }

    #[inline(always)]
    fn port(&self, port: u16) -> Marks {
        let key = RuleKey::port(self.workload.rules, self.direction as u32, port);
        self.marks(RuleKey::PORT_BITS, key)
    }

    #[inline(always)]
    fn address(&self, address: &Address) -> Marks {
        let key = RuleKey::address(self.workload.rules, self.direction as u32, address);
        self.marks(RuleKey::ADDRESS_BITS, key)
    }
}

/// [`Workload::ACCELERATE`] and the like, as they are for a server's port.
#[inline(always)]
pub fn acceleration(workload: &Workload, port: u16) -> RuleMarks {
    if workload.flags & Workload::ACCELERATION_BY_PORT != 0 {
        let key = RuleKey::acceleration(workload.rules, port);
        if let Some(marks) = RULES.get(Key::new(RuleKey::PORT_BITS, key)) {
            return *marks;
        }
    }
    workload.flags
}

/// Does the workload's policy have this come to the agent?
#[inline(always)]
pub fn captures(workload: &Workload, question: &Question) -> bool {
    let rules = WorkloadRules {
        workload,
        direction: question.direction,
    };
    decide(question, &rules) == Verdict::Capture
}

/// Is a listener of the configuration for what this workload connects to there?
#[inline(always)]
pub fn has_outbound_listener(workload: &Workload, to: &Destination) -> bool {
    let bits = acceleration(workload, to.port);
    if bits & Workload::PROXIED_OUTBOUND != 0 {
        return true;
    }
    let key = RuleKey::listener(workload.rules, to.port, &to.address);
    bits & Workload::PROXIED_BY_ADDRESS != 0
        && RULES.get(Key::new(RuleKey::ADDRESS_BITS, key)).is_some()
}

/// The same of what connects to this port of the workload.
#[inline(always)]
pub fn has_inbound_listener(workload: &Workload, port: u16) -> bool {
    acceleration(workload, port) & Workload::PROXIED_INBOUND != 0
}
