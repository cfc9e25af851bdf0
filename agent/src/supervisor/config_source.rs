//! Tells when the configuration file changed. Its directory is watched, not the file: editors and ConfigMaps
//! replace files rather than write them.

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
    events: mpsc::Receiver<()>,
    /// Something happened, and the file is looked at then.
    look_at: Option<Instant>,
    /// What the file held when it was last looked at.
    seen: Option<String>,
    _watcher: Option<RecommendedWatcher>,
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
        let seen = path
            .as_deref()
            .and_then(|path| std::fs::read_to_string(path).ok());
        Ok(Self {
            path,
            events,
            look_at: None,
            seen,
            _watcher: watcher,
        })
    }

    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Waits until the file's content differs from what was last seen. Cancel safe.
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
            let now = self
                .path
                .as_deref()
                .and_then(|path| std::fs::read_to_string(path).ok());
            if now.is_some() && now != self.seen {
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
