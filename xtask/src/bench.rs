//! `cargo xtask bench`: what the agent costs, as ratios to no mesh at all in the same run.
//!
//! Cases are interleaved (a noisy moment hits all), repeated, and one of them is a second baseline: what differs
//! between the two baselines is noise. Nothing else should run on the machine.

mod cases;
mod connects;
mod cpu;
mod flood;
mod held;
mod http;
mod load;
mod memory;
mod patient;
mod report;
mod services;
mod stage;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use self::cases::{BASELINE, CASES};
use self::http::HttpStage;
use self::load::Part;
pub use self::load::{LoadArgs, load};
use self::report::Report;
use self::stage::Stage;
use crate::run::{answer, cargo, loudly, root, say};
use crate::{envoy, test};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// One short run: to see that it works, not to quote
    #[arg(long)]
    quick: bool,
    /// How many runs
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// Only these cases, beside the baseline
    #[arg(long, value_name = "CASE", value_delimiter = ',')]
    only: Vec<String>,
    /// Only how bytes move in bulk, and what a quiet neighbour notices of it
    #[arg(long)]
    bulk: bool,
    /// HTTP/1.1 through a proxy, beside real Envoys
    #[arg(long, conflicts_with = "bulk")]
    http: bool,
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
    let is_http = args.is_http();
    let names: Vec<&str> = match is_http {
        true => http::CASES.iter().map(|(name, _)| *name).collect(),
        false => CASES.iter().map(|case| case.name).collect(),
    };
    for name in &args.only {
        let known = names.join(", ");
        ensure!(
            names.contains(&name.as_str()),
            "no case `{name}`; there are {known}"
        );
    }
    test::install()?;
    let release = [
        "build",
        "--release",
        "--package",
        "shunt",
        "--package",
        "xtask",
    ];
    loudly(cargo().args(release))?;
    shunt_tests::agent::use_binary(root().join("target/release/shunt"));
    let report = match is_http {
        true => {
            envoy::fetch();
            let stage = HttpStage::set(if args.quick { 1 } else { 2 })?;
            interleaved(
                args,
                &http::CASES,
                |(name, _)| name,
                |(_, chain)| stage.measure(*chain),
            )?
        }
        false => {
            let seconds = if args.quick { "0.2" } else { "0.5" };
            let part = if args.bulk { Part::Bulk } else { Part::All };
            let stage = Stage::set(seconds, args.quick, part);
            interleaved(args, &CASES, |case| case.name, |case| stage.measure(case))?
        }
    };
    let table = report.table();
    answer(&table);
    if let Some(file) = &args.report {
        std::fs::write(file, table).with_context(|| file.display().to_string())?;
    }
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report.json(args.runs()))?;
        std::fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// Every wanted case, as often as asked.
fn interleaved<C>(
    args: &Args,
    cases: &[C],
    name: impl Fn(&C) -> &'static str,
    measure: impl Fn(&C) -> Result<Figures>,
) -> Result<Report> {
    let wanted = |case: &&C| {
        let name = name(case);
        name == BASELINE || args.only.is_empty() || args.only.iter().any(|only| only == name)
    };
    let runs = args.runs();
    let mut report = Report::default();
    let start = Instant::now();
    for number in 1..=runs {
        for case in cases.iter().filter(wanted) {
            let (seconds, name) = (start.elapsed().as_secs(), name(case));
            say(&format!("{seconds:>4} s  run {number} of {runs}: {name}"));
            report.add(name, measure(case)?);
        }
    }
    Ok(report)
}

impl Args {
    /// Asked for, or only cases are that there are with HTTP alone.
    fn is_http(&self) -> bool {
        let is_known = |name: &String| CASES.iter().any(|case| case.name == name);
        let is_with_http = |name: &String| http::CASES.iter().any(|(known, _)| known == name);
        let mut only = self.only.iter();
        self.http || only.any(|name| is_with_http(name) && !is_known(name))
    }

    fn runs(&self) -> usize {
        if self.quick { 1 } else { self.runs }
    }
}
