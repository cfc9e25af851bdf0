//! Tells when the configuration file changed, or the bootstrap that it names, or a file that the bootstrap names. Their
//! directories are watched, not the files: editors and ConfigMaps replace files rather than write them. Anything that
//! happens there leads to a look at what the files hold, and only another content is a change: so a rename is seen, a
//! symbolic link that was turned, and a file that was written in place.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use notify::event::{EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use shunt_core::config::file;
use shunt_xds::{Source, Texts};
use tokio::sync::mpsc;

/// Writers take several steps, in several files: the content counts once it has been the same for so long.
const SETTLE: Duration = Duration::from_millis(20);
/// Files that change all the time are read as they are after this.
const LONGEST: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct ConfigSource {
    path: Option<PathBuf>,
    bootstrap: Option<PathBuf>,
    sources: Vec<PathBuf>,
    /// The `watched_directory` of sources that have one.
    beside: Vec<PathBuf>,
    /// Of all of them, and those that the bootstrap names beside.
    directories: BTreeSet<PathBuf>,
    /// As they are watched, without symbolic links, each with its inode: another may have come in its place.
    watched: BTreeMap<PathBuf, u64>,
    events: mpsc::Receiver<()>,
    /// Something happened, and the file is looked at then.
    look_at: Option<Instant>,
    looked: Looked,
    /// The names of the files, shared with whoever is told of what happens to them.
    names: Names,
    watcher: Option<RecommendedWatcher>,
}

type Names = Arc<Mutex<BTreeSet<OsString>>>;

/// What the files held.
#[derive(Debug, Default)]
struct Looked {
    /// What the configuration is made of.
    seen: Arc<Texts>,
    /// It differs, since then; nobody knows yet whether that is all.
    unsettled: Option<(Texts, Instant)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    LookAgain,
    Changed,
}

impl Looked {
    fn look(&mut self, now: Texts, at: Instant) -> Verdict {
        if now == *self.seen {
            self.unsettled = None;
            return Verdict::Same;
        }
        match self.unsettled.take() {
            Some((before, since)) if before == now || at - since >= LONGEST => {
                self.seen = Arc::new(now);
                Verdict::Changed
            }
            before => {
                let since = before.map_or(at, |(_, since)| since);
                self.unsettled = Some((now, since));
                Verdict::LookAgain
            }
        }
    }
}

impl ConfigSource {
    pub(super) fn watch(path: Option<PathBuf>) -> Result<Self> {
        let (tell, events) = mpsc::channel(1);
        let names = Names::default();
        let followed = Arc::clone(&names);
        let watcher = path
            .as_deref()
            .map(|_| {
                notify::recommended_watcher(move |event| {
                    if may_change(&event, &followed) {
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
            beside: Vec::new(),
            watched: BTreeMap::new(),
            events,
            look_at: None,
            looked: Looked::default(),
            names,
            watcher,
        };
        source
            .watch_directories()
            .context("cannot watch the configuration file's directory")?;
        source.looked.seen = Arc::new(source.look());
        Ok(source)
    }

    /// The configuration names this bootstrap, be it right or wrong.
    pub(super) fn follow(&mut self, bootstrap: Option<&Path>) {
        if self.bootstrap.as_deref() != bootstrap {
            self.bootstrap = bootstrap.map(Path::to_owned);
            self.sources.clear();
            self.beside.clear();
            self.watch_more();
        }
    }

    /// The bootstrap names these files, be they right or wrong.
    pub(super) fn follow_sources(&mut self, sources: &[Source]) {
        let paths = sources.iter().map(|source| source.wanted.path.clone());
        let paths: Vec<PathBuf> = paths.collect();
        let beside = sources
            .iter()
            .filter_map(|source| source.wanted.watched.clone());
        let beside: Vec<PathBuf> = beside.collect();
        if self.path.is_none() || (&paths, &beside) == (&self.sources, &self.beside) {
            return;
        }
        (self.sources, self.beside) = (paths, beside);
        self.watch_more();
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.path.iter().chain(&self.bootstrap).chain(&self.sources)
    }

    fn watch_more(&mut self) {
        let beside = self.beside.iter().cloned();
        let directories = self.files().map(|path| directory_of(path)).chain(beside);
        self.directories = directories.collect();
        if let Err(error) = self.watch_directories() {
            tracing::warn!(%error, "cannot watch a directory of the configuration");
        }
        // What they hold by now may be newer than what was read of them.
        self.look_at = Some(Instant::now() + SETTLE);
    }

    /// Each as it is by now: a symbolic link may lead elsewhere than it did. Of one that is not there, the nearest one
    /// above it that is.
    fn watch_directories(&mut self) -> notify::Result<()> {
        // A link's file may have another name.
        let real = |path: &PathBuf| path.canonicalize().ok();
        let all = self
            .files()
            .flat_map(|path| [Some(path.clone()), real(path)]);
        let names = all
            .flatten()
            .filter_map(|path| Some(path.file_name()?.to_owned()));
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = names.collect();
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

    /// Of what is no file, nothing.
    fn look(&self) -> Texts {
        let text = |path: &PathBuf| Some((path.clone(), file::read_text_of_file(path).ok()?));
        self.files().filter_map(text).collect()
    }

    /// What the files held when they had last changed.
    pub(super) fn texts(&self) -> Arc<Texts> {
        Arc::clone(&self.looked.seen)
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
            let Some(config) = self.path.as_ref().and_then(|path| now.get(path)) else {
                continue;
            };
            // A bootstrap that is not there is being replaced, unless the configuration names another by now.
            let is_there = |path: &PathBuf| now.contains_key(path);
            let is_whole = self.bootstrap.as_ref().is_none_or(is_there)
                || self
                    .path
                    .as_ref()
                    .and_then(|path| self.looked.seen.get(path))
                    != Some(config);
            if !is_whole {
                continue;
            }
            match self.looked.look(now, Instant::now()) {
                Verdict::Same => {}
                Verdict::LookAgain => self.look_at = Some(Instant::now() + SETTLE),
                Verdict::Changed => return,
            }
        }
    }
}

/// May it have changed what a file of these names holds, or which file has such a name?
fn may_change(event: &notify::Result<notify::Event>, names: &Names) -> bool {
    let Ok(event) = event else { return true };
    match event.kind {
        // Our own reading is told too: taken for a change, it would lead to the next, for ever.
        EventKind::Access(_) => false,
        // Somebody writes into a file that happens to be there, as into a log.
        EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)) => {
            let names = names.lock().unwrap_or_else(PoisonError::into_inner);
            let is_ours = |path: &PathBuf| path.file_name().is_none_or(|name| names.contains(name));
            event.paths.is_empty() || event.paths.iter().any(is_ours)
        }
        _ => true,
    }
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests;
