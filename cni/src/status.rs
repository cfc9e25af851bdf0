//! STATUS: can pods be added?

use crate::agent::{Agent, Unanswered};
use crate::config::{NetworkConfig, OnFailure};
use crate::failure::{Code, Failure};
use crate::say;

/// A network that fails open can do without the agent.
pub(crate) fn status(config: &NetworkConfig) -> Result<(), Failure> {
    config.needs_newest("STATUS")?;
    let settings = &config.settings;
    match Agent::new(&settings.socket, settings.timeout()).is_answering() {
        Ok(()) => Ok(()),
        Err(error) if settings.on_failure == OnFailure::Open => {
            say(&format!("warning: pods would connect directly: {error}"));
            Ok(())
        }
        Err(error @ (Unanswered::NotRunning(_) | Unanswered::Late)) => {
            Err(Failure::new(Code::LimitedConnectivity, error.to_string()))
        }
        Err(error) => Err(Failure::new(Code::NotAvailable, error.to_string())),
    }
}
