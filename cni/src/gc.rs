//! GC: withdraws the network's workloads whose containers the runtime does not know any more.

use shunt_core::workload::WorkloadName;

use crate::agent::{Agent, Unanswered};
use crate::config::NetworkConfig;
use crate::failure::{Code, Failure};
use crate::workload::{CONTAINER, NETWORK};

pub(crate) fn gc(config: &NetworkConfig) -> Result<(), Failure> {
    config.needs_newest("GC")?;
    let missing = || Failure::new(Code::InvalidConfig, "cni.dev/valid-attachments: missing");
    let valid = config.valid.as_ref().ok_or_else(missing)?;
    let settings = &config.settings;
    let agent = Agent::new(&settings.socket, settings.timeout());
    match withdraw_others(&agent, &config.network, valid) {
        Ok(()) | Err(Unanswered::NotRunning(_)) => Ok(()),
        Err(error) => Err(Failure::new(Code::TryAgainLater, error.to_string())),
    }
}

/// All that can be; the error is of the last that cannot.
fn withdraw_others(agent: &Agent<'_>, network: &str, valid: &[String]) -> Result<(), Unanswered> {
    let mut outcome = Ok(());
    for workload in agent.workloads()? {
        let label = |name| workload.labels.get(name).map(String::as_str);
        let Some(container) = label(CONTAINER).filter(|_| label(NETWORK) == Some(network)) else {
            continue;
        };
        if !valid.iter().any(|valid| valid == container) {
            let name = WorkloadName {
                namespace: workload.namespace,
                name: workload.name,
            };
            if let Err(error) = agent.withdraw(&name) {
                outcome = Err(error);
            }
        }
    }
    outcome
}
