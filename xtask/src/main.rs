//! The tasks of this repository; `cargo xtask --help`.

mod bench;
mod build_ebpf;
mod ci;
mod config_reference;
mod deb;
mod demo;
mod deny;
mod descriptors;
mod envoy;
mod fuzz;
mod run;
mod test;
mod tidy;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The tasks of this repository
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what the tests need and run them all
    #[command(after_help = "Examples:\n  cargo xtask test\n  cargo xtask test --filter iptables::")]
    Test(test::Args),
    /// Two pods, real traffic through the agent in both modes, a table of latencies
    Demo,
    /// Measure against no mesh, interleaved, as ratios in the same run
    #[command(
        after_help = "Examples:\n  cargo xtask bench\n  cargo xtask bench --quick --only ebpf_copy --json /tmp/bench.json"
    )]
    Bench(bench::Args),
    /// The bench's own load; runs inside a pod
    #[command(hide = true)]
    BenchLoad(bench::LoadArgs),
    /// Build the eBPF object, or check that the committed one is what the sources give
    #[command(after_help = "Examples:\n  cargo xtask build-ebpf\n  cargo xtask build-ebpf --check")]
    BuildEbpf(build_ebpf::Args),
    /// Write docs/config.md, or check that it is what the table of supported fields gives
    ConfigReference(config_reference::Args),
    /// Take the descriptors that agent/xds needs out of those of all of Envoy
    Descriptors(descriptors::Args),
    /// Feed parsers what nobody would write, and see that they refuse it in order
    #[command(
        after_help = "Examples:\n  cargo xtask fuzz\n  cargo xtask fuzz --seconds 600 bootstrap\n\nSeeds are in fuzz/corpus. What is found on the way is kept in target/fuzz/corpus, inputs that fail in\ntarget/fuzz/found: such an input becomes a unit test."
    )]
    Fuzz(fuzz::Args),
    /// Build the Debian package
    Deb,
    /// Check the tiers of the crates and the house rules
    Tidy,
    /// Everything that CI runs
    Ci,
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Test(args) => test::run(&args),
        Task::Demo => demo::run(),
        Task::Bench(args) => bench::run(&args),
        Task::BenchLoad(args) => bench::load(&args),
        Task::BuildEbpf(args) => build_ebpf::run(&args),
        Task::ConfigReference(args) => config_reference::run(&args),
        Task::Descriptors(args) => descriptors::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Deb => deb::run(),
        Task::Tidy => tidy::run(),
        Task::Ci => ci::run(),
    }
}
