//! DEL: as often as the runtime likes, also of what was never added. A pod's end does not depend on the agent: whoever
//! cannot be asked is a warning, what he has left is found by GC.

use crate::agent::{Agent, Unanswered};
use crate::config::NetworkConfig;
use crate::environment::Attachment;
use crate::failure::Failure;
use crate::{say, workload};

pub(crate) fn del(config: &NetworkConfig, attachment: &Attachment) -> Result<(), Failure> {
    let settings = &config.settings;
    let agent = Agent::new(&settings.socket, settings.timeout());
    match withdraw(&agent, attachment) {
        // Nothing is enrolled where no agent is.
        Ok(()) | Err(Unanswered::NotRunning(_)) => {}
        Err(error) => {
            let name = &attachment.workload;
            say(&format!("warning: {name} may be enrolled still: {error}"));
        }
    }
    Ok(())
}

/// The pod may live again already, in another container, when its last one is taken away.
fn withdraw(agent: &Agent<'_>, attachment: &Attachment) -> Result<(), Unanswered> {
    let all = agent.workloads()?;
    let is_ours = |other| workload::is_of(other, attachment);
    match all.iter().any(is_ours) {
        true => agent.withdraw(&attachment.workload),
        false => Ok(()),
    }
}
