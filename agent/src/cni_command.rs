//! `shunt cni`: the plugin's place on the node. A network's own file is never touched: a copy of it with the plugin at its
//! end gets a name that runtimes take first.

mod conflist;
mod place;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use notify::{RecursiveMode, Watcher};
use serde_json::{Map, Value, json};

use self::conflist::PLUGIN;
use self::place::{Place, Unready};
use crate::cli::{self, CniArgs, CniCommand, CniPlace};

/// Between questions to an agent that is not ready.
const PAUSE: Duration = Duration::from_millis(250);
/// Writers take several steps; the last one settles it.
const SETTLE: Duration = Duration::from_millis(100);
/// An announcement may have been lost, a directory replaced.
const LOOK: Duration = Duration::from_secs(10);
/// More repairs than this within [`WINDOW`] are a quarrel: the next one waits.
const FREE: usize = 10;
const WINDOW: Duration = Duration::from_secs(60);

pub fn run(args: &CniArgs) -> ExitCode {
    let done = match &args.command {
        CniCommand::Install { place, wait } => install(place, *wait),
        CniCommand::Uninstall { place, keep_binary } => uninstall(place, *keep_binary),
        CniCommand::Watch { place } => watch(place),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::failed(&error),
    }
}

fn install(args: &CniPlace, wait: Duration) -> Result<()> {
    let place = place(args)?;
    until_ready(&place, Some(wait))?;
    let done = place.put()?;
    let nothing = done.is_empty();
    done.iter().for_each(|what| cli::answer(what));
    if nothing {
        cli::answer("everything is in its place");
    }
    Ok(())
}

fn uninstall(args: &CniPlace, keep_binary: bool) -> Result<()> {
    let done = place(args)?.take(keep_binary)?;
    done.iter().for_each(|what| cli::answer(what));
    if done.is_empty() {
        cli::answer("nothing was installed");
    }
    Ok(())
}

/// Until it is ended by a signal; what is in place stays.
fn watch(args: &CniPlace) -> Result<()> {
    let place = place(args)?;
    let (tell, told) = mpsc::channel();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading is told too.
        if !matches!(&event, Ok(event) if event.kind.is_access()) {
            let _ = tell.send(());
        }
    })
    .context("cannot watch")?;
    for dir in [&place.conf_dir, &place.bin_dir] {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        watcher
            .watch(dir, RecursiveMode::NonRecursive)
            .with_context(|| format!("cannot watch {}", dir.display()))?;
    }
    until_ready(&place, None)?;
    cli::answer("the agent is ready");
    let mut complaint = String::new();
    let mut repairs: Vec<Instant> = Vec::new();
    loop {
        match place.put() {
            Ok(done) => {
                complaint.clear();
                let changed = done.iter().any(|what| what.starts_with("put"));
                done.iter()
                    .filter(|what| what.starts_with("put") || what.starts_with("removed"))
                    .for_each(|what| cli::answer(what));
                if changed {
                    repairs.push(Instant::now());
                }
            }
            Err(error) => {
                let text = format!("{error:#}");
                if text != complaint {
                    cli::complain(&text);
                    complaint = text;
                }
            }
        }
        repairs.retain(|at| at.elapsed() < WINDOW);
        if repairs.len() > FREE {
            let (times, wait) = (repairs.len(), WINDOW.as_secs() / 2);
            cli::complain(&format!(
                "somebody keeps undoing it ({times} times within a minute; Cilium does with cni-exclusive): the next \
                 repair in {wait} s"
            ));
            pause(WINDOW / 2);
        }
        match told.recv_timeout(LOOK) {
            Ok(()) => while told.recv_timeout(SETTLE).is_ok() {},
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("cannot watch any more"),
        }
    }
}

/// Nobody is sent to an agent that cannot serve him yet.
fn until_ready(place: &Place, wait: Option<Duration>) -> Result<()> {
    let start = Instant::now();
    let mut told = false;
    loop {
        match place.try_out()? {
            Ok(()) => return Ok(()),
            Err(Unready::Settings(reason)) => bail!("the plugin refuses its settings: {reason}"),
            Err(Unready::Agent(reason)) if wait.is_some_and(|wait| start.elapsed() >= wait) => {
                bail!("nothing was installed, the agent is not ready: {reason}")
            }
            Err(Unready::Agent(reason)) => {
                if !std::mem::replace(&mut told, true) {
                    cli::complain(&format!("waiting for the agent: {reason}"));
                }
                pause(PAUSE);
            }
        }
    }
}

fn place(args: &CniPlace) -> Result<Place> {
    let mut entry = match &args.settings {
        None => Map::new(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_str(&text)
                .with_context(|| format!("{} is not a JSON object", path.display()))?
        }
    };
    entry.insert("type".into(), PLUGIN.into());
    entry.insert("capabilities".into(), json!({"cgroupPath": true}));
    if let Some(socket) = &args.socket {
        entry.insert("socket".into(), Value::from(socket.display().to_string()));
    }
    let beside = || -> Result<PathBuf> {
        let own = std::env::current_exe().context("cannot find the plugin beside this program")?;
        Ok(own.with_file_name(PLUGIN))
    };
    Ok(Place {
        binary: args.binary.clone().map_or_else(beside, Ok)?,
        bin_dir: args.bin_dir.clone(),
        conf_dir: args.conf_dir.clone(),
        entry,
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "one thread, and nobody says when an agent becomes ready"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
