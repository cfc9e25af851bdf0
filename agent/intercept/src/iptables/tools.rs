//! The iptables programs of the host: which there are, which a namespace uses, and running them in it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sched::{CloneFlags, unshare};
use shunt_core::sockets::Family;

use crate::netns::Netns;
use crate::{Finding, InterceptError};

/// Where administrators' programs are, also when PATH does not say so.
const SBIN: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

/// The two kernels behind the name iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    Nft,
    Legacy,
}

impl Variant {
    /// `verb` is "", "-save" or "-restore".
    pub(super) fn command(self, family: Family, verb: &str) -> String {
        let family = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let variant = match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        };
        format!("{family}-{variant}{verb}")
    }
}

/// Programs found on this host.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    nft: bool,
    legacy: bool,
    nft_program: Option<PathBuf>,
}

impl Tools {
    pub(super) fn find() -> Result<Self, InterceptError> {
        let has = |variant: Variant| which(&variant.command(Family::V4, "-restore")).is_some();
        let tools = Self {
            nft: has(Variant::Nft),
            legacy: has(Variant::Legacy),
            nft_program: which("nft"),
        };
        if tools.nft || tools.legacy {
            return Ok(tools);
        }
        Err(InterceptError::Unsupported(
            "neither iptables-nft-restore nor iptables-legacy-restore is installed (Debian package iptables): \
             iptables mode writes its rules with them; eBPF mode does not need them"
                .into(),
        ))
    }

    /// Where rules are already in legacy tables, ours must be there too: the two do not see each other.
    pub(super) fn choose(&self, netns: &Netns) -> Result<Variant, InterceptError> {
        let legacy_in_use = netns.enter(legacy_nat_in_use).unwrap_or(false);
        if self.legacy && (legacy_in_use || !self.nft) {
            Ok(Variant::Legacy)
        } else {
            Ok(Variant::Nft)
        }
    }

    /// Variants whose rules may be in a namespace.
    pub(super) fn variants(&self, netns: &Netns) -> Vec<Variant> {
        let legacy = self.legacy && netns.enter(legacy_nat_in_use).unwrap_or(false);
        let nft = self.nft.then_some(Variant::Nft);
        nft.into_iter()
            .chain(legacy.then_some(Variant::Legacy))
            .collect()
    }

    /// The nat table as text. Empty where the family does not exist.
    pub(super) fn save(
        &self,
        netns: &Netns,
        variant: Variant,
        family: Family,
    ) -> Result<String, InterceptError> {
        if variant == Variant::Legacy
            && !netns
                .enter(|| legacy_names(family).contains("nat"))
                .unwrap_or(false)
        {
            return Ok(String::new());
        }
        let program = variant.command(family, "-save");
        let mut command = command(&program)?;
        if variant == Variant::Legacy {
            command.args(["-t", "nat"]);
        }
        let output = run_in(netns, command, b"", &program)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // iptables-nft-save knows -t, but then complains where there is no such table.
        let nat = text.find("*nat").map(|at| &text[at..]).unwrap_or_default();
        let end = nat
            .find("COMMIT")
            .map_or(nat.len(), |at| at + "COMMIT\n".len());
        Ok(nat.get(..end).unwrap_or(nat).to_owned())
    }

    /// One transaction.
    pub(super) fn restore(
        &self,
        netns: &Netns,
        variant: Variant,
        family: Family,
        text: &str,
    ) -> Result<(), InterceptError> {
        let program = variant.command(family, "-restore");
        let mut command = command(&program)?;
        command.args(["--noflush", "-w", "5"]);
        run_in(netns, command, text.as_bytes(), &program)
            .map(|_| ())
            .map_err(explain)
    }

    /// Removes the nat table when nothing is in it any more: it came with our rules. A legacy table cannot be
    /// removed while its namespace lives.
    pub(super) fn drop_empty_table(
        &self,
        netns: &Netns,
        variant: Variant,
        family: Family,
    ) -> Result<(), InterceptError> {
        if variant == Variant::Legacy {
            return Ok(());
        }
        let saved = self.save(netns, variant, family)?;
        let untouched = |line: &str| {
            line.is_empty()
                || line.starts_with(['*', '#'])
                || line == "COMMIT"
                || line.contains(" ACCEPT ")
        };
        if saved.is_empty() || !saved.lines().all(untouched) {
            return Ok(());
        }
        let Some(nft) = &self.nft_program else {
            return Ok(());
        };
        let mut command = Command::new(nft);
        let family = match family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        command.args(["delete", "table", family, "nat"]);
        run_in(netns, command, b"", "nft").map(|_| ())
    }
}

/// Runs a program inside the namespace: a child starts where its parent's thread is.
fn run_in(
    netns: &Netns,
    mut command: Command,
    input: &[u8],
    program: &str,
) -> Result<Output, InterceptError> {
    netns
        .enter(|| feed(&mut command, input))
        .and_then(|output| output)
        .map_err(|error| InterceptError::io("run", program, error))
        .and_then(|output| checked(output, program))
}

