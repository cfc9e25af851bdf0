//! Comparing what is attached and what the maps hold with what was put there.

use shunt_core::workload::OnFailure;

use super::inbound::Inbound;
use super::scopes::Place;
use super::{EbpfBackend, object};
use crate::drift::{Drift, Look, Part};
use crate::{Enrolment, InterceptError};

/// Rules of a workload that are looked at in one go, some microsecond each: of more, others the next time.
const RULES: usize = 100;

impl EbpfBackend {
    pub(super) fn inspect_installed(
        &mut self,
        enrolment: &Enrolment,
        look: Look,
    ) -> Result<Vec<Drift>, InterceptError> {
        let Some(enrolled) = self.enrolled.get_mut(&enrolment.id) else {
            return Ok(Vec::new());
        };
        let mut found = self.hooks.inspect(enrolment.id, &enrolled.cgroup)?;
        found.extend(self.dns.inspect(enrolment.id)?);
        if let Some(inbound) = &mut enrolled.inbound {
            if !inbound.is_attached() {
                let netns = enrolment.netns.path().display();
                found.push(Drift::new(
                    Part::Links,
                    format!("sk_lookup is detached from {netns}"),
                ));
            }
            let filled = inbound.fill(enrolment)?;
            if filled > 0 {
                let what = format!("{filled} inbound listeners were not in SHUNT_LISTENERS");
                found.push(Drift::new(Part::Maps, what));
            }
        }
        if let Some(pins) = &self.pins
            && enrolment.spec.on_failure == OnFailure::Closed
        {
            let inbound = enrolled.inbound.as_ref();
            let lost = usize::from(inbound.is_some_and(Inbound::has_lost_its_pin))
                + self.hooks.lost_pins(enrolment.id)
                + self.dns.lost_pins(enrolment.id);
            if lost > 0 || !pins.is_whole() {
                let what = format!("{lost} links are not pinned in {pins} any more");
                found.push(Drift::new(Part::Pins, what));
            }
        }
        match self.workloads.get(&enrolled.key, 0) {
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
        let count = match look {
            Look::Full => enrolled.rules.len().min(RULES),
            Look::Close => enrolled.rules.len(),
        };
        let turn = enrolled.rules.iter().cycle().skip(enrolled.rules_looked);
        let lost = turn
            .take(count)
            .filter(|(key, marks)| self.rules.get(key, 0).map_or(true, |now| now != *marks))
            .count();
        enrolled.rules_looked = (enrolled.rules_looked + count) % enrolled.rules.len().max(1);
        if lost > 0 {
            found.push(Drift::new(
                Part::Maps,
                format!("{lost} entries of SHUNT_RULES are gone or changed"),
            ));
        }
        Ok(found)
    }

    pub(super) fn repair_installed(&mut self, enrolment: &Enrolment) -> Result<(), InterceptError> {
        let closed = enrolment.spec.on_failure == OnFailure::Closed;
        if closed && self.pins.as_ref().is_some_and(|pins| !pins.is_whole()) {
            self.pins = None;
        }
        let pinned = closed && self.can_pin();
        let Some(enrolled) = self.enrolled.get_mut(&enrolment.id) else {
            return Ok(());
        };
        let pins = self.pins.as_ref().filter(|_| pinned);
        for (key, marks) in &enrolled.rules {
            self.rules
                .insert(key, marks, 0)
                .map_err(|error| object::failed("write the capture rules", &error))?;
        }
        self.workloads
            .insert(enrolled.key, enrolled.value, 0)
            .map_err(|error| object::failed("write the workload", &error))?;
        if let Some(inbound) = &mut enrolled.inbound {
            inbound.fill(enrolment)?;
            inbound.repair(enrolment, pins)?;
        }
        let place = Place::of(enrolment, &enrolled.cgroup);
        self.hooks.repair(enrolment.id, place, pins)?;
        self.dns.repair(enrolment.id, &enrolled.cgroup, pins)
    }
}
