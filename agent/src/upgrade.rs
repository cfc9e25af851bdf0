//! `shunt upgrade`: has the running agent replace a part of itself.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use shunt_core::status::{AgentStatus, StatusReport};

use crate::ask;
use crate::cli::{self, Format, Part, UpgradeArgs};

/// Longer than the agent tries.
const PATIENCE: Duration = Duration::from_secs(35);

pub fn run(args: &UpgradeArgs) -> ExitCode {
    let Part::DataPlane = args.part;
    match upgrade(&args.socket) {
        Ok((before, after)) => {
            let text = match args.output.output {
                Format::Json => json!({"before": before, "after": after}).to_string(),
                Format::Table => format!(
                    "the data plane is {} now (shunt {}); {} lets its connections end",
                    after.worker_pid, after.worker_version, before.worker_pid
                ),
            };
            cli::answer(&text);
            ExitCode::SUCCESS
        }
        Err(error) => cli::failed(&error.context("the data plane is not replaced")),
    }
}

fn upgrade(socket: &Path) -> Result<(AgentStatus, AgentStatus)> {
    let look = || ask::get::<StatusReport>(socket, "/workloads").map(|report| report.agent);
    let before = look()?;
    ask::post(socket, "/upgrade/data-plane", PATIENCE)?;
    Ok((
        before,
        look().context("it was replaced, but does not say so")?,
    ))
}
