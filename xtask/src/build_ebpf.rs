//! `cargo xtask build-ebpf`: makes the committed object again, byte for byte, with pinned tools.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::run::{loudly, output, root, say};

const OBJECT: &str = "agent/intercept/src/ebpf/shunt-ebpf.o";
const RECORD: &str = "agent/intercept/src/ebpf/shunt-ebpf.o.txt";
const BPF_LINKER: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";
const LLVM_VERSION: &str = "22.1.8";
const RUSTC: &str = "1.95.0";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Change and install nothing; fail when the committed object is not what the sources give
    #[arg(long)]
    pub check: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let sources = source_hash()?;
    if args.check {
        return check(&sources);
    }
    install()?;
    let object = build()?;
    fs::copy(&object, root().join(OBJECT)).context("cannot write the object")?;
    fs::write(root().join(RECORD), record(&sources)).context("cannot write the record")?;
    say(&format!("wrote {OBJECT}"));
    Ok(())
}

/// The sources' hash always counts; bytes are compared where the very same tools are at hand.
fn check(sources: &str) -> Result<()> {
    let recorded =
        fs::read_to_string(root().join(RECORD)).context("the committed object has no record")?;
    ensure!(
        recorded == record(sources),
        "the eBPF sources changed but the committed object did not: run `cargo xtask build-ebpf`\n\
         recorded:\n{recorded}now:\n{}",
        record(sources)
    );
    if let Some(missing) = missing_tools() {
        say(&format!(
            "NOT compared byte for byte: {missing}; the sources' hash is right"
        ));
        return Ok(());
    }
    let built = fs::read(build()?)?;
    ensure!(
        built == fs::read(root().join(OBJECT))?,
        "the sources do not give the committed bytes"
    );
    say("the sources give the committed object, byte for byte");
    Ok(())
}

fn record(sources: &str) -> String {
    format!(
        "sources sha256 {sources}\nrustc {RUSTC}\nbpf-linker {BPF_LINKER}\nllvm {LLVM_VERSION}\n"
    )
}

/// Why the object cannot be rebuilt here, if it cannot.
fn missing_tools() -> Option<String> {
    let says =
        |program: &str, args: &[&str]| output(Command::new(program).args(args)).unwrap_or_default();
    let llvm = format!("{LLVM}/bin/llvm-config");
    for (program, args, want) in [
        ("rustc", &["--version"][..], RUSTC),
        ("bpf-linker", &["--version"], BPF_LINKER),
        (llvm.as_str(), &["--version"], LLVM_VERSION),
    ] {
        if !says(program, args).contains(want) {
            return Some(format!("{program} {want} is not installed"));
        }
    }
    match rust_src() {
        Ok(path) if path.join("library/core").is_dir() => None,
        _ => Some("rust-src is not installed".into()),
    }
}

fn rust_src() -> Result<PathBuf> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    Ok(Path::new(sysroot.trim()).join("lib/rustlib/src/rust"))
}

fn install() -> Result<()> {
    let version = output(Command::new("rustc").arg("--version"))?;
    ensure!(
        version.contains(RUSTC),
        "the object is pinned to rustc {RUSTC}, here is {version}"
    );
    let source = rust_src()?;
    if !source.join("library/core").is_dir()
        && loudly(Command::new("rustup").args(["component", "add", "rust-src"])).is_err()
    {
        let archive = root().join(format!(
            "../shared/toolchain/rust-src-{RUSTC}-library.tar.xz"
        ));
        ensure!(
            archive.is_file(),
            "rustup cannot download rust-src, and {} is not there",
            archive.display()
        );
        fs::create_dir_all(&source)?;
        loudly(
            Command::new("tar")
                .arg("xJf")
                .arg(archive)
                .arg("-C")
                .arg(&source),
        )?;
    }
    if !Path::new(LLVM).join("bin/llvm-config").is_file() {
        let packages = [
            "llvm-22-dev",
            "libpolly-22-dev",
            "zlib1g-dev",
            "libzstd-dev",
        ];
        loudly(Command::new("apt-get").args(["-qq", "update"]))?;
        loudly(
            Command::new("apt-get")
                .args(["-qq", "install", "-y", "--no-install-recommends"])
                .args(packages),
        )?;
    }
    if !output(Command::new("bpf-linker").arg("--version"))
        .is_ok_and(|version| version.contains(BPF_LINKER))
    {
        let mut cargo = Command::new("cargo");
        cargo.args([
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER,
            "--locked",
            "--no-default-features",
        ]);
        loudly(with_llvm(cargo.args(["--features", "llvm-22"])))?;
    }
    if let Some(missing) = missing_tools() {
        bail!("after installing: {missing}");
    }
    Ok(())
}

fn with_llvm(command: &mut Command) -> &mut Command {
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env("LLVM_PREFIX", LLVM)
        .env("PATH", format!("{LLVM}/bin:{path}"))
}

/// Builds into a folder of its own; the paths of this machine do not get into the object.
fn build() -> Result<PathBuf> {
    let package = root().join("ebpf");
    let target = root().join("target/ebpf");
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")))?;
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let flags = [
        "-Clinker=bpf-linker".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        format!("--remap-path-prefix={}=/shunt", root().display()),
        format!("--remap-path-prefix={home}=/cargo"),
        format!("--remap-path-prefix={}=/rust", sysroot.trim()),
    ];
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(&package)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .args([
            "build",
            "--quiet",
            "--release",
            "--locked",
            "--target",
            "bpfel-unknown-none",
            "-Zbuild-std=core",
        ])
        .arg("--target-dir")
        .arg(&target);
    loudly(with_llvm(&mut cargo))?;
    let built = target.join("bpfel-unknown-none/release/shunt-ebpf");
    let stripped = target.join("shunt-ebpf.o");
    // DWARF goes; BTF, which the kernel wants, is no debug section to this tool.
    let mut strip = Command::new(format!("{LLVM}/bin/llvm-strip"));
    loudly(strip.arg("-g").arg("-o").arg(&stripped).arg(&built))?;
    Ok(stripped)
}

/// Over every file that the object depends on, by name and content.
fn source_hash() -> Result<String> {
    let mut files = Vec::new();
    for part in [
        "ebpf/Cargo.toml",
        "ebpf/Cargo.lock",
        "ebpf/src",
        "ebpf/common/Cargo.toml",
        "ebpf/common/src",
    ] {
        collect(&root().join(part), &mut files)?;
    }
    files.retain(|path| !path.ends_with("tests.rs"));
    files.sort();
    let mut hash = Sha256::new();
    for path in files {
        let name = path.strip_prefix(root())?.display().to_string();
        let content = fs::read(&path).with_context(|| name.clone())?;
        hash.update(format!("{name} {}\n", content.len()));
        hash.update(content);
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            collect(&entry?.path(), files)?;
        }
    } else {
        files.push(path.to_owned());
    }
    Ok(())
}
