//! `cargo xtask ci`: what `.ci/run` runs after the tests, and a table at the end.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::run::{cargo, loudly, say};
use crate::{build_ebpf, config_reference, deny, fuzz, tidy};

type Step = fn() -> Result<()>;

const STEPS: [(&str, Step); 8] = [
    ("fmt", || loudly(cargo().args(["fmt", "--all", "--check"]))),
    ("clippy", || {
        loudly(cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))
    }),
    // Private items are documented too, so links to them lead somewhere.
    ("doc", || {
        loudly(
            cargo()
                .env(
                    "RUSTDOCFLAGS",
                    "-D warnings -A rustdoc::private-intra-doc-links",
                )
                .args([
                    "doc",
                    "--workspace",
                    "--no-deps",
                    "--document-private-items",
                ]),
        )
    }),
    ("tidy", tidy::run),
    ("deny", deny::run),
    ("config-reference --check", || {
        config_reference::run(&config_reference::Args { check: true })
    }),
    ("fuzz --seconds 10", || {
        fuzz::run(&fuzz::Args {
            seconds: 10,
            target: None,
        })
    }),
    ("build-ebpf --check", || {
        build_ebpf::run(&build_ebpf::Args { check: true })
    }),
];

pub fn run() -> Result<()> {
    let mut table = Vec::new();
    let mut failed = 0;
    for (name, step) in STEPS {
        let start = Instant::now();
        let result = step();
        let word = match &result {
            Ok(()) => "ok",
            Err(error) => {
                say(&format!("{name}: {error:#}"));
                failed += 1;
                "FAILED"
            }
        };
        table.push(format!(
            "{name:<24} {word:<7} {:>4} s",
            start.elapsed().as_secs()
        ));
    }
    say(&table.join("\n"));
    if failed > 0 {
        bail!("{failed} steps failed");
    }
    Ok(())
}
