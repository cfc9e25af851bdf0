//! `shunt check`: what this host can do, each finding with its evidence and what it means.

use std::process::ExitCode;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use shunt_core::behaviour::Behaviour;
use shunt_core::config::file;
use shunt_intercept::ebpf::battery::{self, Trial};
use shunt_intercept::{Finding, ebpf, foreign, iptables};

use crate::cleanup;
use crate::cli::{self, CheckArgs, Format};
use crate::run;

#[derive(Serialize)]
struct Report {
    /// At least one mode works.
    usable: bool,
    ebpf: bool,
    iptables: bool,
    findings: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    mode: &'static str,
    name: &'static str,
    ok: bool,
    found: String,
    meaning: String,
}

pub fn run(args: &CheckArgs) -> ExitCode {
    let report = examine();
    match args.output.output {
        Format::Json => match serde_json::to_string_pretty(&report) {
            Ok(text) => cli::answer(&text),
            Err(error) => return cli::failed(&error.into()),
        },
        Format::Table => cli::answer(&table(&report)),
    }
    if report.usable {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn examine() -> Report {
    let (mut ebpf, iptables) = (ebpf::probe(), iptables::probe());
    let others = foreign::probe(cleanup::namespaces().into_values());
    let works = |findings: &[Finding]| {
        findings
            .iter()
            .all(|finding| finding.ok || !finding.required)
    };
    let (ebpf_works, iptables_works) = (works(&ebpf), works(&iptables));
    if ebpf_works {
        ebpf.extend(battery::findings(&learn()));
    }
    let rows = |mode, findings: Vec<Finding>| {
        findings.into_iter().map(move |finding| Row {
            mode,
            name: finding.name,
            ok: finding.ok,
            found: finding.found,
            meaning: finding.meaning,
        })
    };
    Report {
        usable: ebpf_works || iptables_works,
        ebpf: ebpf_works,
        iptables: iptables_works,
        findings: rows("ebpf", ebpf)
            .chain(rows("iptables", iptables))
            .chain(rows("both", others))
            .collect(),
    }
}

/// As the agent found it, if it has been asked; else by asking, which leaves nothing.
fn learn() -> Result<Behaviour, String> {
    let config = run::config_path(None).and_then(|path| file::load(&path).ok());
    let trial = Trial {
        state_dir: &config.unwrap_or_default().state_dir,
        remember: false,
    };
    trial.learn()
}

fn table(report: &Report) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["MODE", "WHAT", "OK", "FOUND", "MEANING"]);
    for row in &report.findings {
        let ok = if row.ok { "yes" } else { "NO" };
        table.add_row([row.mode, row.name, ok, &row.found, &row.meaning]);
    }
    let word = |works| if works { "works" } else { "does not work" };
    format!(
        "{table}\neBPF mode {}, iptables mode {}",
        word(report.ebpf),
        word(report.iptables)
    )
}
