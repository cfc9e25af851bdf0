//! `shunt config validate` and `shunt config dump`.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use shunt_core::config::file::{self, ConfigError, Fault};
use shunt_xds::{Loaded, Texts};

use crate::cli::{self, ConfigArgs, ConfigCommand, EX_USAGE, Format};
use crate::dump::with_own;
use crate::{ask, run};

pub fn run(args: &ConfigArgs) -> ExitCode {
    match &args.command {
        ConfigCommand::Validate {
            bootstrap,
            output,
            file,
        } => {
            let is_bootstrap = *bootstrap
                || file::read_text(file).is_ok_and(|text| shunt_xds::is_bootstrap(&text));
            let verdict = match is_bootstrap {
                true => Verdict::of_bootstrap(file),
                false => Verdict::of_config(file),
            };
            verdict.tell(output.output)
        }
        ConfigCommand::Dump {
            running: true,
            socket,
            ..
        } => match ask::get::<Value>(socket, "/config_dump?include_eds") {
            Ok(dump) => told(&dump),
            Err(error) => cli::failed(&error),
        },
        ConfigCommand::Dump { output, config, .. } => dump(config, output.output),
    }
}

fn dump(path: &Path, format: Format) -> ExitCode {
    let read = file::load(path).and_then(|config| {
        let loaded = match format {
            Format::Table => Loaded::default(),
            Format::Json => run::read_bootstrap(&config, None, &Texts::new())?,
        };
        Ok((config, loaded))
    });
    match (read, format) {
        (Ok((config, loaded)), Format::Json) => told(&with_own(&loaded.dump, &config)),
        (Ok((config, _)), Format::Table) => {
            cli::answer(file::dump(&config).trim_end());
            ExitCode::SUCCESS
        }
        (Err(error), _) => {
            cli::complain(&format!("the configuration is wrong\n{error}"));
            ExitCode::from(EX_USAGE)
        }
    }
}

fn told(dump: &Value) -> ExitCode {
    cli::answer(&format!("{dump:#}"));
    ExitCode::SUCCESS
}

/// What is to be said of a file and of all that it names.
#[derive(Default)]
struct Verdict {
    faults: Vec<ConfigError>,
    /// Of each file, what has no effect.
    notes: Vec<(String, Vec<Fault>)>,
    /// Of each file, what is in it.
    right: Vec<(String, String)>,
}

impl Verdict {
    fn of_config(path: &Path) -> Self {
        let config = match file::load(path) {
            Ok(config) => config,
            Err(error) => {
                return Self {
                    faults: vec![error],
                    ..Self::default()
                };
            }
        };
        let count = config.workloads.len();
        let right = (path.display().to_string(), format!("{count} workloads"));
        let bootstrap = config.bootstrap.as_deref();
        let mut verdict = bootstrap.map_or_else(Self::default, Self::of_bootstrap);
        verdict.right.insert(0, right);
        verdict
    }

    fn of_bootstrap(path: &Path) -> Self {
        let loaded = match shunt_xds::check(path) {
            Ok(loaded) => loaded,
            Err(faults) => {
                return Self {
                    faults,
                    ..Self::default()
                };
            }
        };
        let shown = path.display().to_string();
        let (listeners, clusters) = (&loaded.bootstrap.listeners, &loaded.bootstrap.clusters);
        let what = format!("{} listeners, {} clusters", listeners.len(), clusters.len());
        let mut notes = vec![(shown.clone(), loaded.notes)];
        let mut right = vec![(shown, what)];
        for source in loaded.sources {
            let shown = source.wanted.path.display().to_string();
            if let Some(accepted) = source.accepted {
                let (kind, count) = (source.wanted.kind.word(), accepted.resources.len());
                let version = &accepted.version;
                let what = format!("{kind}, {count} resources, version_info `{version}`");
                right.push((shown.clone(), what));
                notes.push((shown, accepted.notes));
            }
        }
        Self {
            faults: Vec::new(),
            notes,
            right,
        }
    }

    fn tell(&self, format: Format) -> ExitCode {
        if format == Format::Json {
            let listed = |file: &str, faults: &[Fault]| -> Vec<Value> {
                let entry = |fault: &Fault| json!({"file": file, "line": fault.line, "field": fault.field, "message": fault.message});
                faults.iter().map(entry).collect()
            };
            let faults = self.faults.iter();
            let faults = faults.flat_map(|error| listed(error.source_name(), error.faults()));
            let notes = self.notes.iter();
            let notes = notes.flat_map(|(file, notes)| listed(file, notes));
            let verdict = json!({
                "right": self.faults.is_empty(),
                "faults": faults.collect::<Vec<_>>(),
                "no_effect": notes.collect::<Vec<_>>(),
            });
            cli::answer(&format!("{verdict:#}"));
        } else {
            for (file, notes) in &self.notes {
                for note in notes {
                    let line = note.line.map(|line| format!(":{line}")).unwrap_or_default();
                    cli::answer(&format!("{file}{line}: {}: {}", note.field, note.message));
                }
            }
            if self.faults.is_empty() {
                for (file, what) in &self.right {
                    cli::answer(&format!("{file}: right, {what}"));
                }
            } else {
                let faults: Vec<String> = self.faults.iter().map(ToString::to_string).collect();
                let faults = faults.join("\n");
                cli::complain(&format!("the configuration is wrong\n{faults}"));
            }
        }
        match self.faults.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(EX_USAGE),
        }
    }
}
