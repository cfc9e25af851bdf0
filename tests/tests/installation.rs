//! scripts/install.sh and what it installs.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use shunt_tests::agent::binary;
use shunt_tests::{cni, require};

fn scripts() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts"))
}

fn install(tree: &Path, prefix: &Path, more: &[&str]) -> Output {
    let script = tree.join("scripts/install.sh");
    let mut command = Command::new(script);
    command.arg("--prefix").arg(prefix).args(more);
    command.output().expect("runs")
}

#[test]
fn installs_keeps_the_configuration_and_removes() {
    let dir = tempfile::tempdir().expect("a directory");
    // A checkout with a built agent.
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("target/release")).expect("made");
    let copied = Command::new("cp")
        .arg("-r")
        .arg(scripts())
        .arg(&tree)
        .status();
    assert!(copied.expect("cp runs").success());
    let root = dir.path().join("root");
    let unbuilt = install(&tree, &root, &[]);
    assert_eq!(unbuilt.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unbuilt.stderr).contains("cargo build --release"));
    fs::copy(binary(), tree.join("target/release/shunt")).expect("copied");
    assert_eq!(install(&tree, &root, &[]).status.code(), Some(1));
    fs::copy(cni::binary(), tree.join("target/release/shunt-cni")).expect("copied");
    assert!(install(&tree, &root, &[]).status.success());
    let (agent, plugin) = (
        root.join("usr/local/bin/shunt"),
        root.join("usr/local/bin/shunt-cni"),
    );
    let config = root.join("etc/shunt/shunt.yaml");
    // Where it is looked for when nothing else is said: it runs, and only its agent is missing.
    let mut put = Command::new(&agent);
    put.args(["cni", "install", "--wait", "0s", "--socket"]);
    put.arg(dir.path().join("nobody.sock"));
    put.arg("--bin-dir")
        .arg(dir.path())
        .arg("--conf-dir")
        .arg(dir.path());
    let said = put.output().expect("runs").stderr;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("the agent is not ready"), "{said}");
    let valid = Command::new(&agent)
        .args(["config", "validate"])
        .arg(&config)
        .output();
    assert!(valid.expect("runs").status.success());
    let unit = fs::read_to_string(root.join("etc/systemd/system/shunt.service")).expect("there");
    for line in unit.lines().filter(|line| line.starts_with("Exec")) {
        assert!(
            line.contains("=/usr/local/bin/shunt ") && line.ends_with("/etc/shunt/shunt.yaml"),
            "{line}"
        );
    }
    fs::write(&config, "mode: iptables\n").expect("written");
    assert!(install(&tree, &root, &[]).status.success());
    assert!(install(&tree, &root, &["--remove"]).status.success());
    assert!(
        !agent.exists()
            && !plugin.exists()
            && !root.join("etc/systemd/system/shunt.service").exists()
    );
    assert_eq!(
        fs::read_to_string(config).expect("kept"),
        "mode: iptables\n"
    );
    assert_eq!(
        install(&tree, &root, &["--nonsense"]).status.code(),
        Some(64)
    );
}

/// The capabilities that the unit leaves are enough for both modes.
#[test]
fn the_units_capabilities_are_enough() {
    let prefix = require::with_capabilities(&require::service_capabilities());
    let output = require::prefixed(&prefix, &binary())
        .args(["check", "-o", "json"])
        .output()
        .expect("runs");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(
        report["ebpf"] == true && report["iptables"] == true,
        "{report:#}"
    );
}
