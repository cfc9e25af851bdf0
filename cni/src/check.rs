//! CHECK: is the pod intercepted as when it was added?

use shunt_core::status::WorkloadState;

use crate::agent::Agent;
use crate::config::{NetworkConfig, OnFailure};
use crate::environment::Attachment;
use crate::failure::{Code, Failure};
use crate::{say, workload};

pub(crate) fn check(config: &NetworkConfig, attachment: &Attachment) -> Result<(), Failure> {
    config.needs_prev_result()?;
    let netns = attachment.netns()?;
    if config.exempts(attachment) {
        return Ok(());
    }
    let (settings, name) = (&config.settings, &attachment.workload);
    let all = match Agent::new(&settings.socket, settings.timeout()).workloads() {
        Ok(all) => all,
        Err(error) if settings.on_failure == OnFailure::Open => {
            say(&format!("warning: {name} connects directly: {error}"));
            return Ok(());
        }
        Err(error) => return Err(Failure::new(Code::TryAgainLater, error.to_string())),
    };
    let Some(found) = all.iter().find(|other| workload::is_of(other, attachment)) else {
        return Err(wrong(format!("{name} is not enrolled for this container")));
    };
    if found.state != WorkloadState::Ready {
        let reason = &found.state_reason;
        return Err(wrong(format!("{name} is not intercepted: {reason}")));
    }
    if found.netns != netns {
        let other = &found.netns;
        return Err(wrong(format!(
            "{name} is enrolled in {other}, not in {netns}"
        )));
    }
    Ok(())
}

fn wrong(what: String) -> Failure {
    Failure::new(Code::NotEnrolled, what)
}
