//! A bpffs of a test's own.

use std::path::Path;
use std::process::Command;

/// Unmounted when dropped.
#[derive(Debug)]
pub struct Bpffs(pub String);

impl Bpffs {
    /// # Panics
    /// It cannot be mounted there.
    pub fn mount(below: &Path) -> Self {
        let at = below.join("bpf");
        std::fs::create_dir(&at).expect("a directory");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "bpf", "bpf"]).arg(&at).status();
        assert!(mounted.expect("runs").success(), "no bpffs");
        Self(at.display().to_string())
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
