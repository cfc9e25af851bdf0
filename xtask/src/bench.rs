//! `cargo xtask bench`: what the agent costs, as ratios to no mesh at all in the same run.
//!
//! Cases are interleaved (a noisy moment hits all), repeated, and one of them is a second baseline: what differs
//! between the two baselines is noise. Nothing else should run on the machine.

mod cases;
mod connects;
mod cpu;
mod flood;
mod held;
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

use self::cases::{BASELINE, CASES, Case};
use self::load::Part;
pub use self::load::{LoadArgs, load};
use self::report::Report;
use self::stage::Stage;
use crate::run::{answer, cargo, loudly, root, say};
use crate::test;

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
        let names = CASES.map(|case| case.name);
        ensure!(
            names.contains(&name.as_str()),
            "no case `{name}`; there are {}",
            names.join(", ")
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
        (1, "0.2")
    } else {
        (args.runs, "0.5")
    };
    let part = if args.bulk { Part::Bulk } else { Part::All };
    let stage = Stage::set(seconds, args.quick, part);
    let wanted = |case: &&Case| {
        case.name == BASELINE
            || args.only.is_empty()
            || args.only.iter().any(|only| only == case.name)
    };
    let mut report = Report::default();
    let start = Instant::now();
    for number in 1..=runs {
        for case in CASES.iter().filter(wanted) {
            let seconds = start.elapsed().as_secs();
            say(&format!(
                "{seconds:>4} s  run {number} of {runs}: {}",
                case.name
            ));
            report.add(case.name, stage.measure(case)?);
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
