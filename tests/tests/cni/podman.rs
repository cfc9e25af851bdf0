//! A real runtime: podman with its CNI back end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};
use shunt_tests::cni::{Network, binary};
use shunt_tests::{AgentBuilder, World, in_both_modes, require, wait};

use crate::{NOBODY, asking, enrolled, server};

in_both_modes!(podmans_containers_are_intercepted_from_their_first_connection);

/// The network's own file does not have the plugin; `shunt cni install` puts a list before it.
#[test]
fn podman_takes_the_installed_list() {
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, "ebpf").start();
    let network = Network::new(&world, "0.4.0", asking(&agent, &json!({})));
    let (server, _nginx) = server(&world, &network);
    let podman = Podman::new(&world, &network.plugins[..2]);
    let url = format!("http://{}/", server.pod.v4);
    let asks = ["wget", "-q", "-O", "-", &url];
    podman.run("before", &asks);
    assert_eq!(agent.access_log().len(), 0);

    let settings = podman.dir.join("settings.json");
    let workload = json!({"workload": {"acceleration": "off"}});
    fs::write(&settings, workload.to_string()).expect("written");
    let shunt = |verb: &str| {
        let mut shunt = Command::new(shunt_tests::agent::binary());
        shunt.args(["cni", verb, "--settings"]).arg(&settings);
        shunt.arg("--socket").arg(agent.dir.join("state/cni.sock"));
        shunt.arg("--binary").arg(binary());
        shunt.arg("--bin-dir").arg(podman.dir.join("plugins"));
        shunt.arg("--conf-dir").arg(podman.dir.join("networks"));
        succeeds(&shunt.output().expect("it runs"))
    };
    fs::create_dir_all(podman.dir.join("plugins")).expect("a directory");
    shunt("install");
    podman.run("with", &asks);
    let lines = agent.lines(1);
    assert_eq!(lines[0]["workload"], "default/with");
    shunt("uninstall");
    podman.run("after", &asks);
    assert_eq!(agent.access_log().len(), 1);
    assert_eq!(enrolled(&agent), NOBODY);
}

/// podman with everything it keeps in one directory, and its networks in the world's node.
struct Podman {
    dir: PathBuf,
    node: String,
}

impl Podman {
    fn new(world: &World, plugins: &[Value]) -> Self {
        let dir = world.dir.path().join("podman");
        let networks = dir.join("networks");
        fs::create_dir_all(&networks).expect("a directory");
        let list = json!({"cniVersion": "0.4.0", "name": "pods", "plugins": plugins});
        fs::write(networks.join("pods.conflist"), list.to_string()).expect("written");
        let beside = binary();
        let beside = beside.parent().expect("a directory");
        let config = format!(
            "[network]\nnetwork_backend = \"cni\"\nnetwork_config_dir = {networks:?}\n\
             cni_plugin_dirs = [\"/usr/lib/cni\", {beside:?}]\n\
             [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n"
        );
        fs::write(dir.join("containers.conf"), config).expect("written");
        let node = world.label().to_owned();
        let podman = Self { dir, node };
        podman.import();
        podman
    }

    /// An image that has busybox.
    fn import(&self) {
        let tree = self.dir.join("tree");
        fs::create_dir_all(tree.join("bin")).expect("a directory");
        fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("busybox-static");
        let archive = self.dir.join("image.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&tree).arg("-cf").arg(&archive).arg(".");
        assert!(tar.status().expect("tar runs").success());
        let archive = archive.display().to_string();
        succeeds(&self.command(&["import", &archive, "busybox"]));
    }

    /// In the node's network; the host's mounts, for the agent shall see namespaces that podman makes.
    fn command(&self, args: &[&str]) -> Output {
        let at = |part: &str| -> PathBuf { Path::new(&self.dir).join(part) };
        Command::new("timeout")
            .args(["60", "nsenter"])
            .arg(format!("--net=/run/netns/{}", self.node))
            .args(["podman", "--storage-driver", "vfs"])
            .arg("--root")
            .arg(at("root"))
            .arg("--runroot")
            .arg(at("run"))
            .arg("--tmpdir")
            .arg(at("tmp"))
            .args(args)
            .env("CONTAINERS_CONF", at("containers.conf"))
            .output()
            .expect("podman runs")
    }

    /// A container's output, from its begin to its end; it is removed then.
    fn run(&self, name: &str, command: &[&str]) -> String {
        let parent = format!("/{}", self.cgroup());
        let mut args = vec!["run", "--rm", "--name", name, "--network", "pods"];
        args.extend(["--cgroup-parent", &parent]);
        args.extend([
            "--ulimit",
            "nofile=1024:4096",
            "--ulimit",
            "nproc=1000:2000",
        ]);
        args.extend(["localhost/busybox", "/bin/busybox"]);
        args.extend(command);
        succeeds(&self.command(&args))
    }
}

impl Podman {
    fn cgroup(&self) -> String {
        format!("{}-podman", self.node)
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

fn podmans_containers_are_intercepted_from_their_first_connection(mode: &str) {
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, mode).start();
    let network = Network::new(&world, "0.4.0", asking(&agent, &json!({})));
    let (server, _nginx) = server(&world, &network);
    let podman = Podman::new(&world, &network.plugins);
    let url = format!("http://{}/", server.pod.v4);
    let names = ["one", "two", "three", "four"];
    std::thread::scope(|scope| {
        for name in names {
            let (podman, url) = (&podman, &url);
            scope.spawn(move || {
                let seen = podman.run(name, &["wget", "-q", "-O", "-", url]);
                assert!(seen.starts_with("10.77."), "its own address: {seen}");
            });
        }
    });
    let lines = agent.lines(names.len());
    for name in names {
        let workload = format!("default/{name}");
        let told = lines.iter().any(|line| line["workload"] == workload);
        assert!(told, "{workload}: {lines:?}");
    }
    assert_eq!(enrolled(&agent), NOBODY);
}