fn feed(command: &mut Command, input: &[u8]) -> io::Result<Output> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ended early says why on stderr.
        let _ = stdin.write_all(input);
    }
    child.wait_with_output()
}

fn checked(output: Output, program: &str) -> Result<Output, InterceptError> {
    if output.status.success() {
        return Ok(output);
    }
    let message = String::from_utf8_lossy(&output.stderr)
        .trim()
        .replace('\n', "; ");
    Err(InterceptError::Program {
        program: program.to_owned(),
        message,
    })
}

/// Says what a failed transaction means, where that is known.
fn explain(error: InterceptError) -> InterceptError {
    match error {
        InterceptError::Program { program, message } if message.contains("recent") => {
            InterceptError::Unsupported(format!(
                "{program}: {message}: the `recent` match is missing, and without it the kernel could not let \
                 connections through when the agent dies; load xt_recent, or set on_failure: closed"
            ))
        }
        other => other,
    }
}

fn command(program: &str) -> Result<Command, InterceptError> {
    let path = which(program).ok_or_else(|| {
        InterceptError::io("find program", program, io::ErrorKind::NotFound.into())
    })?;
    Ok(Command::new(path))
}

fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut directories = path.split(':').chain(SBIN);
    directories.find_map(|directory| {
        let candidate = Path::new(directory).join(program);
        candidate.is_file().then_some(candidate)
    })
}

/// Of this thread's namespace.
fn legacy_nat_in_use() -> bool {
    [Family::V4, Family::V6]
        .into_iter()
        .any(|family| legacy_names(family).contains("nat"))
}

fn legacy_names(family: Family) -> String {
    let file = match family {
        Family::V4 => "ip_tables_names",
        Family::V6 => "ip6_tables_names",
    };
    fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default()
}

pub(super) fn probe() -> Vec<Finding> {
    let tools = Tools::find();
    let installed = Finding {
        name: "iptables",
        ok: tools.is_ok(),
        required: true,
        found: match &tools {
            Ok(tools) => format!("nft variant: {}, legacy variant: {}", word(tools.nft), word(tools.legacy)),
            Err(error) => error.chain(),
        },
        meaning: "the rules are written with iptables-restore; nft unless the namespace already has legacy tables".into(),
    };
    let nft = Finding {
        name: "nft",
        ok: which("nft").is_some(),
        required: false,
        found: which("nft").map_or("not installed".into(), |path| path.display().to_string()),
        meaning: "without it an empty nat table stays in a namespace after removal".into(),
    };
    let mut findings = vec![installed, nft];
    if let Ok(tools) = tools {
        let variant = if tools.nft {
            Variant::Nft
        } else {
            Variant::Legacy
        };
        for (name, family, list, mask) in [
            ("rules, IPv4", Family::V4, "shuntprobe4", "0.0.0.0"),
            ("rules, IPv6", Family::V6, "shuntprobe6", "::"),
        ] {
            findings.push(try_rules(name, variant, family, list, mask));
        }
    }
    findings
}

fn word(installed: bool) -> &'static str {
    if installed { "installed" } else { "missing" }
}

/// Installs the rules that matter in a namespace which ends with the thread.
fn try_rules(
    name: &'static str,
    variant: Variant,
    family: Family,
    list: &str,
    mask: &str,
) -> Finding {
    let text = format!(
        "*nat\n-A OUTPUT -p tcp -m mark --mark 0x1 -j RETURN\n-A OUTPUT -m addrtype --dst-type LOCAL -j RETURN\n\
         -A OUTPUT -p tcp -m recent --rcheck --seconds 1 --name {list} --mask {mask} --rdest -j REDIRECT --to-ports 1\nCOMMIT\n"
    );
    let program = variant.command(family, "-restore");
    let tried = std::thread::spawn({
        let program = program.clone();
        move || -> Result<(), InterceptError> {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|error| InterceptError::io("make", "a network namespace", error.into()))?;
            let mut command = command(&program)?;
            command.args(["--noflush", "-w", "5"]);
            let output = feed(&mut command, text.as_bytes())
                .map_err(|error| InterceptError::io("run", &program, error))?;
            checked(output, &program).map(|_| ())
        }
    });
    let result = match tried.join() {
        Ok(result) => result.map_err(|error| error.chain()),
        Err(_) => Err("the attempt panicked".into()),
    };
    Finding {
        name,
        ok: result.is_ok(),
        // A node without IPv6 is served all the same.
        required: family == Family::V4,
        found: result.map_or_else(|error| error, |()| format!("{program} took mark, addrtype, recent, REDIRECT")),
        meaning: "tried in a namespace of its own: REDIRECT captures, `recent` opens when the agent is dead".into(),
    }
}
