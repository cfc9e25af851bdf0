//! What is captured of a workload, written as a set of rules that replaces the one before.

use shunt_core::flow::Direction;
use shunt_core::rules::PolicyRules;

use super::value::outbound_rules;
use super::{EbpfBackend, RETIREMENT, RuleEntry, object, trie};
use crate::{Enrolment, InterceptError};

impl EbpfBackend {
    /// Writes a policy as a set of its own. On failure, nothing of it stays.
    pub(super) fn write_rules(
        &mut self,
        enrolment: &Enrolment,
        set: u32,
    ) -> Result<Vec<RuleEntry>, InterceptError> {
        let outbound = outbound_rules(enrolment);
        let inbound = PolicyRules {
            policy: &enrolment.spec.inbound,
            own: &[],
        };
        let mut entries = trie::compile(set, Direction::Outbound, &outbound);
        entries.extend(trie::compile(set, Direction::Inbound, &inbound));
        let possible = self.possible(enrolment);
        entries.extend(trie::acceleration(set, &possible));
        entries.extend(possible.proxied.entries(set));
        self.policies.write(set, &enrolment.spec)?;
        for (index, (key, marks)) in entries.iter().enumerate() {
            if let Err(error) = self.rules.insert(key, marks, 0) {
                for (written, _) in &entries[..index] {
                    let _ = self.rules.remove(written);
                }
                self.policies.retire(set);
                return Err(object::failed("write the capture rules", &error));
            }
        }
        Ok(entries)
    }

    pub(super) fn remove_retired_rules(&mut self) {
        self.services.remove_retired(RETIREMENT);
        self.policies.remove_retired(RETIREMENT);
        let retired = std::mem::take(&mut self.retired);
        for (since, entries) in retired {
            if since.elapsed() < RETIREMENT {
                self.retired.push((since, entries));
                continue;
            }
            for (key, _) in entries {
                let _ = self.rules.remove(&key);
            }
        }
    }
}
