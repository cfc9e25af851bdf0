//! `cargo xtask bench`: what the agent costs, as ratios to no mesh at all in the same run.
//!
//! Cases are interleaved (a noisy moment hits all), repeated, and one of them is a second baseline: what differs
//! between the two baselines is noise. Nothing else should run on the machine.

mod load;
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use shunt_tests::{Agent, AgentBuilder, Pod, World};

pub use self::load::{LoadArgs, load};
use self::report::Report;
use crate::run::{answer, cargo, loudly, root, say};
use crate::test;

/// Agent mode and further setting per case; none is no mesh.
const CASES: [(&str, Option<(&str, &str)>); 6] = [
    ("baseline", None),
    ("baseline_again", None),
    ("iptables_copy", Some(("iptables", "splice_after: off"))),
    ("iptables_splice", Some(("iptables", SPLICE))),
    ("ebpf_copy", Some(("ebpf", "splice_after: off"))),
    ("ebpf_splice", Some(("ebpf", SPLICE))),
];

/// The default, said aloud.
const SPLICE: &str = "splice_after: 1MiB";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Three short runs: to see that it works, not to quote
    #[arg(long)]
    quick: bool,
    /// How many runs
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Only these cases, beside the baseline
    #[arg(long, value_name = "CASE", value_delimiter = ',')]
    only: Vec<String>,
    /// Write everything as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// One case's figures of one run, by metric.
type Figures = BTreeMap<String, f64>;

pub fn run(args: &Args) -> Result<()> {
    for name in &args.only {
        let known = CASES.iter().any(|(case, _)| case == name);
        ensure!(
            known,
            "no case `{name}`; there are {:?}",
            CASES.map(|(case, _)| case)
        );
    }
    test::install()?;
    loudly(cargo().args([
        "build",
        "--release",
        "--package",
        "shunt",
        "--package",
        "xtask",
    ]))?;
    shunt_tests::agent::use_binary(root().join("target/release/shunt"));
    let (runs, seconds) = if args.quick {
        (3, "0.2")
    } else {
        (args.runs, "0.5")
    };
    let world = World::new();
    let (client, server) = (world.pod(), world.pod());
    for pod in [&client, &server] {
        tune(pod);
    }
    let program = root().join("target/release/xtask").display().to_string();
    let _server = server.spawn(&program, &["bench-load", "server"]);
    server.wait_for_listener(load::CONNECT_PORT);
    let wanted = |case: &str| {
        case == "baseline" || args.only.is_empty() || args.only.iter().any(|only| only == case)
    };
    let mut report = Report::default();
    for number in 1..=runs {
        for (case, agent) in CASES.into_iter().filter(|(case, _)| wanted(case)) {
            say(&format!("run {number} of {runs}: {case}"));
            let agent =
                agent.map(|(mode, setting)| enrolled(&world, &client, &server, mode, setting));
            let mut figures = measure(&client, &program, &server.v4, seconds)?;
            if let Some(agent) = agent {
                figures.insert("rss_mb".into(), rss(&agent)?);
            }
            report.add(case, figures);
        }
    }
    let table = report.table();
    answer(&table);
    if let Some(file) = &args.report {
        std::fs::write(file, table).with_context(|| file.display().to_string())?;
    }
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report.json(runs))?;
        std::fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// Both ends: enough ports and queue for many short connections, and the congestion control most hosts use.
fn tune(pod: &Pod) {
    for setting in [
        "net.ipv4.ip_local_port_range=1024 65000",
        "net.ipv4.tcp_tw_reuse=1",
        "net.core.somaxconn=4096",
        "net.ipv4.tcp_congestion_control=cubic",
    ] {
        let done = pod.run("sysctl", &["-qw", setting]);
        if !done.status.success() {
            say(&format!("not set in the pods: {setting}"));
        }
    }
}

fn enrolled(world: &World, client: &Pod, server: &Pod, mode: &str, setting: &str) -> Agent {
    AgentBuilder::new(world, mode)
        .set(setting)
        .enrol("client", client, "")
        .enrol("server", server, "")
        .start()
}

fn measure(client: &Pod, program: &str, host: &str, seconds: &str) -> Result<Figures> {
    let text = client.says(
        program,
        &["bench-load", "client", "--host", host, "--seconds", seconds],
    );
    serde_json::from_str(&text).with_context(|| text)
}

/// Both processes, in megabytes of 1,000,000 bytes.
fn rss(agent: &Agent) -> Result<f64> {
    let mut total = 0.0;
    for pid in [Some(agent.pid()), agent.worker_pid()]
        .into_iter()
        .flatten()
    {
        let pages = Command::new("ps")
            .args(["-o", "rss=", "-p", &pid.to_string()])
            .output()?;
        let kib: f64 = String::from_utf8(pages.stdout)?
            .trim()
            .parse()
            .context("a number")?;
        total += kib * 1024.0 / 1e6;
    }
    Ok(total)
}
