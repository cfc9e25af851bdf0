//! `cargo deny`: licences, bans, sources; advisories where their database can be had.

use anyhow::Result;

use crate::run::{cargo, loudly, output, say};

const VERSION: &str = "0.20.2";

pub fn run() -> Result<()> {
    if output(cargo().args(["deny", "--version"])).is_err() {
        let install = ["install", "cargo-deny", "--locked", "--version", VERSION];
        loudly(cargo().args(install))?;
    }
    let check = ["deny", "--log-level", "error", "check"];
    loudly(cargo().args(check).args(["licenses", "bans", "sources"]))?;
    if output(cargo().args(["deny", "fetch", "db"])).is_err() {
        say("advisories NOT checked: their database cannot be had here");
        return Ok(());
    }
    loudly(cargo().args(check).arg("advisories"))
}
