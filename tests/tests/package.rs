//! The Debian package, built of the binaries under test and installed on a host that systemd runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use shunt_tests::agent::binary;
use shunt_tests::systemd::Systemd;
use shunt_tests::{World, require, wait};

const SECONDS: Duration = Duration::from_secs(20);
const CONFIG: &str = "/etc/shunt/shunt.yaml";

/// As `cargo xtask deb` builds it.
fn built(dir: &Path) -> PathBuf {
    let target = dir.join("target");
    let release = target.join("release");
    fs::create_dir_all(&release).expect("a directory");
    for name in ["shunt", "shunt-cni"] {
        let from = binary().with_file_name(name);
        fs::copy(&from, release.join(name))
            .unwrap_or_else(|error| panic!("{}: {error}: build it first", from.display()));
    }
    let package = dir.join("shunt.deb");
    let mut cargo = Command::new("cargo");
    let output = cargo
        .args([
            "deb",
            "--package",
            "shunt",
            "--no-build",
            "--fast",
            "--no-dbgsym",
            "--output",
        ])
        .arg(&package)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .env("CARGO_TARGET_DIR", &target)
        .output()
        .expect("cargo runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said} (cargo install cargo-deb)");
    package
}

fn files(package: &Path) -> Vec<String> {
    let output = Command::new("dpkg-deb").arg("-c").arg(package).output();
    let text = String::from_utf8(output.expect("dpkg-deb runs").stdout).expect("text");
    let file = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let path = words.last()?.strip_prefix('.')?;
        (!path.ends_with('/')).then(|| format!("{} {path}", words[0]))
    };
    let mut files: Vec<String> = text.lines().filter_map(file).collect();
    files.sort();
    files
}

#[test]
fn installs_runs_upgrades_and_goes() {
    require::everything();
    let world = World::new();
    let host = world.pod();
    let package = built(world.dir.path());
    assert_eq!(
        files(&package),
        [
            "-rw-r--r-- /etc/shunt/shunt.yaml",
            "-rw-r--r-- /usr/lib/systemd/system/shunt.service",
            "-rw-r--r-- /usr/lib/systemd/system/shunt.service.d/10-path.conf",
            "-rw-r--r-- /usr/share/doc/shunt/bare-metal.md",
            "-rw-r--r-- /usr/share/doc/shunt/copyright",
            "-rwxr-xr-x /usr/bin/shunt",
            "-rwxr-xr-x /usr/bin/shunt-cni",
        ]
    );
    let systemd = Systemd::boot(&world, &host);
    let succeeds = |output: Output| {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        String::from_utf8(output.stdout).expect("text")
    };
    let run = |command: &[&str]| succeeds(systemd.run(command));
    let deb = package.display().to_string();
    let is = |name: &str, value: &str| {
        wait::until(&format!("{name} is {value}"), SECONDS, || {
            (systemd.property("shunt.service", name) == value).then_some(())
        });
    };
    let install = || run(&["dpkg", "-i", &deb]);
    install();
    is("ActiveState", "active");
    is("UnitFileState", "enabled");
    assert!(run(&["shunt", "status"]).contains("shunt "));
    // The plugin is where its installer looks for it.
    let cni = world.dir.path().join("cni").display().to_string();
    let [bin, net] = ["bin", "net"].map(|name| format!("{cni}/{name}"));
    for dir in [&bin, &net] {
        fs::create_dir_all(dir).expect("a directory");
    }
    let conflist = r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]}"#;
    fs::write(format!("{net}/10-net.conflist"), conflist).expect("written");
    run(&[
        "shunt",
        "cni",
        "install",
        "--bin-dir",
        &bin,
        "--conf-dir",
        &net,
    ]);
    assert!(Path::new(&bin).join("shunt-cni").exists());
    // What its user wrote stays, whatever comes and goes.
    let before = systemd.property("shunt.service", "MainPID");
    systemd.write(CONFIG, "mode: ebpf\n");
    install();
    is("ActiveState", "active");
    assert_ne!(systemd.property("shunt.service", "MainPID"), before);
    assert_eq!(run(&["cat", CONFIG]), "mode: ebpf\n");
    run(&["dpkg", "-r", "shunt"]);
    is("ActiveState", "inactive");
    assert_eq!(run(&["cat", CONFIG]), "mode: ebpf\n");
    assert!(!systemd.run(&["shunt", "status"]).status.success());
    run(&["dpkg", "-P", "shunt"]);
    assert!(!systemd.run(&["test", "-e", CONFIG]).status.success());
    let left = "find /etc/systemd /usr/lib/systemd /var/lib/systemd -name 'shunt*'";
    assert_eq!(run(&["sh", "-c", left]), "");
}
