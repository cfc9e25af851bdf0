//! CHECK: is the pod intercepted as when it was added?

use std::os::fd::AsFd;

use shunt_cni_protocol::Request;

use crate::agent::{Agent, Unanswered};
use crate::config::{NetworkConfig, OnFailure};
use crate::environment::Attachment;
use crate::failure::{Code, Failure};
use crate::say;

pub(crate) fn check(config: &NetworkConfig, attachment: &Attachment) -> Result<(), Failure> {
    config.needs_prev_result()?;
    let (netns, _) = attachment.netns()?;
    if config.exempts(attachment) {
        return Ok(());
    }
    let (settings, name) = (&config.settings, &attachment.workload);
    let agent = Agent::new(&settings.socket, settings.timeout());
    let request = Request::Check {
        attachment: attachment.told(&config.network),
    };
    match agent.ask(&request, Some(netns.as_fd())) {
        Ok(()) => Ok(()),
        Err(Unanswered::No(reason)) => Err(Failure::new(Code::NotEnrolled, reason)),
        Err(error) if settings.policy(attachment) == OnFailure::Open => {
            say(&format!("warning: {name} connects directly: {error}"));
            Ok(())
        }
        Err(error) => Err(Failure::new(Code::TryAgainLater, error.to_string())),
    }
}
