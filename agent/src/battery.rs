//! `shunt battery`: the process that asks the kernel, and says what it saw as JSON.

use std::process::ExitCode;

use anyhow::Context;
use shunt_intercept::ebpf::battery;

use crate::cli::{self, BatteryArgs};

pub fn run(args: &BatteryArgs) -> ExitCode {
    let asked = battery::run(&args.cgroup, args.fault);
    let asked = asked.map_err(|error| anyhow::anyhow!(error.chain()));
    let told = asked.and_then(|behaviour| serde_json::to_string(&behaviour).context("as JSON"));
    match told {
        Ok(text) => {
            cli::answer(&text);
            ExitCode::SUCCESS
        }
        Err(error) => cli::failed(&error),
    }
}
