//! Seconds of the cores.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use shunt_tests::Agent;

/// The unit of /proc/stat, a hundredth of a second on every architecture that matters here.
const TICKS: f64 = 100.0;
/// Which columns of its first line are of cores that do nothing for us: idle, iowait, steal.
const NOTHING: [usize; 3] = [3, 4, 7];

/// How long all cores together are busy from now on, whoever with: also in interrupts, which no process is charged for.
/// The kernel counts idle time exactly, and busy time by sampling: so this is what is left of the idle time, good to two
/// hundredths of a second.
#[derive(Debug)]
pub(super) struct Busy {
    since: Instant,
    nothing: f64,
    cores: f64,
}

impl Busy {
    pub(super) fn begin() -> Result<Self> {
        let (nothing, cores) = nothing()?;
        Ok(Self {
            since: Instant::now(),
            nothing,
            cores,
        })
    }

    pub(super) fn seconds(&self) -> Result<f64> {
        let all = self.since.elapsed().as_secs_f64() * self.cores;
        let (nothing, _) = nothing()?;
        Ok((all - (nothing - self.nothing)).max(0.0))
    }
}

/// Seconds in which cores did nothing, and how many cores there are.
fn nothing() -> Result<(f64, f64)> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let mut lines = text.lines();
    let first = lines.next().context("an empty /proc/stat")?;
    let columns: Vec<f64> = first
        .split_whitespace()
        .skip(1)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let ticks = NOTHING
        .iter()
        .filter_map(|at| columns.get(*at))
        .sum::<f64>();
    let cores = lines.take_while(|line| line.starts_with("cpu")).count();
    Ok((ticks / TICKS, cores as f64))
}

/// Seconds that the agent's two processes have had so far, by the scheduler's own count.
pub(super) fn of_agent(agent: &Agent) -> Result<f64> {
    let worker = agent.worker_pid().context("no data plane")?;
    of_processes(&[agent.pid(), worker])
}

/// The same of any processes.
pub(super) fn of_processes(pids: &[u32]) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for pid in pids {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let file = thread?.path().join("schedstat");
            let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            let first = text.split_whitespace().next().context("a number")?;
            nanoseconds += first.parse::<f64>()?;
        }
    }
    Ok(nanoseconds / 1e9)
}
