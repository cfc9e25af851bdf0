//! Files that are replaced whole: whoever reads one sees what was there before, or all of what is there now.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

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
