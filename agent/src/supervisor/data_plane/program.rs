//! What a data plane runs.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// See the head of this module.
#[derive(Debug)]
pub(in crate::supervisor) enum Program {
    /// Through /proc, so that a replaced file on disk does not mix two builds.
    Own,
    /// A later one; held, for the same reason.
    Held(File),
}

impl Program {
    pub(in crate::supervisor) fn path(&self) -> PathBuf {
        match self {
            Self::Own => "/proc/self/exe".into(),
            // The child has the same number until it is the program.
            Self::Held(file) => format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
        }
    }

    /// Opens the program that is on disk now where this one was started from.
    ///
    /// # Errors
    /// There is none.
    pub(in crate::supervisor) fn on_disk() -> io::Result<(PathBuf, Self)> {
        let own = std::fs::read_link("/proc/self/exe")?;
        // The kernel says so of a file whose name another one has now.
        let text = own.to_string_lossy();
        let path = PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text));
        let file = File::open(&path)?;
        Ok((path, Self::Held(file)))
    }
}
