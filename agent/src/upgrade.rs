//! `shunt upgrade`: has the running agent replace a part of itself.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use shunt_core::status::{AgentStatus, StatusReport};

use crate::ask;
use crate::cli::{self, Format, Part, UpgradeArgs};

/// Longer than the agent tries.
const PATIENCE: Duration = Duration::from_secs(35);
/// Between looks at an agent that replaces itself.
const LOOK: Duration = Duration::from_millis(100);

pub fn run(args: &UpgradeArgs) -> ExitCode {
    match upgrade(&args.socket, args.part) {
        Ok((before, after)) => {
            let text = match args.output.output {
                Format::Json => json!({"before": before, "after": after}).to_string(),
                Format::Table => format!(
                    "shunt {}, pid {}; the data plane is {} now (shunt {}), {} lets its connections end",
                    after.version,
                    after.pid,
                    after.worker_pid,
                    after.worker_version,
                    before.worker_pid
                ),
            };
            cli::answer(&text);
            ExitCode::SUCCESS
        }
        Err(error) => cli::failed(&error.context("not upgraded")),
    }
}

fn upgrade(socket: &Path, part: Part) -> Result<(AgentStatus, AgentStatus)> {
    let before = look(socket)?;
    match part {
        Part::DataPlane => {
            ask::post(socket, "/upgrade/data-plane", PATIENCE)?;
            let after = look(socket).context("it was upgraded, but does not say so")?;
            Ok((before, after))
        }
        Part::All => {
            ask::post(socket, "/upgrade/all", PATIENCE)?;
            let after = replaced(socket, &before)?;
            Ok((before, after))
        }
    }
}

/// The new supervisor has put a data plane of its own in the old one's place.
fn replaced(socket: &Path, before: &AgentStatus) -> Result<AgentStatus> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = look(socket);
        match now {
            Ok(now) if now.worker_pid != before.worker_pid => return Ok(now),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Ok(_) if Instant::now() >= deadline => {
                bail!("the agent still has the data plane that it had; its log says why")
            }
            Ok(_) | Err(_) => ask::runtime()?.block_on(async { tokio::time::sleep(LOOK).await }),
        }
    }
}

fn look(socket: &Path) -> Result<AgentStatus> {
    ask::get::<StatusReport>(socket, "/workloads").map(|report| report.agent)
}
