//! GC: withdraws the network's workloads whose containers the runtime does not know any more.

use shunt_cni_protocol::Request;

use crate::agent::{Agent, Unanswered};
use crate::config::NetworkConfig;
use crate::failure::{Code, Failure};

pub(crate) fn gc(config: &NetworkConfig) -> Result<(), Failure> {
    config.needs_newest("GC")?;
    let missing = || Failure::new(Code::InvalidConfig, "cni.dev/valid-attachments: missing");
    let valid = config.valid.clone().ok_or_else(missing)?;
    let settings = &config.settings;
    let agent = Agent::new(&settings.socket, settings.timeout());
    let network = config.network.clone();
    match agent.ask(&Request::Gc { network, valid }, None) {
        Ok(()) | Err(Unanswered::NotRunning(_)) => Ok(()),
        Err(error) => Err(Failure::new(Code::TryAgainLater, error.to_string())),
    }
}
