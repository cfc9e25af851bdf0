//! `cargo xtask test`: on a fresh Debian machine with Rust and a C compiler, as root.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::run::{cargo, loudly, output, root, say};
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
    let mut tests = cargo();
    tests.env("SHUNT_BIN", root().join("target/debug/shunt"));
    tests.args(["test", "--workspace"]);
    tests.args(args.filter.as_deref());
    // Each end-to-end test has an agent, programs and waits of its own: more of them than cores are useful.
    tests.args(["--", "--test-threads=4"]);
    loudly(&mut tests)
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
