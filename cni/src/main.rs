//! `shunt-cni`: the container runtime runs it after the plugins that make a pod's network. It asks the agent to enrol
//! the pod, and returns when the pod's first connection is intercepted.
//!
//! ```text
//! CNI_* ----> environment --.
//!                           +--> one verb --> agent (its socket for the plugin)
//! stdin ----> config -------'        '------> stdout: the previous plugin's result, or an error
//! ```

mod add;
mod agent;
mod check;
mod config;
mod del;
mod environment;
mod failure;
mod gc;
mod status;
mod version;
mod workload;

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::Value;

use crate::config::NetworkConfig;
use crate::environment::{Attachment, Command};
use crate::failure::Failure;

fn main() -> ExitCode {
    let input = config::read(io::stdin().lock());
    let version = version::spoken(input.as_ref().ok());
    let (answer, code) = match run(input) {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(failure) => {
            say(&failure.to_string());
            (Some(failure.told(version)), ExitCode::FAILURE)
        }
    };
    // A runtime that does not listen any more is told nothing.
    let _ = answer.map(|answer| writeln!(io::stdout(), "{answer}"));
    code
}

/// Everything that is wrong with the input is found before the agent is asked for anything.
fn run(input: Result<Value, Failure>) -> Result<Option<Value>, Failure> {
    let command = Command::read(|name| env::var_os(name))?;
    if command == Command::Version {
        return Ok(Some(version::answer(input.as_ref().ok())));
    }
    let config = NetworkConfig::parse(input?)?;
    let attachment = || Attachment::read(|name| env::var_os(name));
    match command {
        Command::Version => Ok(None),
        Command::Add => add::add(config, &attachment()?).map(Some),
        Command::Del => del::del(&config, &attachment()?).map(|()| None),
        Command::Check => check::check(&config, &attachment()?).map(|()| None),
        Command::Gc => gc::gc(&config).map(|()| None),
        Command::Status => status::status(&config).map(|()| None),
    }
}

/// The runtime's log, as a rule.
fn say(what: &str) {
    let _ = writeln!(io::stderr(), "shunt-cni: {what}");
}
