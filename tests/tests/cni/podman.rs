//! A real runtime: podman with its CNI back end.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use shunt_tests::cni::{Network, binary};
use shunt_tests::{AgentBuilder, Podman, World, in_both_modes, require};

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
    let podman = podman(&world, &network.plugins[..2]);
    let url = format!("http://{}/", server.pod.v4);
    let asks = ["wget", "-q", "-O", "-", &url];
    run(&podman, "before", &asks);
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
        let output = shunt.output().expect("it runs");
        assert!(output.status.success(), "{output:?}");
    };
    fs::create_dir_all(podman.dir.join("plugins")).expect("a directory");
    shunt("install");
    run(&podman, "with", &asks);
    let lines = agent.lines(1);
    assert_eq!(lines[0]["workload"], "default/with");
    shunt("uninstall");
    run(&podman, "after", &asks);
    assert_eq!(agent.access_log().len(), 1);
    assert_eq!(enrolled(&agent), NOBODY);
}

/// podman whose networks are in the world's node, with an image that has busybox.
fn podman(world: &World, plugins: &[Value]) -> Podman {
    let beside = binary();
    let beside = beside.parent().expect("a directory");
    let networks = world.dir.path().join("podman/networks");
    let network = format!(
        "network_config_dir = {networks:?}\ncni_plugin_dirs = [\"/usr/lib/cni\", {beside:?}]"
    );
    let podman = Podman::new(world, &network).on_the_node();
    fs::create_dir_all(&networks).expect("a directory");
    let list = json!({"cniVersion": "0.4.0", "name": "pods", "plugins": plugins});
    fs::write(networks.join("pods.conflist"), list.to_string()).expect("written");
    let tree = podman.dir.join("tree");
    fs::create_dir_all(tree.join("bin")).expect("a directory");
    fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("busybox-static");
    podman.import(&tree, "busybox");
    podman
}

/// A container's output, from its begin to its end; it is removed then.
fn run(podman: &Podman, name: &str, command: &[&str]) -> String {
    let confined = podman.confined();
    let mut args = vec!["run", "--rm", "--name", name, "--network", "pods"];
    args.extend(confined.iter().map(String::as_str));
    args.extend(["localhost/busybox", "/bin/busybox"]);
    args.extend(command);
    podman.must(&args)
}

fn podmans_containers_are_intercepted_from_their_first_connection(mode: &str) {
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, mode).start();
    let network = Network::new(&world, "0.4.0", asking(&agent, &json!({})));
    let (server, _nginx) = server(&world, &network);
    let podman = podman(&world, &network.plugins);
    let url = format!("http://{}/", server.pod.v4);
    let names = ["one", "two", "three", "four"];
    std::thread::scope(|scope| {
        for name in names {
            let (podman, url) = (&podman, &url);
            scope.spawn(move || {
                let seen = run(podman, name, &["wget", "-q", "-O", "-", url]);
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
