//! ADD: the pod's network is made, its first program has not run yet.

use std::os::fd::AsFd;
use std::time::Duration;

use serde_json::Value;
use shunt_cni_protocol::Request;

use crate::agent::{Agent, Unanswered};
use crate::config::{NetworkConfig, OnFailure};
use crate::environment::Attachment;
use crate::failure::{Code, Failure};
use crate::{say, workload};

/// For taking back what the agent was asked for in vain.
const TAKING_BACK: Duration = Duration::from_millis(300);

/// Gives the previous plugin's result.
pub(crate) fn add(config: NetworkConfig, attachment: &Attachment) -> Result<Value, Failure> {
    let passed_on = config.needs_prev_result()?.clone();
    let (netns, path) = attachment.netns()?;
    if config.exempts(attachment) {
        return Ok(passed_on);
    }
    let (settings, name) = (&config.settings, &attachment.workload);
    let on_failure = settings.policy(attachment);
    let told = attachment.told(&config.network);
    let request = Request::Add {
        attachment: told.clone(),
        netns: path.into(),
        workload: workload::described(&config, attachment, on_failure)?,
    };
    let agent = Agent::new(&settings.socket, settings.timeout());
    match (agent.insist(&request, netns.as_fd()), on_failure) {
        (Ok(()), _) => Ok(passed_on),
        (Err(error), OnFailure::Open) => {
            say(&format!("warning: {name} connects directly: {error}"));
            Ok(passed_on)
        }
        // It noted nothing, and who has that name is somebody else's.
        (Err(error @ Unanswered::Refused(_)), OnFailure::Closed) => {
            Err(Failure::new(Code::InvalidConfig, error.to_string()))
        }
        (Err(error @ Unanswered::NotRunning(_)), OnFailure::Closed) => {
            Err(Failure::new(Code::TryAgainLater, error.to_string()))
        }
        (Err(error), OnFailure::Closed) => {
            // An agent that is late does what it was asked for, in the order in which it was.
            let back = Request::Del { attachment: told };
            let _ = Agent::new(&settings.socket, TAKING_BACK).ask(&back, None);
            Err(Failure::new(Code::TryAgainLater, error.to_string()))
        }
    }
}
