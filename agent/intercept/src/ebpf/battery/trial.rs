//! Finds out what this kernel does, at most once: by what is known of its version, by what was seen before, or by a
//! process that tries.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use shunt_core::behaviour::Behaviour;

use super::bytes::{Deadline, until};
use super::cache::{self, Key};
use super::denylist;
use crate::{Finding, cgroup};

/// Of the cgroups that are made for a trial; the number of the process that made one follows.
pub const CGROUP_PREFIX: &str = "shunt-battery-";
/// A trial takes some tenths of a second. One that takes longer than this is given up, and asked again at the next
/// start.
const PATIENCE: Duration = Duration::from_secs(5);

/// How to find out.
#[derive(Clone, Copy, Debug)]
pub struct Trial<'a> {
    /// Where what was found is kept.
    pub state_dir: &'a Path,
    /// May it be kept there?
    pub remember: bool,
}

impl Trial<'_> {
    /// # Errors
    /// Why it cannot be known, and hence nothing be accelerated.
    pub fn learn(&self) -> Result<Behaviour, String> {
        if let Some(refusal) = denylist::of_this_kernel() {
            return Err(refusal);
        }
        let key = Key::now();
        if let Some(known) = cache::read(self.state_dir, &key) {
            return Ok(known);
        }
        let behaviour = attempt().map_err(|error| {
            format!("what this kernel's queues do cannot be found out: {error}")
        })?;
        if self.remember {
            cache::write(self.state_dir, key, &behaviour);
        }
        Ok(behaviour)
    }
}

/// What `shunt check` says of it.
pub fn findings(learned: &Result<Behaviour, String>) -> Vec<Finding> {
    let finding = |name, ok, found: &str, meaning: &str| Finding {
        name,
        ok,
        required: false,
        found: found.to_owned(),
        meaning: meaning.to_owned(),
    };
    let whole = "queues past TCP";
    match learned {
        Err(reason) => vec![finding(whole, false, reason, "nothing is accelerated")],
        Ok(behaviour) => {
            let refusal = behaviour.refusal();
            let found = format!("found out in {} ms", behaviour.milliseconds);
            let meaning = match refusal {
                Some(_) => "nothing is accelerated",
                None => "same-node connections may be accelerated",
            };
            let mut rows = vec![finding(whole, refusal.is_none(), &found, meaning)];
            rows.extend(behaviour.verdicts.iter().map(|verdict| {
                finding(
                    verdict.question.title(),
                    verdict.holds,
                    &verdict.evidence,
                    verdict.question.meaning(),
                )
            }));
            rows
        }
    }
}

fn attempt() -> Result<Behaviour, String> {
    let cgroup = Scratch::make().map_err(|error| format!("no cgroup for it: {error}"))?;
    let mut child = Command::new("/proc/self/exe")
        .arg("battery")
        .arg(&cgroup.0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start it: {error}"))?;
    let ended = wait(&mut child).map_err(|error| error.to_string())?;
    let Some(status) = ended else {
        return Err(format!("it did not end within {} s", PATIENCE.as_secs()));
    };
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    if !status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{status}: {}", said.trim()));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}

/// `None`: it had to be killed, and if the kernel holds it, is left to it. What it says fits into a pipe.
fn wait(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let mut ended = None;
    let mut has_ended = |child: &mut Child, patience| {
        until(Deadline::after(patience), || {
            ended = child.try_wait().transpose();
            ended.is_some()
        })
    };
    if !has_ended(child, PATIENCE) {
        child.kill()?;
        has_ended(child, PATIENCE / 5);
        return Ok(None);
    }
    ended.transpose()
}

/// A cgroup for the sockets of a trial, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> io::Result<Self> {
        let root = cgroup::mount_point().map_err(|error| io::Error::other(error.chain()))?;
        let path = root.join(format!("{CGROUP_PREFIX}{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Whoever was in it has ended, and may yet be on his way out.
        let removed = until(Deadline::after(PATIENCE / 20), || {
            let removed = fs::remove_dir(&self.0);
            removed.map_or_else(
                |error| error.kind() != io::ErrorKind::ResourceBusy,
                |()| true,
            )
        });
        if !removed {
            tracing::warn!(path = %self.0.display(), "a cgroup stays until the next start");
        }
    }
}
