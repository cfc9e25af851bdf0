//! `cargo xtask deb`: the Debian package. What is in it: `[package.metadata.deb]` of agent/Cargo.toml.

use anyhow::Result;

use crate::run::{cargo, loudly, output, root, say};

const VERSION: &str = "3.8.0";

/// Says where it is. It is built of release builds of the agent and of the CNI plugin.
pub fn run() -> Result<()> {
    install()?;
    loudly(cargo().args([
        "build",
        "--release",
        "--package",
        "shunt",
        "--package",
        "shunt-cni",
    ]))?;
    loudly(cargo().args(["deb", "--package", "shunt", "--no-build"]))?;
    say(&format!(
        "the package is in {}",
        root().join("target/debian").display()
    ));
    Ok(())
}

/// cargo-deb, which tests use too.
pub fn install() -> Result<()> {
    if output(cargo().args(["deb", "--version"])).is_err() {
        let install = ["install", "cargo-deb", "--locked", "--version", VERSION];
        loudly(cargo().args(install))?;
    }
    Ok(())
}
