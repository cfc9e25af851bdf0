//! Running programs, loudly.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The repository.
pub fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

/// Says what it runs, and fails when that fails.
pub fn loudly(command: &mut Command) -> Result<()> {
    say(&format!("$ {command:?}"));
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// stdout of a program that must succeed.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {stderr}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// `cargo` as it called us, in the repository.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// A line for people, on stderr.
#[expect(clippy::print_stderr, reason = "progress of a task")]
pub fn say(text: &str) {
    eprintln!("{text}");
}

/// A line of the answer, on stdout.
#[expect(clippy::print_stdout, reason = "what the task was asked for")]
pub fn answer(text: &str) {
    println!("{text}");
}
