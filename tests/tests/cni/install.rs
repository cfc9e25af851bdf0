//! `shunt cni`: the plugin in its place, kept there, and taken away without a trace.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use shunt_tests::agent::signal;
use shunt_tests::cni::binary;
use shunt_tests::{Agent, AgentBuilder, World, agent, require, wait};

const LONGEST: Duration = Duration::from_secs(10);
const PRIMARY: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}"#;

/// The runtime's two directories.
struct Node {
    dir: PathBuf,
    socket: PathBuf,
}

impl Node {
    fn new(world: &World, agent: &Agent) -> Self {
        let node = Self {
            dir: world.dir.path().join("node"),
            socket: agent.dir.join("state/cni.sock"),
        };
        for dir in [node.conf(), node.bin()] {
            fs::create_dir_all(dir).expect("a directory");
        }
        node
    }

    fn conf(&self) -> PathBuf {
        self.dir.join("net.d")
    }

    fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    fn write(&self, name: &str, text: &str) {
        // As others do it: not at once.
        fs::write(self.conf().join(name), text).expect("written");
    }

    fn command(&self, verb: &str, more: &[&str]) -> Command {
        let mut command = Command::new(agent::binary());
        command.args(["cni", verb, "--socket"]).arg(&self.socket);
        command.arg("--binary").arg(binary());
        command.arg("--conf-dir").arg(self.conf());
        if !more.contains(&"--bin-dir") {
            command.arg("--bin-dir").arg(self.bin());
        }
        command.args(more);
        command
    }

    fn run(&self, verb: &str, more: &[&str]) -> Output {
        self.command(verb, more).output().expect("it runs")
    }

