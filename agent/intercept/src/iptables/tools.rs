//! The iptables programs of the host: which there are, which a namespace uses, and running them in it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use shunt_core::sockets::Family;

use super::dead_man::pause;
use super::netfilter::{Kept, Netfilter};
use super::render::has_chains;
use crate::InterceptError;
use crate::netns::Netns;

mod attempt;

pub(super) use self::attempt::elsewhere;

/// Where administrators' programs are, also when PATH does not say so.
const SBIN: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

/// The shortest wait for the lock that the programs know: without it the legacy ones wait for ever.
const WITHOUT_FLUSHING: [&str; 3] = ["--noflush", "-w", "1"];
/// The lock that all users of legacy tables on the host share.
const LOCK: &str = "/run/xtables.lock";
/// The whole agent waits meanwhile, and its signs of life with it: longer than this, the caller tries again later.
const LOCK_WAIT: Duration = Duration::from_millis(200);

/// The two kernels behind the name iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    Nft,
    Legacy,
}

impl Variant {
    pub(super) const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

/// Programs found on this host.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    /// What stands between "iptables" and "-restore" in their names; `None`: not installed.
    nft: Option<&'static str>,
    legacy: Option<&'static str>,
}

impl Tools {
    pub(super) fn find() -> Result<Self, InterceptError> {
        // Only where the names do not say the variant does the plain program decide.
        let has = |infix: &str| which(&format!("iptables{infix}-restore")).is_some();
        let plain = || version("iptables-restore").map(|text| text.contains("nf_tables"));
        let tools = Self {
            nft: has("-nft")
                .then_some("-nft")
                .or_else(|| (plain() == Some(true)).then_some("")),
            legacy: has("-legacy")
                .then_some("-legacy")
                .or_else(|| (plain() == Some(false)).then_some("")),
        };
        if tools.nft.is_some() || tools.legacy.is_some() {
            return Ok(tools);
        }
        Err(InterceptError::Unsupported(
            "iptables-restore is not installed (Debian package iptables): \
             iptables mode writes its rules with it; eBPF mode does not need it"
                .into(),
        ))
    }

    pub(super) fn has(&self, variant: Variant) -> bool {
        self.infix(variant).is_some()
    }

