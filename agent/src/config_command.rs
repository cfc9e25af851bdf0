//! `shunt config validate` and `shunt config dump`.

use std::process::ExitCode;

use shunt_core::config::file;

use crate::cli::{self, ConfigArgs, ConfigCommand, EX_USAGE};

pub fn run(args: &ConfigArgs) -> ExitCode {
    let path = match &args.command {
        ConfigCommand::Validate { file } => file,
        ConfigCommand::Dump { config } => config,
    };
    match file::load(path) {
        Ok(config) => {
            match args.command {
                ConfigCommand::Validate { .. } => {
                    let count = config.workloads.len();
                    cli::answer(&format!("{}: right, {count} workloads", path.display()));
                }
                ConfigCommand::Dump { .. } => cli::answer(file::dump(&config).trim_end()),
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            cli::complain(&format!("the configuration is wrong\n{error}"));
            ExitCode::from(EX_USAGE)
        }
    }
}
