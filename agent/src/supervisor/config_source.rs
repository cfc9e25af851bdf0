//! Tells when the configuration file changed, or the bootstrap that it names. Their directories are watched, not the files: editors
//! and ConfigMaps replace files rather than write them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// Writers take several steps; the last one settles it.
const SETTLE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct ConfigSource {
    path: Option<PathBuf>,
    bootstrap: Option<PathBuf>,
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
}

impl ConfigSource {
    pub(super) fn watch(path: Option<PathBuf>) -> Result<Self> {
        let (tell, events) = mpsc::channel(1);
        let watcher = path
            .as_deref()
            .map(|path| {
                let directory = directory_of(path);
                let mut watcher = notify::recommended_watcher(move |event| {
                    // Our own reading is told too: taken for a change, it would lead to the next, for ever.
                    if !is_access(&event) {
                        // Full: a change is already reported.
                        let _ = tell.try_send(());
                    }
                })?;
                watcher
                    .watch(directory, RecursiveMode::NonRecursive)
                    .map(|()| watcher)
            })
            .transpose()
            .context("cannot watch the configuration file's directory")?;
        let mut source = Self {
            path,
            bootstrap: None,
            events,
            look_at: None,
            seen: Seen::default(),
            watcher,
        };
        source.seen = source.look();
        Ok(source)
    }

    /// The configuration names this bootstrap, be it right or wrong.
    pub(super) fn follow(&mut self, bootstrap: Option<&Path>) {
        if self.bootstrap.as_deref() == bootstrap {
            return;
        }
        self.bootstrap = bootstrap.map(Path::to_owned);
        // A directory that is watched already is watched on.
        if let (Some(path), Some(watcher)) = (bootstrap, &mut self.watcher)
            && let Err(error) = watcher.watch(directory_of(path), RecursiveMode::NonRecursive)
        {
            tracing::warn!(%error, path = %path.display(), "cannot watch the bootstrap's directory");
        }
        // What it holds by now may be newer than what was read of it.
        self.look_at = Some(Instant::now() + SETTLE);
    }

    fn look(&self) -> Seen {
        let read = |path: &PathBuf| std::fs::read_to_string(path).ok();
        Seen {
            config: self.path.as_ref().and_then(read),
            bootstrap: self.bootstrap.as_ref().and_then(read),
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

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
