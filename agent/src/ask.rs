//! Asking the running agent, for commands.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

/// An agent that answers at all answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(4);

/// # Errors
/// No agent answers in time, or it says why it has no answer.
pub fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let request = shunt_admin::client::request(socket, "GET", path, None);
        let answer = tokio::time::timeout(PATIENCE, request).await;
        let (status, body) = answer.context("the agent did not answer within 4 s")??;
        if !status.is_success() {
            let reason = String::from_utf8_lossy(&body);
            bail!("{} ({status})", reason.trim());
        }
        serde_json::from_slice(&body).context("the agent's answer cannot be read")
    })
}
