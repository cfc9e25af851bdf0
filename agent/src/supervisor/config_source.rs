//! Tells when the configuration file changed, or the bootstrap that it names, or a file that the bootstrap names. Their
//! directories are watched, not the files: editors and ConfigMaps replace files rather than write them. Anything that
//! happens there leads to a look at what the files hold, and only another content is a change: so a rename is seen, a
//! symbolic link that was turned, and a file that was written in place.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use shunt_xds::Source;
use tokio::sync::mpsc;

/// Writers take several steps; the last one settles it.
const SETTLE: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct ConfigSource {
    path: Option<PathBuf>,
    bootstrap: Option<PathBuf>,
    sources: Vec<PathBuf>,
    /// Of all of them, and those that the bootstrap names beside.
    directories: BTreeSet<PathBuf>,
    /// As they are watched, without symbolic links, each with its inode: another may have come in its place.
    watched: BTreeMap<PathBuf, u64>,
    events: mpsc::Receiver<()>,
    /// Something happened, and the file is looked at then.
    look_at: Option<Instant>,
    /// What the files held when they were last looked at.
    seen: Seen,
    watcher: Option<RecommendedWatcher>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    config: Option<String>,
    bootstrap: Option<String>,
    sources: Vec<Option<String>>,
}

impl ConfigSource {
    pub(super) fn watch(path: Option<PathBuf>) -> Result<Self> {
        let (tell, events) = mpsc::channel(1);
        let watcher = path
            .as_deref()
            .map(|_| {
                notify::recommended_watcher(move |event| {
                    // Our own reading is told too: taken for a change, it would lead to the next, for ever.
                    if !is_access(&event) {
                        // Full: a change is already reported.
                        let _ = tell.try_send(());
                    }
                })
            })
            .transpose()
            .context("cannot watch for changes of files")?;
        let mut source = Self {
            directories: path.iter().map(|path| directory_of(path)).collect(),
            path,
            bootstrap: None,
            sources: Vec::new(),
            watched: BTreeMap::new(),
            events,
            look_at: None,
            seen: Seen::default(),
            watcher,
        };
        source
            .watch_directories()
            .context("cannot watch the configuration file's directory")?;
        source.seen = source.look();
        Ok(source)
    }

    /// The configuration names this bootstrap, be it right or wrong.
    pub(super) fn follow(&mut self, bootstrap: Option<&Path>) {
        if self.bootstrap.as_deref() != bootstrap {
            self.bootstrap = bootstrap.map(Path::to_owned);
            self.sources.clear();
            self.watch_more(Vec::new());
        }
    }

    /// The bootstrap names these files, be they right or wrong.
    pub(super) fn follow_sources(&mut self, sources: &[Source]) {
        let paths = sources.iter().map(|source| source.wanted.path.clone());
        let paths: Vec<PathBuf> = paths.collect();
        let beside = sources
            .iter()
            .filter_map(|source| source.wanted.watched.clone());
        if self.path.is_none() || paths == self.sources {
            return;
        }
        self.sources = paths;
        self.watch_more(beside.collect());
    }

    fn watch_more(&mut self, beside: Vec<PathBuf>) {
        let files = self.path.iter().chain(&self.bootstrap).chain(&self.sources);
        self.directories = files.map(|path| directory_of(path)).chain(beside).collect();
        if let Err(error) = self.watch_directories() {
            tracing::warn!(%error, "cannot watch a directory of the configuration");
        }
        // What they hold by now may be newer than what was read of them.
        self.look_at = Some(Instant::now() + SETTLE);
    }

    /// Each as it is by now: a symbolic link may lead elsewhere than it did. Of one that is not there, the nearest one
    /// above it that is.
    fn watch_directories(&mut self) -> notify::Result<()> {
        let Some(watcher) = &mut self.watcher else {
            return Ok(());
        };
        let real = |path: &Path| {
            let path = path.canonicalize().ok()?;
            let inode = path.metadata().ok()?.ino();
            Some((path, inode))
        };
        let nearest = |path: &PathBuf| path.ancestors().find_map(real);
        let wanted: BTreeMap<PathBuf, u64> = self.directories.iter().filter_map(nearest).collect();
        let before = std::mem::take(&mut self.watched);
        for (gone, _) in before
            .iter()
            .filter(|(path, inode)| wanted.get(*path) != Some(inode))
        {
            // It fails for a directory that is not there any more, which nobody has to be told.
            let _ = watcher.unwatch(gone);
        }
        let mut outcome = Ok(());
        for (directory, inode) in wanted {
            let is_new = before.get(&directory) != Some(&inode);
            if is_new && let Err(error) = watcher.watch(&directory, RecursiveMode::NonRecursive) {
                outcome = Err(error);
            } else {
                self.watched.insert(directory, inode);
            }
        }
        outcome
    }

    fn look(&self) -> Seen {
        // Nobody waits for the writer of a pipe.
        let read = |path: &PathBuf| {
            let is_file = path.is_file();
            is_file
                .then(|| std::fs::read_to_string(path).ok())
                .flatten()
        };
        Seen {
            config: self.path.as_ref().and_then(read),
            bootstrap: self.bootstrap.as_ref().and_then(read),
            sources: self.sources.iter().map(read).collect(),
        }
    }

    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Waits until the files' content differs from what was last seen. Cancel safe.
    pub(super) async fn changed(&mut self) {
        loop {
            let at = match self.look_at {
                Some(at) => at,
                None if self.events.recv().await.is_none() => {
                    return std::future::pending().await;
                }
                None => *self.look_at.insert(Instant::now() + SETTLE),
            };
            tokio::time::sleep_until(at.into()).await;
            while self.events.try_recv().is_ok() {}
            self.look_at = None;
            if let Err(error) = self.watch_directories() {
                tracing::warn!(%error, "cannot watch a directory of the configuration");
            }
            let now = self.look();
            // A bootstrap that is not there is being replaced, unless the configuration names another by now.
            let is_whole = now.bootstrap.is_some() == self.bootstrap.is_some()
                || now.config != self.seen.config;
            if now.config.is_some() && is_whole && now != self.seen {
                self.seen = now;
                return;
            }
        }
    }
}

/// Somebody opened, read or closed a file; what was written has been told before.
fn is_access(event: &notify::Result<notify::Event>) -> bool {
    matches!(event, Ok(event) if event.kind.is_access())
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
