//! `shunt run`: the start-up story, in the order that lets every failure be told before anything is touched.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use shunt_core::config::Config;
use shunt_core::config::file::{self, ConfigError};
use shunt_intercept::memory;
use shunt_xds::{Loaded, Texts};

use crate::cli::{self, EX_USAGE, RunArgs};
use crate::supervisor::{self, Legacy, Stored};
use crate::{privileges, seccomp, will};

pub fn run(args: &RunArgs) -> ExitCode {
    // Whatever becomes of this start, nobody is left to wait in it.
    let stored = Stored::take();
    // Before anything that takes time: until then nobody keeps the gates.
    let legacy = match args.succeeds.map(Legacy::take).transpose() {
        Ok(legacy) => legacy,
        Err(error) => return cli::failed(&error),
    };
    let path = config_path(args.config.as_deref());
    let (config, loaded) = match read(args, path.as_deref()) {
        Ok(read) => read,
        Err(error) => {
            cli::complain(&format!(
                "the configuration is wrong, nothing was changed\n{error}"
            ));
            return ExitCode::from(EX_USAGE);
        }
    };
    if let Some(line) = &args.could_succeed {
        return could_succeed(line);
    }
    match start(args, path, (config, loaded), (legacy, stored)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::failed(&error),
    }
}

/// For a supervisor of this line, of which a running one asks.
fn could_succeed(line: &str) -> ExitCode {
    let own = will::LINE;
    if line == own {
        return ExitCode::SUCCESS;
    }
    cli::complain(&format!(
        "the running agent is of line {line}, this program of line {own}: the agent has to be started anew"
    ));
    ExitCode::FAILURE
}

/// The file, and then the flags over it, and the bootstrap that it names.
///
/// # Errors
/// Every fault, each with its line and field.
pub fn read(args: &RunArgs, path: Option<&Path>) -> Result<(Config, Loaded), ConfigError> {
    let config = read_config(args, path, &Texts::new())?;
    let loaded = read_bootstrap(&config, None, &Texts::new())?;
    Ok((config, loaded))
}

/// `texts`: what has been read already.
///
/// # Errors
/// As [`read`].
pub fn read_config(
    args: &RunArgs,
    path: Option<&Path>,
    texts: &Texts,
) -> Result<Config, ConfigError> {
    let config = match path.map(|path| (path, texts.get(path))) {
        Some((path, Some(text))) => file::parse(text, path)?,
        Some((path, None)) => file::load(path)?,
        None => Config::default(),
    };
    file::apply_flags(config, args.mode, &args.workloads)
}

/// `before`: what was read of the same bootstrap last; `texts`: what has been read already.
///
/// # Errors
/// As [`read`].
pub fn read_bootstrap(
    config: &Config,
    before: Option<&Loaded>,
    texts: &Texts,
) -> Result<Loaded, ConfigError> {
    match &config.bootstrap {
        Some(path) => {
            let loaded = shunt_xds::load(path, before, texts);
            // Reading takes many times the memory of what is read.
            memory::give_back();
            loaded
        }
        None => Ok(Loaded::default()),
    }
}

fn start(
    args: &RunArgs,
    path: Option<PathBuf>,
    (config, loaded): (Config, Loaded),
    before: (Option<Legacy>, Stored),
) -> Result<()> {
    // Its file may have been a number when it was run.
    let _ = rustix::thread::set_name(c"shunt");
    let missing = match args.succeeds {
        // What was needed at the start alone has been given up.
        Some(_) => privileges::missing_at_work()?,
        None => privileges::missing()?,
    };
    let descriptors = privileges::raise_descriptor_limit()?;
    privileges::drop_to_needed()?;
    if args.succeeds.is_none() {
        // It stays across exec; one more each time would in the end be more than the kernel takes.
        seccomp::forbid_dangerous()?;
    }
    let level = shunt_telemetry::logging::init(&config.log).context("cannot start logging")?;
    for need in missing {
        let (capability, without) = (need.capability.to_string(), need.without);
        tracing::warn!(capability, without, "a capability is missing");
    }
    if args.writable_sysctls
        && let Err(error) = make_sysctls_writable()
    {
        let error = format!("{error:#}");
        tracing::warn!(error, "/proc/sys stays as it is");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        descriptors,
        config = path
            .as_deref()
            .map_or("none".into(), |path| path.display().to_string()),
        "shunt starts"
    );
    // One thread: entering a namespace is a property of the thread, and nothing here takes long.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the supervisor's runtime")?
        .block_on(supervisor::supervise(
            args,
            path,
            (config, loaded),
            level,
            before,
        ))
}

/// Container runtimes mount it read-only once more. Only this process and its children see what is done here.
fn make_sysctls_writable() -> Result<()> {
    let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt"));
    if of("1").is_ok_and(|node| of("self").is_ok_and(|own| own == node)) {
        bail!("this is no container: its mounts are the node's");
    }
    let flags = [
        MsFlags::MS_REMOUNT,
        MsFlags::MS_BIND,
        MsFlags::MS_NOSUID,
        MsFlags::MS_NODEV,
        MsFlags::MS_NOEXEC,
    ];
    let none = None::<&str>;
    mount(none, "/proc/sys", none, flags.into_iter().collect(), none)
        .context("cannot mount /proc/sys for writing (CAP_SYS_ADMIN, AppArmor)")
}

/// The named file; else the default one when it is there.
pub fn config_path(named: Option<&Path>) -> Option<PathBuf> {
    let default = Path::new(Config::DEFAULT_PATH);
    named
        .map(Path::to_owned)
        .or_else(|| default.exists().then(|| default.to_owned()))
}
