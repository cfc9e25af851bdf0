//! What would happen to a connection: the question goes to whoever steers the workload.

use shunt_core::explain::{Explanation, Inquiry, rule};
use shunt_core::status::StatusMode;
use shunt_core::workload::Mode;

use super::Supervisor;
use super::lifecycle::{Phase, Workload};
use crate::ipc::Unexplained;

impl Supervisor {
    /// # Errors
    /// There is no such workload, or the kernel could not be asked.
    pub(super) fn explain(&mut self, inquiry: &Inquiry) -> Result<Explanation, Unexplained> {
        let workload = named(self.workloads.values(), &inquiry.workload)?;
        let serving = match &workload.phase {
            Phase::Serving { serving, .. } => serving,
            Phase::Waiting { reason, .. } => return Ok(not_served(workload, inquiry, reason)),
        };
        let backend = self
            .backends
            .get(serving.mode)
            .map_err(Unexplained::Failed)?;
        let mut answer = backend
            .explain(&serving.enrolment, inquiry)
            .map_err(|error| Unexplained::Failed(error.chain()))?;
        answer.mode = match serving.mode {
            Mode::Ebpf => StatusMode::Ebpf,
            Mode::Iptables => StatusMode::Iptables,
        };
        answer.mode_reason.clone_from(&serving.mode_reason);
        Ok(answer)
    }
}

/// The one workload of this name, `namespace/name` or, where that is clear, `name`.
fn named<'a>(
    workloads: impl Iterator<Item = &'a Workload>,
    wanted: &str,
) -> Result<&'a Workload, Unexplained> {
    let fits = |workload: &&Workload| {
        let name = &workload.spec.name;
        name.name == wanted || name.to_string() == wanted
    };
    let found: Vec<&Workload> = workloads.filter(fits).collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(Unexplained::Unknown(format!("no workload {wanted}"))),
        several => {
            let names: Vec<String> = several
                .iter()
                .map(|one| one.spec.name.to_string())
                .collect();
            let names = names.join(", ");
            Err(Unexplained::Unknown(format!(
                "{wanted} may be one of {names}: say which"
            )))
        }
    }
}

fn not_served(workload: &Workload, inquiry: &Inquiry, reason: &str) -> Explanation {
    let mut answer = Explanation::begin(&workload.spec.name, inquiry, StatusMode::Off);
    answer.mode_reason = reason.to_owned();
    answer.rule = rule::NOT_ENROLLED.to_owned();
    answer.step(rule::NOT_ENROLLED, true, reason);
    answer
}
