//! containerd, asked over the CRI as a kubelet asks it. Everything it keeps is in one directory, and its networks are in
//! the world's node.

mod message;

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use self::message::{Message, first_text};
use crate::world::{Running, World};
use crate::{cni, wait};

/// Of the sandboxes and the containers alike: busybox, which sleeps unless it is told otherwise.
const IMAGE: &str = "localhost/busybox:1";
const LONGEST: &str = "60";

#[derive(Debug)]
pub struct Containerd {
    dir: PathBuf,
    node: String,
    /// Those that were not deleted.
    sandboxes: Mutex<Vec<String>>,
    _daemon: Running,
}

/// A pod's sandbox, with a container of which `command` is the first and only act.
#[derive(Debug)]
pub struct CriPod {
    pub sandbox: String,
    pub container: String,
    log: PathBuf,
}

/// Is it installed?
pub fn is_there() -> bool {
    Command::new("containerd").arg("--version").output().is_ok()
}

impl Containerd {
    /// With a network of these plugins.
    ///
    /// # Panics
    /// It does not start.
    pub fn start(world: &World, plugins: &[Value]) -> Self {
        let dir = world.dir.path().join("containerd");
        let (networks, programs) = (dir.join("networks"), dir.join("plugins"));
        for made in [&networks, &programs, &dir.join("logs")] {
            fs::create_dir_all(made).expect("a directory");
        }
        let list = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins});
        fs::write(networks.join("pods.conflist"), list.to_string()).expect("written");
        // It looks in one directory.
        for plugin in ["bridge", "host-local", "portmap", "loopback"] {
            let real = Path::new("/usr/lib/cni").join(plugin);
            symlink(real, programs.join(plugin)).expect("a link");
        }
        symlink(cni::binary(), programs.join("shunt-cni")).expect("a link");
        let config = dir.join("config.toml");
        fs::write(&config, configuration(&dir)).expect("written");
        let log = fs::File::create(dir.join("log")).expect("a log");
        // In the node's network; the host's mounts, for the agent shall see namespaces that it makes.
        let daemon = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", world.label()))
            .args(["containerd", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd starts");
        let containerd = Self {
            dir,
            node: world.label().to_owned(),
            sandboxes: Mutex::default(),
            _daemon: Running(daemon),
        };
        wait::until("containerd answers", Duration::from_secs(20), || {
            containerd.ctr(&["version"]).status.success().then_some(())
        });
        containerd.import();
        containerd
    }

    /// # Panics
    /// Its network or its processes cannot be made.
    pub fn run(&self, name: &str, command: &[&str]) -> CriPod {
        let uid = crate::kubernetes::uid();
        let logs = self.dir.join("logs").join(name);
        fs::create_dir_all(&logs).expect("a directory");
        let metadata = Message::default()
            .text(1, name)
            .text(2, &uid)
            .text(3, "shop");
        let linux = Message::default().text(1, &format!("/{}/pod{uid}", self.cgroup()));
        let config = Message::default()
            .inner(1, metadata)
            .text(2, name)
            .text(3, &logs.display().to_string())
            .inner(8, linux);
        let run = Message::default().inner(1, config.clone());
        let sandbox = self.must("RunPodSandbox", &run);
        self.sandboxes.lock().expect("whole").push(sandbox.clone());
        let container = Message::default()
            .inner(1, Message::default().text(1, "first"))
            .inner(2, Message::default().text(1, IMAGE))
            .text(3, "/bin/busybox");
        let container = command
            .iter()
            .fold(container, |made, word| made.text(4, word))
            .text(11, "first.log");
        let create = Message::default()
            .text(1, &sandbox)
            .inner(2, container)
            .inner(3, config);
        let container = self.must("CreateContainer", &create);
        self.must("StartContainer", &Message::default().text(1, &container));
        CriPod {
            sandbox,
            container,
            log: logs.join("first.log"),
        }
    }

    /// As the kubelet does when a pod is deleted: again, where containerd stumbles over a container that ends by itself.
    ///
    /// # Panics
    /// Something of it stays.
    pub fn delete(&self, pod: &CriPod) {
        let mut said = Err("not asked".to_owned());
        for _ in 0..20 {
            said = self.end(&pod.sandbox);
            if said.is_ok() {
                break;
            }
            wait::pause(Duration::from_millis(250));
        }
        assert_eq!(said, Ok(()), "{}", self.log());
        let mut all = self.sandboxes.lock().expect("whole");
        all.retain(|sandbox| *sandbox != pod.sandbox);
    }

    fn end(&self, sandbox: &str) -> Result<(), String> {
        let sandbox = Message::default().text(1, sandbox);
        self.ask("StopPodSandbox", &sandbox)?;
        self.ask("RemovePodSandbox", &sandbox).map(|_| ())
    }

    /// An image that is its sandboxes' too.
    fn import(&self) {
        let tree = self.dir.join("tree");
        fs::create_dir_all(tree.join("bin")).expect("a directory");
        fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("busybox-static");
        let image = self.dir.join("image");
        fs::create_dir_all(&image).expect("a directory");
        let tar = |from: &Path, to: &Path| {
            let mut tar = Command::new("tar");
            tar.arg("-C").arg(from).arg("-cf").arg(to).arg(".");
            assert!(tar.status().expect("tar runs").success());
        };
        let layer = image.join("layer.tar");
        tar(&tree, &layer);
        let sum = Command::new("sha256sum").arg(&layer).output();
        let sum = succeeds(&sum.expect("it runs"));
        let sum = sum.split(' ').next().expect("a sum");
        let architecture = match std::env::consts::ARCH {
            "aarch64" => "arm64",
            _ => "amd64",
        };
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": {"Entrypoint": ["/bin/busybox", "sleep", "100000"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
        });
        let manifest =
            json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
        fs::write(image.join("config.json"), config.to_string()).expect("written");
        fs::write(image.join("manifest.json"), manifest.to_string()).expect("written");
        let archive = self.dir.join("image.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&image).arg("-cf").arg(&archive);
        tar.args(["manifest.json", "config.json", "layer.tar"]);
        assert!(tar.status().expect("tar runs").success());
        let archive = archive.display().to_string();
        succeeds(&self.ctr(&["-n", "k8s.io", "images", "import", &archive]));
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    fn ctr(&self, args: &[&str]) -> Output {
        Command::new("timeout")
            .args([LONGEST, "ctr", "--address"])
            .arg(self.socket())
            .args(args)
            .output()
            .expect("ctr runs")
    }

    fn must(&self, verb: &str, message: &Message) -> String {
        self.ask(verb, message)
            .unwrap_or_else(|said| panic!("{said}\n{}", self.log()))
    }

    /// The first text of the answer; the error is what it said instead.
    fn ask(&self, verb: &str, message: &Message) -> Result<String, String> {
        let url = format!("http://localhost/runtime.v1.RuntimeService/{verb}");
        let mut curl = Command::new("curl")
            .args(["-sS", "-m", LONGEST, "--http2-prior-knowledge"])
            .arg("--unix-socket")
            .arg(self.socket())
            .args(["-H", "content-type: application/grpc", "-H", "te: trailers"])
            // Trailers come there too.
            .args(["-D", "/dev/stderr", "--data-binary", "@-", &url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("curl runs");
        let mut stdin = curl.stdin.take().expect("a pipe");
        stdin.write_all(&message.framed()).expect("it reads");
        drop(stdin);
        let output = curl.wait_with_output().expect("it ends");
        let heads = String::from_utf8_lossy(&output.stderr);
        match heads.contains("grpc-status: 0") {
            true => Ok(first_text(&output.stdout)),
            false => Err(format!("{verb}: {heads}")),
        }
    }

    /// What it said last.
    fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn cgroup(&self) -> String {
        format!("{}-containerd", self.node)
    }
}

impl CriPod {
    /// What its container said until it ended.
    ///
    /// # Panics
    /// It says nothing in time.
    pub fn says(&self) -> String {
        wait::until(
            "the container has said something",
            Duration::from_secs(20),
            || {
                let text = fs::read_to_string(&self.log).ok()?;
                // TIME STREAM TAG TEXT
                let line = text.lines().next()?;
                line.splitn(4, ' ').nth(3).map(str::to_owned)
            },
        )
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for sandbox in self.sandboxes.lock().expect("whole").clone() {
            // Of a test that failed; best effort.
            let _ = self.end(&sandbox);
        }
        // In every hierarchy; pods' cgroups are the kubelet's to remove.
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
        for hierarchy in hierarchies.map(|entry| entry.path()).chain([root.into()]) {
            let all = hierarchy.join(self.cgroup());
            for of_pod in fs::read_dir(&all).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(of_pod.path());
            }
            let _ = fs::remove_dir(&all);
        }
    }
}

fn configuration(dir: &Path) -> String {
    let at = |name: &str| format!("{:?}", dir.join(name));
    let (root, state, socket) = (at("root"), at("state"), at("containerd.sock"));
    let (plugins, networks, opt) = (at("plugins"), at("networks"), at("opt"));
    format!(
        r#"version = 2
root = {root}
state = {state}
[grpc]
address = {socket}
[plugins."io.containerd.internal.v1.opt"]
path = {opt}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
disable_apparmor = true
tolerate_missing_hugetlb_controller = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {plugins}
conf_dir = {networks}
"#
    )
}

fn succeeds(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
