//! What idle connections cost, in and outside the kernel.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use shunt_tests::{Agent, Pod, Running};

use super::Figures;
use crate::run::say;

/// Enough that the noise of everything else on the machine is small beside them.
const CONNECTIONS: u32 = 4000;

/// Resident memory of both processes, in KiB.
pub(super) fn resident(agent: &Agent) -> Result<f64> {
    let mut total = 0.0;
    for pid in [Some(agent.pid()), agent.worker_pid()]
        .into_iter()
        .flatten()
    {
        total += field(&format!("/proc/{pid}/status"), "VmRSS:")?;
    }
    Ok(total)
}

/// Adds what one idle connection from `client` to the echo at `host` takes, in KiB: of the kernel's slabs (both ends'
/// sockets, conntrack, maps) and, with an agent, of its two processes.
pub(super) fn per_connection(
    figures: &mut Figures,
    client: &Pod,
    program: &str,
    host: &str,
    agent: Option<&Agent>,
) -> Result<()> {
    let user = |agent: Option<&Agent>| agent.map(resident).transpose();
    let before = (slabs()?, user(agent)?);
    let held = hold(client, program, host)?;
    let after = (slabs()?, user(agent)?);
    drop(held);
    let each = |after: f64, before: f64| (after - before).max(0.0) / f64::from(CONNECTIONS);
    figures.insert("kernel_kib_per_connection".into(), each(after.0, before.0));
    if let (Some(after), Some(before)) = (after.1, before.1) {
        figures.insert("user_kib_per_connection".into(), each(after, before));
    }
    Ok(())
}

/// Connections that are open as long as the guard lives.
fn hold(client: &Pod, program: &str, host: &str) -> Result<Running> {
    let mut command = client.command(program);
    command.args([
        "bench-load",
        "hold",
        "--host",
        host,
        "--count",
        &CONNECTIONS.to_string(),
    ]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut held = Running(command.spawn().context("the holder starts")?);
    let out = held.0.stdout.take().context("a pipe")?;
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    ensure!(
        line.starts_with("open, "),
        "the connections could not be opened"
    );
    if line.trim() != "open, 0 failed" {
        say(&format!("{CONNECTIONS} idle connections: {}", line.trim()));
    }
    Ok(held)
}

fn slabs() -> Result<f64> {
    field("/proc/meminfo", "Slab:")
}

/// A line's number, which proc(5) gives in KiB.
fn field(file: &str, name: &str) -> Result<f64> {
    let text = fs::read_to_string(file).with_context(|| file.to_owned())?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .with_context(|| format!("{name} in {file}"))?
        .parse()
        .context("a number")
}
