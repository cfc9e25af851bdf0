//! What the next agent shall know, in a file of `state_dir`. It is written by and by, by the loop, and once for many
//! changes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use shunt_cni_protocol::MAX_REMEMBERED;

use crate::replace::{Outlives, replace};

/// After it could not be written.
const PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    /// The file does not say what is known, and is written then.
    due: Option<Instant>,
}

impl StateFile {
    pub(super) fn new(dir: &Path, name: &str) -> Self {
        Self {
            path: dir.join(name),
            due: None,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Something is known that the file does not say.
    pub(super) fn is_old(&mut self) {
        self.due.get_or_insert_with(Instant::now);
    }

    /// `None`: there is no file.
    ///
    /// # Errors
    /// It cannot be read, or no agent can have written it.
    pub(super) fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = Vec::new();
        file.take(MAX_REMEMBERED + 1).read_to_end(&mut text)?;
        may_be_read(&text)?;
        Ok(Some(text))
    }

    /// Writes what `text` gives, if the file is old. A failure is told, and tried again by and by.
    pub(super) fn catch_up(&mut self, text: impl FnOnce() -> io::Result<Vec<u8>>) {
        if self.due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        let written = text().and_then(|text| {
            may_be_read(&text)?;
            replace(&self.path, &text, 0o600, Outlives::Process)
        });
        self.due = match written {
            Ok(()) => None,
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(%error, %path, "an agent started now would not know every pod; this is retried");
                Some(Instant::now() + PAUSE)
            }
        };
    }

    /// Nobody shall know anything of it any more.
    pub(super) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn may_be_read(text: &[u8]) -> io::Result<()> {
    match text.len() as u64 {
        0..=MAX_REMEMBERED => Ok(()),
        length => Err(io::Error::other(format!("{length} bytes are too many"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_written_is_due_later() {
        let dir = std::env::temp_dir().join(format!("shunt-state-{}", std::process::id()));
        let mut file = StateFile::new(&dir, "x.json");
        file.catch_up(|| panic!("it is not old"));
        file.is_old();
        // There is no such directory yet.
        file.catch_up(|| Ok(b"[]".into()));
        fs::create_dir(&dir).expect("made");
        file.is_old();
        file.catch_up(|| panic!("not yet"));
        assert!(file.due.is_some());
        file.due = Some(Instant::now());
        file.catch_up(|| Ok(b"[]".into()));
        assert_eq!(
            (file.due, file.read().expect("read")),
            (None, Some(b"[]".to_vec()))
        );
        file.is_old();
        file.catch_up(|| Err(io::Error::other("of whoever writes it")));
        assert!(file.due.is_some());
        let files = fs::read_dir(&dir).expect("a directory").count();
        fs::remove_dir_all(&dir).expect("removed");
        assert_eq!(files, 1, "nothing in between stays");
    }
}