    fn infix(&self, variant: Variant) -> Option<&'static str> {
        match variant {
            Variant::Nft => self.nft,
            Variant::Legacy => self.legacy,
        }
    }

    /// `verb` is "", "-save" or "-restore".
    pub(super) fn program(&self, variant: Variant, family: Family, verb: &str) -> String {
        let infix = self.infix(variant).unwrap_or_default();
        match family {
            Family::V4 => format!("iptables{infix}{verb}"),
            Family::V6 => format!("ip6tables{infix}{verb}"),
        }
    }

    /// Are there rules in legacy tables of this thread's namespace? Looks only: it makes no table.
    pub(super) fn legacy_rules_here(&self) -> bool {
        self.has(Variant::Legacy)
            && super::FAMILIES.into_iter().any(|family| {
                !legacy_names(family).trim().is_empty() && self.rules_here(Variant::Legacy, family)
            })
    }

    pub(super) fn nft_rules_here(&self) -> bool {
        self.has(Variant::Nft)
            && super::FAMILIES
                .into_iter()
                .any(|family| self.rules_here(Variant::Nft, family))
    }

    fn rules_here(&self, variant: Variant, family: Family) -> bool {
        let saved = command(&self.program(variant, family, "-save")).and_then(|mut save| {
            feed(&mut save, b"").map_err(|error| InterceptError::io("run", "save", error))
        });
        saved.is_ok_and(|output| {
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .any(|line| line.starts_with("-A "))
        })
    }

    /// Variants whose rules may be in a namespace.
    pub(super) fn variants(&self, netns: &Netns) -> Vec<Variant> {
        let nat = |family| legacy_names(family).contains("nat");
        let legacy = self.has(Variant::Legacy)
            && netns
                .enter(|| super::FAMILIES.into_iter().any(nat))
                .unwrap_or(false);
        Variant::ALL
            .into_iter()
            .filter(|variant| match variant {
                Variant::Nft => self.has(Variant::Nft),
                Variant::Legacy => legacy,
            })
            .collect()
    }

    /// The nat table as text. Empty where there is none.
    pub(super) fn save(
        &self,
        netns: &Netns,
        variant: Variant,
        family: Family,
    ) -> Result<String, InterceptError> {
        let program = self.program(variant, family, "-save");
        let absent = || match variant {
            // Asking would make it.
            Variant::Legacy => !legacy_names(family).contains("nat"),
            Variant::Nft => {
                let has_nat = || Netfilter::open()?.has_nat(family);
                !family_exists(family) || which(&program).is_none() || !has_nat().unwrap_or(true)
            }
        };
        if netns.enter(absent).unwrap_or(false) {
            return Ok(String::new());
        }
        let mut command = command(&program)?;
        if variant == Variant::Legacy {
            command.args(["-t", "nat"]);
        }
        let output = run_in(netns, command, b"", &program)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // iptables-nft-save knows -t, but then complains where there is no such table.
        let nat = text.find("*nat").map(|at| &text[at..]).unwrap_or_default();
        let end = nat
            .find("\nCOMMIT\n")
            .map_or(nat.len(), |at| at + "\nCOMMIT\n".len());
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
        let program = self.program(variant, family, "-restore");
        if variant == Variant::Legacy {
            wait_for_the_lock()?;
        }
        let mut command = command(&program)?;
        command.args(WITHOUT_FLUSHING);
        run_in(netns, command, text.as_bytes(), &program).map(|_| ())
    }

    /// Removes what is empty of the nat table, unless it is to be kept: it came with our rules. A legacy table cannot
    /// be removed while its namespace lives.
    pub(super) fn drop_empty_table(
        &self,
        netns: &Netns,
        variant: Variant,
        family: Family,
        keep: &Kept,
    ) -> Result<(), InterceptError> {
        if variant == Variant::Legacy {
            return Ok(());
        }
        netns
            .enter(|| Netfilter::open()?.delete_empty_nat(family, keep))
            .and_then(|deleted| deleted)
            .map_err(|error| {
                InterceptError::io(
                    "delete the empty nat table of",
                    netns.path().display(),
                    error,
                )
            })
    }

    /// What of the nft nat table is somebody else's. `saved` is the table as it is, before any rule of ours.
    pub(super) fn foreign(
        &self,
        netns: &Netns,
        variant: Variant,
        family: Family,
        saved: &str,
    ) -> Result<Kept, InterceptError> {
        // Also what a crashed agent left is ours.
        if variant == Variant::Legacy || has_chains(saved) {
            return Ok(Kept::unseen());
        }
        netns
            .enter(|| Netfilter::open()?.nat_as_it_is(family, saved.contains("*nat")))
            .and_then(|seen| seen)
            .map_err(|error| {
                InterceptError::io("read the nat chains of", netns.path().display(), error)
            })
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

fn command(program: &str) -> Result<Command, InterceptError> {
    let path = which(program).ok_or_else(|| {
        InterceptError::io("find program", program, io::ErrorKind::NotFound.into())
    })?;
    Ok(Command::new(path))
}

pub(super) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut directories = path.split(':').chain(SBIN);
    directories.find_map(|directory| {
        let candidate = Path::new(directory).join(program);
        candidate.is_file().then_some(candidate)
    })
}

/// Until nobody holds the lock. Somebody may take it right after: then the program waits its second.
fn wait_for_the_lock() -> Result<(), InterceptError> {
    let failed = |error| InterceptError::io("wait for the lock", LOCK, error);
    let mut file = match File::options().read(true).open(LOCK) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let start = Instant::now();
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_) => return Ok(()),
            Err((file, Errno::EAGAIN)) if start.elapsed() < LOCK_WAIT => file,
            Err((_, error)) => return Err(failed(error.into())),
        };
        pause();
    }
}

/// What `--version` says, in one line.
pub(super) fn version(program: &str) -> Option<String> {
    let output = Command::new(which(program)?)
        .arg("--version")
        .output()
        .ok()?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .next()
        .map(str::to_owned)
}

/// In this thread's namespace.
pub(super) fn family_exists(family: Family) -> bool {
    let directory = match family {
        Family::V4 => "/proc/sys/net/ipv4",
        Family::V6 => "/proc/sys/net/ipv6",
    };
    fs::exists(directory).unwrap_or(false)
}

/// The legacy tables of this thread's namespace.
pub(super) fn legacy_names(family: Family) -> String {
    let file = match family {
        Family::V4 => "ip_tables_names",
        Family::V6 => "ip6_tables_names",
    };
    fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default()
}
