//! STATUS: can pods be added?

use shunt_cni_protocol::Request;

use crate::agent::{Agent, Unanswered};
use crate::config::NetworkConfig;
use crate::failure::{Code, Failure};
use crate::say;

/// A network of which no pod fails closed can do without the agent.
pub(crate) fn status(config: &NetworkConfig) -> Result<(), Failure> {
    config.needs_newest("STATUS")?;
    let settings = &config.settings;
    match Agent::new(&settings.socket, settings.timeout()).ask(&Request::Status, None) {
        Ok(()) => Ok(()),
        Err(error) if !settings.some_fail_closed() => {
            say(&format!("warning: pods would connect directly: {error}"));
            Ok(())
        }
        Err(error @ (Unanswered::NotRunning(_) | Unanswered::Late | Unanswered::No(_))) => {
            Err(Failure::new(Code::LimitedConnectivity, error.to_string()))
        }
        Err(error) => Err(Failure::new(Code::NotAvailable, error.to_string())),
    }
}
