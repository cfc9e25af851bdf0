//! `shunt config validate` and `shunt config dump`.

use std::path::Path;
use std::process::ExitCode;

use shunt_core::config::file;

use crate::cli::{self, ConfigArgs, ConfigCommand, EX_USAGE};

pub fn run(args: &ConfigArgs) -> ExitCode {
    if let ConfigCommand::Validate { file, bootstrap } = &args.command
        && (*bootstrap || file::read_text(file).is_ok_and(|text| shunt_xds::is_bootstrap(&text)))
    {
        return validate_bootstrap(file);
    }
    let path = match &args.command {
        ConfigCommand::Validate { file, .. } => file,
        ConfigCommand::Dump { config } => config,
    };
    match file::load(path) {
        Ok(config) => {
            match args.command {
                ConfigCommand::Validate { .. } => {
                    let count = config.workloads.len();
                    cli::answer(&format!("{}: right, {count} workloads", path.display()));
                    if let Some(bootstrap) = &config.bootstrap {
                        return validate_bootstrap(bootstrap);
                    }
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

/// An Envoy bootstrap: all faults, or what of it has no effect.
fn validate_bootstrap(path: &Path) -> ExitCode {
    match shunt_xds::load(path) {
        Ok(loaded) => {
            let shown = path.display();
            for note in &loaded.notes {
                let line = note.line.map(|line| format!(":{line}")).unwrap_or_default();
                cli::answer(&format!("{shown}{line}: {}: {}", note.field, note.message));
            }
            let (listeners, clusters) = (loaded.bootstrap.listeners, loaded.bootstrap.clusters);
            cli::answer(&format!(
                "{shown}: right, {} listeners, {} clusters",
                listeners.len(),
                clusters.len()
            ));
            ExitCode::SUCCESS
        }
        Err(error) => {
            cli::complain(&format!("the configuration is wrong\n{error}"));
            ExitCode::from(EX_USAGE)
        }
    }
}
