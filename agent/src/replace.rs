//! Files that are replaced whole: whoever reads one sees what was there before, or all of what is there now.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

/// Nobody takes so long for writing a file: whoever has not replaced it by then was killed.
const STALE: Duration = Duration::from_secs(60);

/// What a file has to outlive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlives {
    /// Its writer. No disk is waited for.
    Process,
    /// The host, however it goes down.
    Host,
}

/// The name in between begins with a dot: it is nobody's configuration.
///
/// # Errors
/// The file is as it was.
pub fn replace(path: &Path, text: &[u8], mode: u32, outlives: Outlives) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.{}", std::process::id()));
    remove_stale(path, &name);
    let write = || -> io::Result<()> {
        let _ = fs::remove_file(&new);
        let mut file = File::options()
            .create_new(true)
            .write(true)
            .mode(mode)
            .open(&new)?;
        file.write_all(text)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        if outlives == Outlives::Host {
            file.sync_all()?;
        }
        fs::rename(&new, path)?;
        match outlives {
            Outlives::Host => sync_directory(path),
            Outlives::Process => Ok(()),
        }
    };
    write().inspect_err(|_| drop(fs::remove_file(&new)))
}

/// What writers of this file that were killed have left beside it.
fn remove_stale(path: &Path, name: &str) {
    let beside = path.parent().and_then(|dir| fs::read_dir(dir).ok());
    for entry in beside.into_iter().flatten().flatten() {
        let is_stale = || {
            let found = entry.file_name();
            let writer = found.to_str()?.strip_prefix('.')?.strip_prefix(name)?;
            writer.strip_prefix('.')?.parse::<u32>().ok()?;
            let age = entry.metadata().ok()?.modified().ok()?.elapsed().ok()?;
            Some(age > STALE)
        };
        if is_stale() == Some(true) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// What was put into `path`'s directory, or taken from it, outlives the host.
///
/// # Errors
/// Of the disk.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn what_killed_writers_left_goes_and_nothing_else() {
        let dir = std::env::temp_dir().join(format!("shunt-replace-{}", std::process::id()));
        fs::create_dir(&dir).expect("made");
        let old = SystemTime::now() - 2 * STALE;
        for name in [
            ".x.json.1",
            ".x.json.22",
            ".x.json.bak",
            ".y.json.1",
            "x.json.1",
        ] {
            let file = File::create(dir.join(name)).expect("made");
            file.set_modified(old).expect("aged");
        }
        // Somebody is writing it now.
        File::create(dir.join(".x.json.3")).expect("made");
        replace(&dir.join("x.json"), b"{}", 0o600, Outlives::Process).expect("replaced");
        let entries = fs::read_dir(&dir).expect("read").flatten();
        let mut left: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        let wanted = [
            ".x.json.3",
            ".x.json.bak",
            ".y.json.1",
            "x.json",
            "x.json.1",
        ];
        fs::remove_dir_all(&dir).expect("removed");
        assert_eq!(left, wanted);
    }
}
