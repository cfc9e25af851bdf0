//! Shunt: one agent per node steers enrolled workloads' connections into itself and moves their bytes.
//!
//! `shunt run` is the supervisor, which holds the privileges; it starts `shunt worker`, the data plane, which holds
//! none. Everything else asks or cleans up.

mod ask;
mod battery;
mod blocks;
mod check;
mod cleanup;
mod cli;
mod cni_command;
mod config_command;
mod confined;
mod dump;
mod explain;
mod heartbeat;
mod ipc;
mod pods;
mod privileges;
mod replace;
mod run;
mod seccomp;
mod status;
mod supervisor;
mod tap;
mod upgrade;
mod will;
mod worker;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

#[global_allocator]
static MEMORY: blocks::Blocks = blocks::Blocks;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::report_usage(&error),
    };
    match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Worker => worker::run(),
        Command::Pods => pods::run(),
        Command::Battery(args) => battery::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Tap(args) => tap::run(&args),
        Command::Cleanup(args) => cleanup::run(&args),
        Command::Cni(args) => cni_command::run(&args),
        Command::Upgrade(args) => upgrade::run(&args),
        Command::Config(args) => config_command::run(&args),
    }
}
