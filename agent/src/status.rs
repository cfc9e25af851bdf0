//! `shunt status`: asks the running agent.

use std::process::ExitCode;

use comfy_table::{Table, presets};
use shunt_core::status::{
    AgentStatus, PodsStatus, StatusMode, StatusReport, WorkloadState, WorkloadStatus,
};

use crate::ask;
use crate::cli::{self, Format, StatusArgs};

pub fn run(args: &StatusArgs) -> ExitCode {
    match ask::get::<StatusReport>(&args.socket, "/workloads") {
        Ok(report) => {
            match args.output.output {
                Format::Json => match serde_json::to_string_pretty(&report) {
                    Ok(text) => cli::answer(&text),
                    Err(error) => return cli::failed(&error.into()),
                },
                Format::Table => cli::answer(&table(&report)),
            }
            ExitCode::SUCCESS
        }
        Err(error) => cli::failed(&error),
    }
}

fn table(report: &StatusReport) -> String {
    let agent = &report.agent;
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "WORKLOAD",
        "STATE",
        "MODE",
        "ACTIVE",
        "TOTAL",
        "BYTES",
        "LISTENERS",
        "WHY",
    ]);
    for workload in &report.workloads {
        table.add_row(row(workload));
    }
    let pods = agent.pods.as_ref().map(pods).unwrap_or_default();
    let upgraded = upgraded(agent);
    format!(
        "shunt {}, pid {} (data plane {}), up {} s\n{upgraded}{pods}{table}",
        agent.version, agent.pid, agent.worker_pid, agent.uptime_seconds
    )
}

/// What an upgrade has left.
fn upgraded(agent: &AgentStatus) -> String {
    let mut lines = String::new();
    if agent.worker_version != agent.version && !agent.worker_version.is_empty() {
        lines += &format!("the data plane is of shunt {}\n", agent.worker_version);
    }
    let retired: Vec<String> = agent.retired_pids.iter().map(u32::to_string).collect();
    if !retired.is_empty() {
        let retired = retired.join(", ");
        lines += &format!("earlier data planes let their connections end: {retired}\n");
    }
    lines
}

/// A line each for what the Kubernetes API wants, and what is wrong with that.
fn pods(pods: &PodsStatus) -> String {
    let from = match (&pods.outage, pods.listed) {
        (Some(reason), _) => format!("the Kubernetes API cannot be had: {reason}"),
        (None, true) => "as the Kubernetes API says".to_owned(),
        (None, false) => "as an earlier agent knew; the Kubernetes API has not told yet".to_owned(),
    };
    let mut lines = format!(
        "node {}: {} pods to enrol, {from}\n",
        pods.node, pods.wished
    );
    if !pods.not_found.is_empty() {
        lines += &format!("no process here yet: {}\n", pods.not_found.join(", "));
    }
    lines
}

fn row(workload: &WorkloadStatus) -> [String; 8] {
    let state = match workload.state {
        WorkloadState::Ready => "ready",
        WorkloadState::Pending => "pending",
        WorkloadState::Failed => "failed",
    };
    let mode = match workload.mode {
        StatusMode::Ebpf => "ebpf",
        StatusMode::Iptables => "iptables",
        StatusMode::Off => "off",
    };
    let bytes = &workload.bytes;
    let listeners: Vec<String> = workload
        .listeners
        .iter()
        .map(|listener| format!("{} {}", listener.direction, listener.address))
        .collect();
    [
        format!("{}/{}", workload.namespace, workload.name),
        state.to_owned(),
        mode.to_owned(),
        workload.connections.active.to_string(),
        workload.connections.total.to_string(),
        size(bytes.direct + bytes.handoff + bytes.sockmap + bytes.splice + bytes.copy),
        listeners.join("\n"),
        why(workload),
    ]
}

/// Why it is steered as it is, what is wrong now, and who else is there.
fn why(workload: &WorkloadStatus) -> String {
    let learned = learned(workload);
    let mut lines = vec![workload.mode_reason.as_str()];
    let wrong = Some(workload.state_reason.as_str());
    lines.extend(wrong.filter(|wrong| !wrong.is_empty() && *wrong != workload.mode_reason));
    lines.extend(workload.notes.iter().map(String::as_str));
    lines.extend(learned.as_deref());
    lines.join("\n")
}

/// What acceleration knows of its sockets.
fn learned(workload: &WorkloadStatus) -> Option<String> {
    let counted = workload.acceleration.iter();
    let counts: Vec<String> = counted
        .map(|(verdict, count)| format!("{count} {verdict}"))
        .collect();
    (!counts.is_empty()).then(|| format!("acceleration, by kind of socket: {}", counts.join(", ")))
}

/// Bytes for people, in powers of 1024.
pub fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut whole = bytes;
    let mut rest = 0;
    let mut unit = 0;
    while whole >= 1024 && unit + 1 < units.len() {
        rest = whole % 1024;
        whole /= 1024;
        unit += 1;
    }
    if unit == 0 {
        format!("{whole} B")
    } else {
        format!("{whole}.{} {}", rest * 10 / 1024, units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(5 << 30), "5.0 GiB");
    }
}
