//! podman, with everything that it keeps in one directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::wait;
use crate::world::World;

/// Seconds after which a command of it hangs.
const LONGEST: &str = "100";

/// Its containers' cgroups go when it is dropped.
#[derive(Debug)]
pub struct Podman {
    pub dir: PathBuf,
    label: String,
    /// Words that stand before its own.
    before: Vec<String>,
}

impl Podman {
    /// `network`: what its configuration says of networks besides the kind, CNI.
    ///
    /// # Panics
    /// Its files cannot be written.
    pub fn new(world: &World, network: &str) -> Self {
        let dir = world.dir.path().join("podman");
        fs::create_dir_all(&dir).expect("a directory");
        let config = format!(
            "[network]\nnetwork_backend = \"cni\"\n{network}\n\
             [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n"
        );
        fs::write(dir.join("containers.conf"), config).expect("written");
        Self {
            dir,
            label: world.label().to_owned(),
            before: Vec::new(),
        }
    }

    /// In the network of the world's node; the host's mounts, for an agent shall see namespaces that it makes.
    #[must_use]
    pub fn on_the_node(mut self) -> Self {
        let netns = format!("--net=/run/netns/{}", self.label);
        self.before = vec!["nsenter".into(), netns];
        self
    }

    /// An image of these files.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn import(&self, tree: &Path, name: &str) {
        let archive = self.dir.join("image.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(tree).arg("-cf").arg(&archive).arg(".");
        assert!(tar.status().expect("tar runs").success());
        self.must(&["import", &archive.display().to_string(), name]);
        fs::remove_file(archive).expect("removed");
    }

    /// `podman` with these words.
    pub fn command(&self, args: &[&str]) -> Command {
        let at = |part: &str| self.dir.join(part);
        let mut command = Command::new("timeout");
        command
            .arg(LONGEST)
            .args(&self.before)
            .args(["podman", "--storage-driver", "vfs", "--root"])
            .arg(at("root"))
            .arg("--runroot")
            .arg(at("run"))
            .arg("--tmpdir")
            .arg(at("tmp"))
            .args(args)
            .env("CONTAINERS_CONF", at("containers.conf"));
        command
    }

    /// What it says.
    ///
    /// # Panics
    /// It fails.
    pub fn must(&self, args: &[&str]) -> String {
        succeeds(&self.command(args).output().expect("podman runs"))
    }

    /// What every container of it needs: a cgroup of the world's, limits that the host allows.
    pub fn confined(&self) -> Vec<String> {
        let parent = format!("--cgroup-parent=/{}", self.cgroup());
        let limits = ["--ulimit=nofile=1024:4096", "--ulimit=nproc=1000:2000"];
        let mut words = vec![parent];
        words.extend(limits.map(str::to_owned));
        words
    }

    fn cgroup(&self) -> String {
        format!("{}-podman", self.label)
    }

    /// Of this world's containers, in every hierarchy.
    fn cgroups(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
        let hierarchies = hierarchies.map(|entry| entry.path());
        std::iter::once(root.to_owned())
            .chain(hierarchies)
            .map(|hierarchy| hierarchy.join(self.cgroup()))
            .filter(|cgroup| cgroup.is_dir())
            .collect()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // The containers' monitors end a moment after them.
        for _ in 0..200 {
            let cgroups = self.cgroups();
            if cgroups.is_empty() {
                break;
            }
            for cgroup in cgroups {
                let _ = fs::remove_dir(cgroup.join("conmon"));
                let _ = fs::remove_dir(cgroup);
            }
            wait::pause(Duration::from_millis(10));
        }
    }
}

fn succeeds(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
