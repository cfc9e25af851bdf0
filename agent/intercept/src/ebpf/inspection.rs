//! Comparing what is attached and what the maps hold with what was put there.

use shunt_core::workload::OnFailure;

use super::{EbpfBackend, object};
use crate::drift::{Drift, Look, Part};
use crate::{Enrolment, InterceptError};

impl EbpfBackend {
    pub(super) fn inspect_installed(
        &mut self,
        enrolment: &Enrolment,
        look: Look,
    ) -> Result<Vec<Drift>, InterceptError> {
        let Some(enrolled) = self.enrolled.get_mut(&enrolment.id) else {
            return Ok(Vec::new());
        };
        let mut found = self.hooks.inspect(enrolment.id, &enrolled.cgroup, look)?;
        if let Some(inbound) = &mut enrolled.inbound {
            if !inbound.is_attached() {
                let netns = enrolment.netns.path().display();
                found.push(Drift::new(
                    Part::Links,
                    format!("sk_lookup is detached from {netns}"),
                ));
            }
            let filled = if look >= Look::Full {
                inbound.fill(enrolment)?
            } else {
                0
            };
            if filled > 0 {
                let what = format!("{filled} inbound listeners were not in SHUNT_LISTENERS");
                found.push(Drift::new(Part::Maps, what));
            }
        }
        match self.workloads.get(&enrolled.cookie, 0) {
            Ok(value) if value == enrolled.value => {}
            Ok(_) => found.push(Drift::new(
                Part::Maps,
                "the entry of SHUNT_WORKLOADS was changed",
            )),
            Err(_) => found.push(Drift::new(
                Part::Maps,
                "the entry of SHUNT_WORKLOADS is gone",
            )),
        }
        if look == Look::Close {
            let rules = &self.rules;
            let lost = enrolled
                .rules
                .iter()
                .filter(|(key, marks)| rules.get(key, 0).map_or(true, |now| now != *marks));
            let lost = lost.count();
            if lost > 0 {
                found.push(Drift::new(
                    Part::Maps,
                    format!("{lost} entries of SHUNT_RULES are gone or changed"),
                ));
            }
        }
        Ok(found)
    }

    pub(super) fn repair_installed(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError> {
        let Some(enrolled) = self.enrolled.get_mut(&enrolment.id) else {
            return Ok(());
        };
        let pinned = enrolment.spec.on_failure == OnFailure::Closed;
        let pins = self.pins.as_ref().filter(|_| pinned);
        for (key, marks) in &enrolled.rules {
            self.rules
                .insert(key, marks, 0)
                .map_err(|error| object::failed("write the capture rules", &error))?;
        }
        self.workloads
            .insert(enrolled.cookie, enrolled.value, 0)
            .map_err(|error| object::failed("write the workload", &error))?;
        if let Some(inbound) = &mut enrolled.inbound {
            inbound.fill(enrolment)?;
            if !inbound.is_attached() {
                inbound.attach(enrolment, pins)?;
            }
        }
        self.hooks.repair(enrolment.id, &enrolled.cgroup, pins)
    }
}
