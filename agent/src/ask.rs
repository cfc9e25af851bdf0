//! Asking the running agent, for commands.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::de::DeserializeOwned;
use shunt_admin::{StatusCode, Telling};
use tokio::runtime::Runtime;

/// An agent that answers at all answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(4);
const SILENT: &str = "the agent did not answer within 4 s";

/// # Errors
/// No agent answers in time, or it says why it has no answer.
pub fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T> {
    runtime()?.block_on(async {
        let request = shunt_admin::client::request(socket, "GET", path, None);
        let answer = tokio::time::timeout(PATIENCE, request).await;
        let (status, body) = answer.context(SILENT)??;
        if !status.is_success() {
            return Err(refused(status, &body));
        }
        serde_json::from_slice(&body).context("the agent's answer cannot be read")
    })
}

/// Has something done, which may take as long as `patience`.
///
/// # Errors
/// No agent answers in time, or it says why it is not done.
pub fn post(socket: &Path, path: &str, patience: Duration) -> Result<()> {
    runtime()?.block_on(async {
        let request = shunt_admin::client::request(socket, "POST", path, None);
        let answer = tokio::time::timeout(patience, request).await;
        let (status, body) = answer.context("the agent did not answer in time")??;
        match status {
            StatusCode::OK => Ok(()),
            status => Err(refused(status, &body)),
        }
    })
}

/// As [`get`], of an answer that is told by and by.
pub async fn telling(socket: &Path, path: &str) -> Result<Telling> {
    let begun = tokio::time::timeout(PATIENCE, Telling::begin(socket, path)).await;
    let telling = begun.context(SILENT)??;
    let status = telling.status;
    if !status.is_success() {
        return Err(refused(status, &telling.rest().await?));
    }
    Ok(telling)
}

/// For one thread.
pub fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    Ok(builder.enable_all().build()?)
}

fn refused(status: StatusCode, body: &[u8]) -> anyhow::Error {
    let reason = String::from_utf8_lossy(body);
    anyhow!("{} ({status})", reason.trim())
}

/// For the query of a path.
pub fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}
