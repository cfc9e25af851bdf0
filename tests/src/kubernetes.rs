//! Pods as a kubelet leaves them on a node, and an API server that tells of them.

mod account;
mod answer;
mod api;
mod authority;
mod objects;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub use self::account::ServiceAccount;
pub use self::api::{ApiServer, Failing};
pub use self::authority::Authority;
pub use self::objects::{namespace, pod};
use crate::agent::AgentBuilder;
use crate::wait;
use crate::world::{Pod, Running, World, cgroup2, remove_cgroup};

/// Whose names of cgroups a pod has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Systemd,
    Cgroupfs,
}

/// What a kubelet makes of a pod: its cgroup, in it its sandbox with a process in a network namespace of its own.
#[derive(Debug)]
pub struct Sandbox {
    pub uid: String,
    /// Its programs run in a container of it.
    pub pod: Pod,
    top: PathBuf,
    sandbox: PathBuf,
    pause: Option<Running>,
}

/// An uid that no other pod of the tests has.
pub fn uid() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!(
        "6b0a6f2e-2a3c-4a7e-{:04x}-{:08x}{number:04x}",
        0x9d0b,
        std::process::id()
    )
}

impl Sandbox {
    /// The pod's cgroups below `root`, and no process yet. `pod` is a namespace with its network.
    ///
    /// # Panics
    /// The host does not allow it.
    pub fn prepare(root: PathBuf, uid: &str, driver: Driver, mut pod: Pod) -> Self {
        let id = format!("{}{}", uid.replace('-', ""), "0".repeat(32));
        let (of_pod, sandbox, container) = match driver {
            Driver::Systemd => {
                let slice = format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_"));
                let path = PathBuf::from("kubepods.slice/kubepods-burstable.slice").join(slice);
                (
                    path,
                    format!("cri-containerd-{id}.scope"),
                    format!("cri-containerd-c{}.scope", &id[1..]),
                )
            }
            Driver::Cgroupfs => (
                PathBuf::from("kubepods/burstable").join(format!("pod{uid}")),
                id.clone(),
                format!("c{}", &id[1..]),
            ),
        };
        let top = root.join(of_pod);
        let (sandbox, container) = (top.join(sandbox), top.join(container));
        pod.cgroup = container;
        let sandbox = Self {
            uid: uid.to_owned(),
            pod,
            top,
            sandbox,
            pause: None,
        };
        sandbox.make_cgroups();
        sandbox
    }

    fn make_cgroups(&self) {
        for cgroup in [&self.sandbox, &self.pod.cgroup] {
            fs::create_dir_all(cgroup).expect("a cgroup");
        }
    }

    /// A pod that runs, below the world's own cgroup.
    ///
    /// # Panics
    /// As [`Sandbox::prepare`].
    pub fn run(world: &World, driver: Driver) -> Self {
        let mut sandbox = Self::prepare(world.cgroup().to_owned(), &uid(), driver, world.pod());
        sandbox.start();
        sandbox
    }

    /// A pod with `hostNetwork` on a host, that runs, its cgroups below `root`.
    ///
    /// # Panics
    /// As [`Sandbox::prepare`].
    pub fn run_on(root: &Path, host: &Pod) -> Self {
        let pod = Pod {
            netns: host.netns.clone(),
            v4: host.v4.clone(),
            v6: host.v6.clone(),
            cgroup: PathBuf::new(),
        };
        let mut sandbox = Self::prepare(root.to_owned(), &uid(), Driver::Systemd, pod);
        sandbox.start();
        sandbox
    }

    /// Its first process.
    ///
    /// # Panics
    /// It does not start.
    pub fn start(&mut self) {
        self.make_cgroups();
        let script = "echo 0 > \"$1/cgroup.procs\"; exec ip netns exec \"$2\" sleep infinity";
        let child = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(&self.sandbox)
            .arg(&self.pod.netns)
            .stdin(Stdio::null())
            .spawn()
            .expect("sh starts");
        let pid = child.id();
        self.pause = Some(Running(child));
        wait::until("the sandbox's process", Duration::from_secs(5), || {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (name.trim() == "sleep").then_some(())
        });
    }

    /// Another container of the pod: what runs in this is there.
    ///
    /// # Panics
    /// The host does not allow it.
    pub fn container(&self, name: &str) -> Pod {
        let cgroup = self.top.join(name);
        fs::create_dir_all(&cgroup).expect("a cgroup");
        Pod {
            netns: self.pod.netns.clone(),
            v4: self.pod.v4.clone(),
            v6: self.pod.v6.clone(),
            cgroup,
        }
    }

    /// Its processes end; its network and cgroups stay as long as the kubelet likes.
    pub fn end(&mut self) {
        self.pause = None;
    }

    /// Its processes end and its cgroups go, as when the kubelet has cleaned up.
    ///
    /// # Panics
    /// The cgroups stay.
    pub fn clear(&mut self) {
        self.end();
        let _ = fs::write(self.top.join("cgroup.kill"), "1");
        let cgroups = [&self.sandbox, &self.pod.cgroup, &self.top];
        cgroups.into_iter().for_each(|cgroup| remove_cgroup(cgroup));
        assert!(!self.top.exists(), "the cgroup is in use");
    }

    /// Ends, and is started in another network namespace, as after a reboot or a lost sandbox.
    ///
    /// # Panics
    /// As [`Sandbox::start`].
    pub fn restart(&mut self, mut elsewhere: Pod) {
        self.end();
        elsewhere.cgroup.clone_from(&self.pod.cgroup);
        self.pod = elsewhere;
        self.start();
    }
}

impl AgentBuilder<'_> {
    /// The agent is a container of this pod.
    #[must_use]
    pub fn of_pod(self, sandbox: &Sandbox) -> Self {
        self.in_container(sandbox, "")
    }

    /// The agent is a container of this pod, and has a cgroup namespace as those have under cgroup2.
    #[must_use]
    pub fn of_pod_in_a_cgroup_namespace(self, sandbox: &Sandbox) -> Self {
        self.in_container(sandbox, "unshare --cgroup ")
    }

    fn in_container(self, sandbox: &Sandbox, by: &str) -> Self {
        let script = format!("echo 0 > \"$0/cgroup.procs\" && exec {by}nsenter \"$@\"");
        let cgroup = sandbox.pod.cgroup.display().to_string();
        let netns = format!("--net=/run/netns/{}", sandbox.pod.netns);
        self.behind(vec!["sh".into(), "-c".into(), script, cgroup, netns])
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.end();
        let _ = fs::write(self.top.join("cgroup.kill"), "1");
        let remove = || {
            for cgroup in fs::read_dir(&self.top).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(cgroup.path());
            }
            let _ = fs::remove_dir(&self.top);
            !self.top.exists()
        };
        for _ in 0..200 {
            if remove() {
                break;
            }
            wait::pause(Duration::from_millis(10));
        }
        // Where this was the last pod, also what is above: below the mount's own entries.
        let root = cgroup2();
        for above in self
            .top
            .ancestors()
            .skip(1)
            .take_while(|above| **above != root)
        {
            if !above.to_string_lossy().contains("kubepods") || fs::remove_dir(above).is_err() {
                break;
            }
        }
    }
}
