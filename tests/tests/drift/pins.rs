//! What keeps a workload closed when the agent is dead is in a file system where anybody may remove it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use shunt_tests::agent::signal;
use shunt_tests::require;

use crate::scene::{Scene, Settings};

/// A bpffs of the test's own, unmounted when dropped.
struct Bpffs(tempfile::TempDir);

impl Bpffs {
    fn mounted() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut mount = Command::new("mount");
        mount.args(["-t", "bpf", "bpf"]).arg(dir.path());
        assert!(mount.status().expect("runs").success(), "no bpffs");
        Self(dir)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// Everything that the agent has pinned.
fn pins(bpffs: &Path) -> Vec<PathBuf> {
    let dirs = fs::read_dir(bpffs).expect("made").flatten();
    let files = dirs.flat_map(|dir| fs::read_dir(dir.path()).expect("a directory").flatten());
    let mut files: Vec<PathBuf> = files.map(|file| file.path()).collect();
    files.sort();
    files
}

#[test]
fn removed_pins_come_back() {
    require::everything();
    let bpffs = Bpffs::mounted();
    let at = bpffs.0.path().join("shunt");
    let settings = Settings {
        agent: &format!("bpffs: {}", at.display()),
        client: "on_failure: closed",
    };
    let mut scene = Scene::configured("ebpf", "nft", settings, |_| None);
    let before = pins(&at);
    let of = |name: &str| {
        let mut files = before.iter();
        let file = files.find(|file| file.to_string_lossy().ends_with(name));
        file.expect("pinned").clone()
    };
    for name in ["-shunt_connect4", "-sk_lookup", "/workloads"] {
        scene.repaired("pins", "not pinned", || {
            fs::remove_file(of(name)).expect("there");
        });
        assert_eq!(pins(&at).len(), before.len(), "{name}");
    }
    scene.repaired("pins", "not pinned", || {
        fs::remove_dir_all(&at).expect("there");
    });
    assert_eq!(pins(&at).len(), before.len());
    // They are what they were for.
    let worker = scene.agent.worker_pid().expect("a data plane");
    scene.agent.kill();
    signal("-KILL", worker);
    let url = format!("http://{}/", scene.server.v4);
    let curl = scene.client.run("curl", &["-sS", "-m", "3", &url]);
    assert_eq!(curl.status.code(), Some(7), "refused");
    scene.agent.restart();
}
