//! The files: put in place whole or not at all, and taken away.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::conflist::{self, Entry, PLUGIN, Plan};
use crate::replace::{Outlives, replace, sync_directory};

/// Bytes of a configuration that is read.
const MAX_CONFIGURATION: u64 = 1 << 20;
const INVALID_CONFIGURATION: u64 = 7;

/// Where everything is.
#[derive(Debug)]
pub(super) struct Place {
    /// What becomes the plugin.
    pub(super) binary: PathBuf,
    pub(super) bin_dir: PathBuf,
    pub(super) conf_dir: PathBuf,
    /// The plugin's entry.
    pub(super) entry: Map<String, Value>,
}

/// What was done, for people. Empty: everything was in its place.
pub(super) type Done = Vec<String>;

/// Why not now.
#[derive(Debug)]
pub(super) enum Unready {
    /// The agent; it may be by and by.
    Agent(String),
    /// The plugin's settings.
    Settings(String),
}

impl Place {
    /// Puts in place what is not as it should be.
    ///
    /// # Errors
    /// For people; what could not be put is as it was.
    pub(super) fn put(&self) -> Result<Done> {
        let mut done = Done::new();
        let plan = conflist::plan(&self.entries()?, &self.entry).map_err(anyhow::Error::msg)?;
        let Plan::Put {
            name,
            text,
            primary,
        } = plan
        else {
            if let Plan::Chained(name) = plan {
                let path = self.conf_dir.join(name);
                done.push(format!("{} has the plugin by itself", path.display()));
            }
            done.extend(self.take_lists("")?);
            return Ok(done);
        };
        let plugin = self.bin_dir.join(PLUGIN);
        let wanted = fs::read(&self.binary)
            .with_context(|| format!("cannot read {}", self.binary.display()))?;
        if !holds(&plugin, &wanted, 0o755) {
            put(&plugin, &wanted, 0o755)?;
            done.push(format!("put {}", plugin.display()));
        }
        let path = self.conf_dir.join(name);
        if !holds(&path, text.as_bytes(), 0o644) {
            let others = fs::read_to_string(&path).is_ok_and(|text| {
                let name = name.to_owned();
                !conflist::is_ours(&Entry { name, text })
            });
            if others {
                bail!("{} is somebody else's", path.display());
            }
            put(&path, text.as_bytes(), 0o644)?;
            done.push(format!("put {} (after {primary})", path.display()));
        }
        done.extend(self.take_lists(name)?);
        Ok(done)
    }

    /// Takes away everything of ours. The list first: nobody shall be sent to a plugin that is not there.
    ///
    /// # Errors
    /// For people.
    pub(super) fn take(&self, keep_binary: bool) -> Result<Done> {
        let mut done = self.take_lists("")?;
        let plugin = self.bin_dir.join(PLUGIN);
        if !keep_binary && plugin.exists() {
            remove(&plugin)?;
            done.push(format!("removed {}", plugin.display()));
        }
        Ok(done)
    }

    /// Our lists but the one of this name.
    fn take_lists(&self, kept: &str) -> Result<Done> {
        let mut done = Done::new();
        for path in conflist::our_paths(&self.conf_dir) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Ok(text) = fs::read_to_string(&path) else {
                continue;
            };
            let name = name.into_owned();
            if name != kept && conflist::is_ours(&Entry { name, text }) {
                remove(&path)?;
                done.push(format!("removed {}", path.display()));
            }
        }
        Ok(done)
    }

    /// In the order of their names.
    fn entries(&self) -> Result<Vec<Entry>> {
        let read = || format!("cannot read {}", self.conf_dir.display());
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.conf_dir).with_context(read)? {
            let path = entry.with_context(read)?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let metadata = fs::metadata(&path);
            let is_file =
                metadata.is_ok_and(|found| found.is_file() && found.len() <= MAX_CONFIGURATION);
            if !is_file || !conflist::is_configuration(&path) {
                continue;
            }
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            entries.push(Entry {
                name: name.into(),
                text: String::from_utf8_lossy(&bytes).into_owned(),
            });
        }
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(entries)
    }

    /// Asks the plugin itself: does it run here, are its settings right, is its agent ready?
    ///
    /// # Errors
    /// It does not run.
    pub(super) fn try_out(&self) -> Result<Result<(), Unready>> {
        let mut config = self.entry.clone();
        config.insert("cniVersion".into(), "1.1.0".into());
        config.insert("name".into(), "trial".into());
        // Else it says that pods can do without the agent.
        config.insert("on_failure".into(), "closed".into());
        let run = || -> io::Result<std::process::Output> {
            let mut child = Command::new(&self.binary)
                .env_clear()
                .env("CNI_COMMAND", "STATUS")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(Value::Object(config).to_string().as_bytes())?;
            }
            child.wait_with_output()
        };
        let output = run().with_context(|| format!("cannot run {}", self.binary.display()))?;
        if output.status.success() {
            return Ok(Ok(()));
        }
        let said: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{} is not the plugin", self.binary.display()))?;
        let details = said["details"].as_str().unwrap_or_default().to_owned();
        Ok(Err(match said["code"].as_u64() {
            Some(INVALID_CONFIGURATION) => Unready::Settings(details),
            _ => Unready::Agent(details),
        }))
    }
}

fn holds(path: &Path, wanted: &[u8], mode: u32) -> bool {
    let is_so = |metadata: fs::Metadata| {
        metadata.is_file()
            && metadata.len() == wanted.len() as u64
            && metadata.permissions().mode() & 0o777 == mode
    };
    fs::symlink_metadata(path).is_ok_and(is_so) && fs::read(path).is_ok_and(|held| held == wanted)
}

fn put(path: &Path, wanted: &[u8], mode: u32) -> Result<()> {
    replace(path, wanted, mode, Outlives::Host)
        .with_context(|| format!("cannot put {}; it is as it was", path.display()))
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path)
        .and_then(|()| sync_directory(path))
        .with_context(|| format!("cannot remove {}", path.display()))
}
