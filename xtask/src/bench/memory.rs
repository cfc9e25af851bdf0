//! What connections cost that nothing happens on: memory in and outside the kernel, and the agent's time.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shunt_tests::{Agent, Pod, wait};

use super::held::hold;
use super::load::DEAF_PORT;
use super::{Figures, cpu};

/// Enough that the noise of everything else on the machine is small beside them.
const CONNECTIONS: u32 = 4000;
const STUCK: u32 = 32;
/// What ended before gives its memory back for a moment yet: until the figure changes by less than this many KiB.
const SETTLED: f64 = 200.0;
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST: u32 = 30;
/// The goal; as many of them as the agent has descriptors for.
const IDLE: u64 = 10_000;
/// Descriptors of the agent that are no connection's.
const OTHERS: u64 = 1000;
/// Thousands of connections take a moment to end.
const ENDED: Duration = Duration::from_secs(60);

/// Where one end is, and the other.
#[derive(Clone, Copy)]
pub(super) struct Ends<'a> {
    pub(super) client: &'a Pod,
    pub(super) server: &'a Pod,
    pub(super) program: &'a str,
}

impl Ends<'_> {
    fn hold(&self, role: &str, count: u32) -> Result<shunt_tests::Running> {
        hold(self.client, self.program, role, &self.server.v4, count)
    }

    /// Adds what one idle connection to the echo takes, in KiB: of the kernel's slabs (both ends' sockets, conntrack, maps)
    /// and, with an agent, of its two processes.
    pub(super) fn per_connection(
        &self,
        figures: &mut Figures,
        agent: Option<&Agent>,
    ) -> Result<()> {
        let user = |agent: Option<&Agent>| agent.map(resident).transpose();
        let before = (slabs()?, user(agent)?);
        let held = self.hold("hold", CONNECTIONS)?;
        let after = (slabs()?, user(agent)?);
        drop(held);
        let each = |after: f64, before: f64| (after - before).max(0.0) / f64::from(CONNECTIONS);
        figures.insert("kernel_kib_per_connection".into(), each(after.0, before.0));
        if let (Some(after), Some(before)) = (after.1, before.1) {
            figures.insert("user_kib_per_connection".into(), each(after, before));
        }
        Ok(())
    }

    /// Adds what a connection holds of the machine's memory whose receiver does not read and whose sender writes until it
    /// may not any more: socket buffers, queues, pipes, the agent's buffers. And what of that is the agent's own.
    pub(super) fn stuck_receiver(
        &self,
        figures: &mut Figures,
        agent: Option<&Agent>,
    ) -> Result<()> {
        let _receiver = self.server.spawn(self.program, &["bench-load", "deaf"]);
        self.server.wait_for_listener(DEAF_PORT);
        let user = || agent.map_or(Ok(0.0), resident);
        let before = (settled()?, user()?);
        let held = self.hold("fill", STUCK)?;
        let after = (settled()?, user()?);
        drop(held);
        let each = |kib: f64| kib.max(0.0) * 1024.0 / 1e6 / f64::from(STUCK);
        figures.insert("stuck_receiver_mb".into(), each(before.0 - after.0));
        if agent.is_some() {
            figures.insert("stuck_receiver_user_mb".into(), each(after.1 - before.1));
        }
        Ok(())
    }

    /// Adds what share of a core the agent takes while connections are handed over and idle, and how many they are.
    pub(super) fn idle_handoff(
        &self,
        figures: &mut Figures,
        agent: &Agent,
        time: Duration,
    ) -> Result<()> {
        let worker = agent.worker_pid().context("no data plane")?;
        // Two for each.
        let descriptors = field(&format!("/proc/{worker}/limits"), "Max open files")? as u64;
        let count = IDLE.min(descriptors.saturating_sub(OTHERS) / 2);
        let before = handed_over(agent)?;
        let held = self.hold("hold", u32::try_from(count)?)?;
        // What they moved before they were idle is counted meanwhile.
        wait::pause(time);
        let spent = cpu::of_agent(agent)?;
        wait::pause(time);
        let spent = cpu::of_agent(agent)? - spent;
        // Of each both directions.
        let flows = (handed_over(agent)? - before) / 2.0;
        ensure!(
            flows >= 0.99 * count as f64,
            "{flows} of {count} connections were handed over"
        );
        drop(held);
        wait::until("the idle connections have ended", ENDED, || {
            (agent.workload("client")["connections"]["active"] == 0).then_some(())
        });
        figures.insert("idle_handoff_flows".into(), flows.min(count as f64));
        let percent = 100.0 * spent / time.as_secs_f64();
        figures.insert("idle_handoff_cpu_percent".into(), percent);
        Ok(())
    }
}

/// Resident memory of both processes, in KiB.
pub(super) fn resident(agent: &Agent) -> Result<f64> {
    let mut total = 0.0;
    for pid in [Some(agent.pid()), agent.worker_pid()]
        .into_iter()
        .flatten()
    {
        total += of_process(pid)?;
    }
    Ok(total)
}

/// What a process has of memory, in KiB.
pub(super) fn of_process(pid: u32) -> Result<f64> {
    field(&format!("/proc/{pid}/status"), "VmRSS:")
}

/// How many directions of connections so far.
fn handed_over(agent: &Agent) -> Result<f64> {
    let stats = agent.admin("GET", "/stats", "").1;
    let line = stats
        .lines()
        .find_map(|line| line.strip_prefix("kernel.handed_over:"));
    let number = line.context("no kernel.handed_over in /stats")?;
    Ok(number.trim().parse()?)
}

fn slabs() -> Result<f64> {
    field("/proc/meminfo", "Slab:")
}

fn settled() -> Result<f64> {
    let mut now = available()?;
    for _ in 0..LONGEST {
        wait::pause(PAUSE);
        let before = std::mem::replace(&mut now, available()?);
        if (now - before).abs() < SETTLED {
            break;
        }
    }
    Ok(now)
}

/// What could be had, in KiB: neither the kernel nor a process holds it, caches aside. Each core keeps free pages of its
/// own, some hundred megabytes after a flood, which are free all the same.
fn available() -> Result<f64> {
    let zones = fs::read_to_string("/proc/zoneinfo").context("/proc/zoneinfo")?;
    let kept = zones
        .lines()
        .filter_map(|line| line.trim().strip_prefix("count:"))
        .map(|pages| pages.trim().parse::<f64>())
        .sum::<Result<f64, _>>()?;
    let page = field("/proc/self/smaps", "KernelPageSize:")?;
    Ok(field("/proc/meminfo", "MemAvailable:")? + kept * page)
}

/// A line's first number; those of memory are in KiB, see proc(5).
fn field(file: &str, name: &str) -> Result<f64> {
    let text = fs::read_to_string(file).with_context(|| file.to_owned())?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .with_context(|| format!("{name} in {file}"))?
        .parse()
        .context("a number")
}
