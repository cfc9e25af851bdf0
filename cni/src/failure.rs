//! Errors as the runtime is told of them.

use serde_json::{Value, json};
use thiserror::Error;

/// From the specification, section "Error"; from 100 on, a plugin's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    IncompatibleVersion = 1,
    InvalidEnvironment = 4,
    InputOutput = 5,
    Undecodable = 6,
    InvalidConfig = 7,
    TryAgainLater = 11,
    NotAvailable = 50,
    /// Not available, and the network's containers may not connect.
    LimitedConnectivity = 51,
    /// The container is not enrolled, or not as it was added.
    NotEnrolled = 100,
}

#[derive(Debug, Error)]
#[error("{message}: {details}")]
pub(crate) struct Failure {
    pub(crate) code: Code,
    message: &'static str,
    details: String,
}

impl Failure {
    pub(crate) fn new(code: Code, details: impl Into<String>) -> Self {
        let message = match code {
            Code::IncompatibleVersion => "incompatible CNI version",
            Code::InvalidEnvironment => "invalid environment",
            Code::InputOutput => "cannot read the network configuration",
            Code::Undecodable => "cannot decode the network configuration",
            Code::InvalidConfig => "invalid network configuration",
            Code::TryAgainLater => "the pod is not enrolled; try again later",
            Code::NotAvailable => "pods cannot be enrolled",
            Code::LimitedConnectivity => {
                "pods cannot be enrolled, and those that are may not connect"
            }
            Code::NotEnrolled => "not as it was added",
        };
        let details = details.into();
        Self {
            code,
            message,
            details,
        }
    }

    /// What goes to stdout.
    pub(crate) fn told(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "code": self.code as u32,
            "msg": self.message,
            "details": self.details,
        })
    }
}
