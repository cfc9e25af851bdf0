//! `cargo xtask tidy`: what neither rustc nor clippy checks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, MetadataCommand};

use crate::run::{root, say};

/// A crate depends only on crates of a lower tier.
const TIERS: [(&str, u8); 10] = [
    ("shunt-ebpf-common", 0),
    ("shunt-core", 0),
    ("shunt-proxy", 1),
    ("shunt-intercept", 1),
    ("shunt-telemetry", 1),
    ("shunt-admin", 1),
    ("shunt-xds", 1),
    ("shunt-cni", 1),
    ("shunt-workload", 1),
    ("shunt", 2),
];

/// The one dependency inside a tier: the decision function's types are words that `core` passes on.
const WITHIN: [(&str, &str); 1] = [("shunt-core", "shunt-ebpf-common")];

const LONGEST_FILE: usize = 400;

/// Texts that must not stand in a source file. Written in two parts, so that this file passes.
const FORBIDDEN: [(&str, &str); 4] = [
    (concat!("#[all", "ow("), "use #[expect(lint, reason)]"),
    (concat!("tod", "o!("), "finish it"),
    (
        concat!("#[ign", "ore"),
        "a test that does not run proves nothing",
    ),
    (concat!("FIX", "ME"), "mend it or file an issue"),
];

pub fn run() -> Result<()> {
    let mut faults = tiers()?;
    for path in sources(&root())? {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let shown = path
            .strip_prefix(root())
            .unwrap_or(&path)
            .display()
            .to_string();
        faults.extend(judge(&shown, &text));
    }
    for fault in &faults {
        say(fault);
    }
    if !faults.is_empty() {
        bail!("{} faults", faults.len());
    }
    Ok(())
}

fn tiers() -> Result<Vec<String>> {
    let metadata = MetadataCommand::new()
        .current_dir(root())
        .exec()
        .context("cargo metadata")?;
    let tier = |name: &str| {
        TIERS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, tier)| *tier)
    };
    let mut faults = Vec::new();
    for package in metadata.workspace_packages() {
        let Some(own) = tier(&package.name) else {
            continue;
        };
        for dependency in &package.dependencies {
            let allowed = WITHIN.contains(&(package.name.as_str(), dependency.name.as_str()));
            if tier(&dependency.name).is_some_and(|theirs| theirs >= own) && !allowed {
                faults.push(format!(
                    "{} may not depend on {}: tiers",
                    package.name, dependency.name
                ));
            }
            let aya = dependency.name == "aya"
                && dependency.kind == DependencyKind::Normal
                && !dependency.optional;
            if aya && package.name.as_str() != "shunt-intercept" {
                faults.push(format!("{}: only shunt-intercept uses aya", package.name));
            }
        }
    }
    Ok(faults)
}

fn judge(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let lines = text.lines().count();
    if lines > LONGEST_FILE {
        faults.push(format!("{path}: {lines} lines, more than {LONGEST_FILE}"));
    }
    if path.ends_with("/mod.rs") {
        faults.push(format!(
            "{path}: name it after its module, beside the folder"
        ));
    }
    for (index, line) in text.lines().enumerate() {
        for (text, advice) in FORBIDDEN {
            if line.contains(text) {
                faults.push(format!("{path}:{}: {text}: {advice}", index + 1));
            }
        }
    }
    faults
}

fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(sources(&path)?);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_found() {
        let bad = format!("{}dead_code)]\n{}\n", FORBIDDEN[0].0, FORBIDDEN[1].0);
        assert_eq!(judge("a.rs", &bad).len(), 2);
        assert_eq!(judge("a/mod.rs", "").len(), 1);
        assert_eq!(judge("a.rs", &"\n".repeat(LONGEST_FILE + 1)).len(), 1);
        assert!(judge("a.rs", "fn main() {}\n").is_empty());
    }
}
