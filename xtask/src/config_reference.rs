//! `cargo xtask config-reference`: docs/config.md, from the table that configurations are held against.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::run::{root, say};

const DOCUMENT: &str = "docs/config.md";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Change nothing; fail when the committed document is not what the table gives
    #[arg(long)]
    pub check: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let made = shunt_xds::reference::markdown();
    let path = root().join(DOCUMENT);
    if args.check {
        let committed = fs::read_to_string(&path).context(DOCUMENT)?;
        ensure!(
            committed == made,
            "{DOCUMENT} is not what the table gives: run `cargo xtask config-reference`"
        );
        return Ok(());
    }
    fs::write(&path, made).context(DOCUMENT)?;
    say(&format!("wrote {DOCUMENT}"));
    Ok(())
}
