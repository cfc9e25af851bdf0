//! `cargo xtask fuzz`: the targets in fuzz/, each for some time. They need no nightly compiler: the coverage comes from
//! LLVM's own pass, the rest is libFuzzer, built by the crate libfuzzer-sys.

use std::fs::{self, File};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run::{cargo, loudly, root, say};

const TARGETS: [&str; 5] = ["sniff", "route", "bootstrap", "agent", "cni"];

/// What libFuzzer needs to see of the code: which edges were taken, and what was compared with what.
const INSTRUMENTATION: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];
/// What stands before the number of inputs in its last words.
const RUNS: &str = "stat::number_of_executed_units:";
/// Bytes of an input.
const LONGEST: u32 = 16 << 10;
/// Seconds that one input may take, and megabytes of memory.
const LONGEST_RUN: u32 = 10;
const MOST_MEMORY: u32 = 2048;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// For each target
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub seconds: u64,
    /// sniff, route, bootstrap, agent or cni; default: all of them, one after the other
    #[arg(value_name = "TARGET", value_parser = TARGETS)]
    pub target: Option<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let directory = root().join("target/fuzz");
    let host = host()?;
    // With the platform named, the flags are not for build scripts.
    loudly(
        cargo()
            .env("RUSTFLAGS", INSTRUMENTATION.join(" "))
            .args(["build", "--quiet", "--release", "--manifest-path"])
            .arg(root().join("fuzz/Cargo.toml"))
            .args(["--target", &host, "--target-dir"])
            .arg(&directory),
    )?;
    let mut failed = Vec::new();
    for target in TARGETS {
        if args.target.as_deref().is_some_and(|only| only != target) {
            continue;
        }
        let built = directory.join(&host).join("release").join(target);
        let found = directory.join("found").join(target);
        let seeds = root().join("fuzz/corpus").join(target);
        let corpus = directory.join("corpus").join(target);
        for path in [&found, &corpus] {
            fs::create_dir_all(path).with_context(|| path.display().to_string())?;
        }
        let mut command = Command::new(built);
        command.arg(format!("-max_total_time={}", args.seconds));
        command.arg(format!("-max_len={LONGEST}"));
        command.arg(format!("-timeout={LONGEST_RUN}"));
        command.arg(format!("-rss_limit_mb={MOST_MEMORY}"));
        command.arg(format!("-artifact_prefix={}/", found.display()));
        command.args(["-print_final_stats=1", "-verbosity=0"]);
        // New inputs go to the first one; the second one is committed.
        command.arg(corpus).arg(seeds);
        let log = directory.join(format!("{target}.log"));
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        let status = command.stderr(file).status();
        let status = status.with_context(|| format!("cannot run {target}"))?;
        let text = fs::read(&log).with_context(|| log.display().to_string())?;
        let text = String::from_utf8_lossy(&text);
        if status.success() {
            let runs = text.lines().find_map(|line| line.strip_prefix(RUNS));
            let runs = runs.with_context(|| format!("{target} does not say what it ran"))?;
            say(&format!(
                "{target}: {} inputs in {} s",
                runs.trim(),
                args.seconds
            ));
        } else {
            let (log, found) = (log.display(), found.display());
            say(&format!(
                "{target}: {status}; see {log}, the input is in {found}"
            ));
            failed.push(target);
        }
    }
    ensure!(failed.is_empty(), "findings in {}", failed.join(", "));
    Ok(())
}

fn host() -> Result<String> {
    let text = crate::run::output(Command::new("rustc").arg("-vV"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    line.map(str::to_owned)
        .context("rustc does not say its host")
}
