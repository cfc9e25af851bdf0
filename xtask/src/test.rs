//! `cargo xtask test`: on a fresh Debian machine with Rust and a C compiler, as root.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::run::{answer, cargo, loudly, output, root, say};
use crate::{deb, envoy};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only tests whose name contains this
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Install nothing
    #[arg(long)]
    no_install: bool,
}

/// A program that the tests use, and the Debian package it comes from.
const NEEDED: [(&str, &str); 30] = [
    ("ip", "iproute2"),
    ("iptables-nft-restore", "iptables"),
    ("nft", "nftables"),
    ("curl", "curl"),
    ("nginx", "nginx-light"),
    ("redis-server", "redis-server"),
    ("redis-cli", "redis-tools"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("haproxy", "haproxy"),
    ("sshd", "openssh-server"),
    ("ssh", "openssh-client"),
    ("iperf3", "iperf3"),
    ("socat", "socat"),
    ("bpftool", "bpftool"),
    ("dnsmasq", "dnsmasq-base"),
    ("dig", "bind9-dnsutils"),
    ("ping", "iputils-ping"),
    ("tcpdump", "tcpdump"),
    ("psql", "postgresql-client"),
    ("pg_lsclusters", "postgresql"),
    ("faketime", "faketime"),
    ("node", "nodejs"),
    ("javac", "default-jdk-headless"),
    ("host-local", "containernetworking-plugins"),
    ("podman", "podman"),
    ("runc", "runc"),
    ("containerd", "containerd"),
    ("busybox", "busybox-static"),
    ("systemd-analyze", "systemd"),
];

/// So many tests may fail for want of a core; more have another reason.
const BY_CHANCE: usize = 6;

pub fn run(args: &Args) -> Result<()> {
    ensure!(
        output(Command::new("id").arg("-u"))?.trim() == "0",
        "the tests make network namespaces: run them as root"
    );
    if !args.no_install {
        install()?;
        deb::install()?;
        envoy::fetch();
    }
    // The same binaries for all end-to-end tests. Not optimised: what they test is what happens, not how fast.
    loudly(cargo().args(["build", "--package", "shunt", "--package", "shunt-cni"]))?;
    let mut tests = everything();
    tests.args(args.filter.as_deref());
    // Each end-to-end test has an agent, programs and waits of its own: more of them than cores are useful.
    tests.args(["--", "--test-threads=4"]);
    let first = Verdict::of(&mut tests)?;
    let failed = first.failed.len();
    if first.whole && failed > 0 && failed <= BY_CHANCE {
        return once_more(&first);
    }
    answer(&format!("{} passed, {failed} failed", first.passed));
    ensure!(first.whole && failed == 0, "tests failed");
    Ok(())
}

/// What failed, alone: a machine that was busy is an excuse once.
fn once_more(first: &Verdict) -> Result<()> {
    let names: Vec<&str> = first.failed.iter().map(String::as_str).collect();
    say(&format!("once more, one at a time: {}", names.join(" ")));
    let mut tests = everything();
    tests
        .args(["--", "--test-threads=1", "--exact"])
        .args(&names);
    let again = Verdict::of(&mut tests)?;
    let failed = again.failed.len();
    let passed = first.passed + names.len() - failed;
    let flaky: Vec<&str> = names
        .into_iter()
        .filter(|name| !again.failed.contains(*name))
        .collect();
    if !flaky.is_empty() {
        let flaky = flaky.join(" ");
        say(&format!(
            "FLAKY, failed among others and passed alone: {flaky}"
        ));
    }
    answer(&format!("{passed} passed, {failed} failed"));
    let ran = again.passed + failed >= first.failed.len();
    ensure!(ran && again.whole && failed == 0, "tests failed");
    Ok(())
}

fn everything() -> Command {
    let mut tests = cargo();
    tests.env("SHUNT_BIN", root().join("target/debug/shunt"));
    tests.args(["test", "--workspace", "--no-fail-fast"]);
    tests
}

/// What a run of tests came to.
#[derive(Debug, Default)]
struct Verdict {
    passed: usize,
    failed: BTreeSet<String>,
    /// Programs that have begun and not told their result: one that crashed never does.
    running: usize,
    /// Every test that failed is known by name, and nothing else went wrong.
    whole: bool,
}

impl Verdict {
    /// Runs tests, and shows what they say meanwhile.
    fn of(tests: &mut Command) -> Result<Self> {
        say(&format!("$ {tests:?}"));
        let mut running = tests.stdout(Stdio::piped()).spawn()?;
        let said = running.stdout.take().context("no output")?;
        let mut verdict = Self::default();
        let mut counted = 0;
        for line in BufReader::new(said).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            answer(&line);
            counted += verdict.read(&line);
        }
        let succeeded = running.wait()?.success();
        verdict.whole = verdict.is_whole(counted, succeeded);
        Ok(verdict)
    }

    fn is_whole(&self, counted: usize, succeeded: bool) -> bool {
        self.running == 0 && counted == self.failed.len() && succeeded == (counted == 0)
    }

    /// How many failed, where a line says that of a whole file.
    fn read(&mut self, line: &str) -> usize {
        let name = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"));
        self.failed.extend(name.map(str::to_owned));
        let begins = line.strip_prefix("running ");
        self.running += usize::from(begins.is_some_and(|rest| rest.contains(" test")));
        let Some(counts) = line.strip_prefix("test result: ") else {
            return 0;
        };
        let count = |what: &str| {
            let before = counts.split(what).next().unwrap_or_default();
            let number = before.trim_end().rsplit(' ').next().unwrap_or_default();
            number.parse::<usize>().unwrap_or_default()
        };
        self.running = self.running.saturating_sub(1);
        self.passed += count(" passed;");
        count(" failed;")
    }
}

/// Installs the Debian packages that are missing.
pub fn install() -> Result<()> {
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    say(&format!("installing {}", missing.join(" ")));
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq");
        apt
    };
    loudly(apt().arg("update"))?;
    loudly(
        apt()
            .args(["install", "-y", "--no-install-recommends"])
            .args(missing),
    )
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let directories = path
        .split(':')
        .chain(["/usr/sbin", "/sbin", "/usr/lib/cni"]);
    directories
        .into_iter()
        .any(|directory| std::path::Path::new(directory).join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_and_named() {
        let mut verdict = Verdict::default();
        let said = [
            "running 13 tests",
            "test a::b ... ok",
            "test a::c ... FAILED",
            "src/x.rs ... FAILED",
            "test result: FAILED. 12 passed; 1 failed; 0 ignored; 0 measured; 3 filtered out; finished in 1.20s",
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ];
        let counted: usize = said.iter().map(|line| verdict.read(line)).sum();
        assert_eq!((verdict.passed, counted), (15, 1));
        assert_eq!(Vec::from_iter(&verdict.failed), ["a::c"]);
        assert!(verdict.is_whole(1, false));
        verdict.read("running 4 tests");
        assert!(!verdict.is_whole(1, false), "one crashed beside it");
    }
}