    fn succeeds(&self, verb: &str, more: &[&str]) -> String {
        let output = self.run(verb, more);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn fails(&self, verb: &str, more: &[&str]) -> String {
        let output = self.run(verb, more);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        said
    }

    /// Every file, its mode and what is in it.
    fn files(&self) -> Vec<(PathBuf, u32, Vec<u8>)> {
        let mut files = Vec::new();
        for dir in [self.conf(), self.bin()] {
            for entry in fs::read_dir(dir).expect("a directory") {
                let path = entry.expect("an entry").path();
                let mode = fs::metadata(&path).expect("there").permissions().mode();
                let held = fs::read(&path).expect("read");
                files.push((path, mode, held));
            }
        }
        files.sort();
        files
    }

    /// The types of the list that a runtime would take.
    fn chain(&self) -> Vec<String> {
        let mut names: Vec<PathBuf> = fs::read_dir(self.conf())
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        names.sort();
        let text = fs::read_to_string(&names[0]).expect("read");
        let list: Value = serde_json::from_str(&text).unwrap_or_default();
        let plugins = list["plugins"].as_array().cloned().unwrap_or_default();
        let kind = |plugin: &Value| plugin["type"].as_str().unwrap_or_default().to_owned();
        plugins.iter().map(kind).collect()
    }

    fn is_in_place(&self, primary: &str) -> bool {
        let plugin = fs::read(self.bin().join("shunt-cni")).unwrap_or_default();
        self.chain() == [primary, "shunt-cni"] && plugin == fs::read(binary()).expect("built")
    }
}

/// `shunt cni watch`, ended when dropped.
struct Watch(Child);

impl Watch {
    fn start(node: &Node) -> Self {
        let log = fs::File::create(node.dir.join("log")).expect("a log");
        let mut command = node.command("watch", &[]);
        command.stdout(Stdio::null()).stderr(log);
        Self(command.spawn().expect("it runs"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        signal("-TERM", self.0.id());
        let _ = self.0.wait();
    }
}

#[test]
fn installed_and_uninstalled_nothing_is_left() {
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, "iptables").start();
    let node = Node::new(&world, &agent);
    let single = r#"{"cniVersion": "0.4.0", "name": "pods", "type": "bridge"}"#;
    for (name, text) in [("10-pods.conflist", PRIMARY), ("10-pods.conf", single)] {
        node.write(name, text);
        node.write("99-loopback.conf", "{}");
        let before = node.files();
        node.succeeds("install", &[]);
        assert!(node.is_in_place("bridge"), "{name}: {:?}", node.chain());
        assert_eq!(
            fs::read_to_string(node.conf().join(name)).expect("there"),
            text
        );
        let installed = node.files();
        assert_eq!(installed.len(), before.len() + 2);
        assert!(node.succeeds("install", &[]).contains("in its place"));
        assert_eq!(node.files(), installed);
        node.succeeds("uninstall", &[]);
        assert_eq!(node.files(), before);
        assert!(node.succeeds("uninstall", &[]).contains("nothing"));
        fs::remove_file(node.conf().join(name)).expect("removed");
    }
}

#[test]
fn what_is_wrong_is_named_and_nothing_is_changed() {
    require::everything();
    let world = World::new();
    let mut agent = AgentBuilder::new(&world, "iptables").start();
    let node = Node::new(&world, &agent);
    node.write("10-pods.conflist", "{ half");
    let before = node.files();
    let said = node.fails("install", &[]);
    assert!(said.contains("10-pods.conflist is left alone"), "{said}");
    assert_eq!(node.files(), before);
    node.write("10-pods.conflist", &PRIMARY.replace("1.0.0", "0.3.1"));
    let said = node.fails("install", &[]);
    assert!(said.contains("0.3.1"), "{said}");
    node.write("10-pods.conflist", PRIMARY);
    let before = node.files();

    let settings = node.dir.join("settings.json");
    fs::write(&settings, json!({"colour": "red"}).to_string()).expect("written");
    let file = settings.display().to_string();
    let said = node.fails("install", &["--settings", &file]);
    assert!(said.contains("colour"), "{said}");
    assert_eq!(node.files(), before);

    let said = node.fails("install", &["--bin-dir", "/proc/self/attr"]);
    assert!(said.contains("it is as it was"), "{said}");
    assert_eq!(node.files(), before, "no list without a plugin");
    full_disk(&node, &before);

    agent.terminate();
    let said = node.fails("install", &["--wait", "300ms"]);
    assert!(said.contains("the agent is not ready"), "{said}");
    assert_eq!(node.files(), before);
}

/// Room for a part of the plugin.
fn full_disk(node: &Node, before: &[(PathBuf, u32, Vec<u8>)]) {
    let small = node.dir.join("small");
    fs::create_dir_all(&small).expect("a directory");
    let at = small.display().to_string();
    let mount = ["-t", "tmpfs", "-o", "size=64k", "none", &at];
    let mounted = Command::new("mount").args(mount).status().expect("mount");
    assert!(mounted.success());
    let said = node.fails("install", &["--bin-dir", &at]);
    let left = fs::read_dir(&small).expect("a directory").count();
    let unmounted = Command::new("umount").arg(&at).status().expect("umount");
    assert!(unmounted.success());
    assert!(said.contains("it is as it was"), "{said}");
    assert_eq!(left, 0, "nothing half");
    assert_eq!(node.files(), before);
}

/// As Calico, flannel and Cilium do to others' files, and to their own.
#[test]
fn what_others_change_is_put_right() {
    require::everything();
    let world = World::new();
    let mut agent = AgentBuilder::new(&world, "iptables").start();
    let node = Node::new(&world, &agent);
    node.write("10-pods.conflist", PRIMARY);
    agent.terminate();
    let _watch = Watch::start(&node);
    wait::until("it waits for the agent", LONGEST, || {
        let log = fs::read_to_string(node.dir.join("log")).unwrap_or_default();
        log.contains("waiting for the agent").then_some(())
    });
    assert_eq!(node.chain(), ["bridge"], "nobody is sent to nobody");
    agent.restart();
    let in_place = |what: &str, primary: &str| {
        wait::until(what, LONGEST, || node.is_in_place(primary).then_some(()));
    };
    in_place("installed", "bridge");

    let ours = node.conf().join("00-shunt.conflist");
    fs::rename(&ours, node.conf().join("00-shunt.conflist.bak")).expect("renamed");
    in_place("put back after a rename", "bridge");
    fs::write(&ours, "").expect("written");
    // Somebody else's file of our name is not ours to change.
    fs::remove_file(&ours).expect("removed");
    in_place("put back after a removal", "bridge");
    fs::remove_file(node.bin().join("shunt-cni")).expect("removed");
    in_place("the plugin is put back", "bridge");
    fs::write(node.bin().join("shunt-cni"), "x").expect("written");
    in_place("the plugin is put right", "bridge");

    node.write("10-pods.conflist", "{ half");
    node.write("10-pods.conflist", &PRIMARY.replace("bridge", "ptp"));
    in_place("the network was changed", "ptp");
    node.write("05-first.conflist", &PRIMARY.replace("bridge", "macvlan"));
    in_place("another network comes first", "macvlan");
    fs::remove_file(node.conf().join("05-first.conflist")).expect("removed");
    in_place("and goes", "ptp");
    fs::remove_file(node.conf().join("10-pods.conflist")).expect("removed");
    wait::until("no network, none of ours", LONGEST, || {
        (!Path::new(&ours).exists()).then_some(())
    });
}
