//! What a kubelet and a CNI plugin do with pods that are enrolled.

use std::process::{Command, Output};

use serde_json::json;
use shunt_tests::kubernetes::{Driver, Sandbox, uid};
use shunt_tests::world::ip;
use shunt_tests::{World, in_both_modes, require};

use crate::{is_intercepted, scene, shown, two, upgrade_all, wait_for};

in_both_modes!(
    the_kubelets_probes_hear_the_truth,
    init_containers_are_intercepted,
    pods_that_start_while_the_agent_is_replaced_are_found
);

/// The node is where the bridge is, with an address as a gateway has.
fn on_the_node(world: &World, script: &str) -> Output {
    Command::new("timeout")
        .args([
            "20",
            "ip",
            "netns",
            "exec",
            world.label(),
            "python3",
            "-c",
            script,
        ])
        .output()
        .expect("it runs")
}

fn the_kubelets_probes_hear_the_truth(mode: &str) {
    require::everything();
    let world = World::new();
    ip(&format!(
        "-n {} addr add 10.66.0.1/24 dev br0",
        world.label()
    ));
    let server = Sandbox::run(&world, Driver::Systemd);
    let _nginx = server.pod.nginx(&world);
    let (api, agent) = scene(&world, mode, "");
    api.put(shown("server", &server, Some("enabled")));
    let agent = agent.start();
    wait_for(&agent, &["server"]);
    let get = |port: u16| {
        let url = format!("http://{}:{port}/", server.pod.v4);
        on_the_node(
            &world,
            &format!(
                "import urllib.request as u; print(u.urlopen('{url}', timeout=5).read().decode())"
            ),
        )
    };
    let open = get(80);
    assert_eq!(
        String::from_utf8_lossy(&open.stdout).trim(),
        "10.66.0.1",
        "{open:?}"
    );
    assert!(
        !get(81).status.success(),
        "an httpGet probe of a closed port fails"
    );
    let connect = format!(
        "import socket; s = socket.create_connection(('{}', 81), 5); s.recv(1)",
        server.pod.v4
    );
    let closed = on_the_node(&world, &connect);
    let said = String::from_utf8_lossy(&closed.stderr);
    assert!(said.contains("ConnectionRefusedError"), "{said}");
}

fn init_containers_are_intercepted(mode: &str) {
    require::everything();
    let world = World::new();
    let (client, server) = two(&world);
    let _nginx = server.pod.nginx(&world);
    let (api, agent) = scene(&world, mode, "");
    let agent = agent.start();
    let mut initialising = shown("client", &client, Some("enabled"));
    initialising["status"] = json!({"phase": "Pending", "initContainerStatuses": [{"name": "migrate", "state": {"running": {}}}]});
    api.put(initialising);
    wait_for(&agent, &["client"]);
    let init = client.container("cri-containerd-init.scope");
    let seen = init.says(
        "curl",
        &["-sSf", "-m", "5", &format!("http://{}/", server.pod.v4)],
    );
    assert_eq!(seen, client.pod.v4);
    assert_eq!(agent.lines(1)[0]["workload"], "shop/client");
}

fn pods_that_start_while_the_agent_is_replaced_are_found(mode: &str) {
    require::everything();
    let world = World::new();
    let (client, server) = two(&world);
    let _nginx = server.pod.nginx(&world);
    let root = world.cgroup().to_owned();
    let mut late = Sandbox::prepare(root, &uid(), Driver::Systemd, world.pod());
    let (api, agent) = scene(&world, mode, "");
    let agent = agent.start();
    for (name, sandbox) in [("client", &client), ("late", &late)] {
        api.put(shown(name, sandbox, Some("enabled")));
    }
    wait_for(&agent, &["client"]);
    std::thread::scope(|scope| {
        let upgraded = scope.spawn(|| upgrade_all(&agent));
        late.start();
        api.put(shown("server", &server, Some("enabled")));
        upgraded.join().expect("upgraded");
    });
    wait_for(&agent, &["client", "late", "server"]);
    assert!(is_intercepted(&agent, &late, &server));
    assert!(is_intercepted(&agent, &client, &server));
}

/// The container of deploy/kubernetes: /proc/sys is read-only, and made writable for the agent alone.
#[test]
fn in_a_container_sysctls_can_be_written() {
    require::everything();
    let world = World::new();
    let (client, server) = two(&world);
    let _nginx = server.pod.nginx(&world);
    let (api, agent) = scene(&world, "iptables", ", default: on");
    api.put(shown("client", &client, None));
    api.put(shown("server", &server, None));
    let agent = agent
        .with_read_only_sysctls()
        .argument("--writable-sysctls")
        .start();
    wait_for(&agent, &["client", "server"]);
    assert!(is_intercepted(&agent, &client, &server));
    let reason = agent.workload("server")["mode_reason"].clone();
    assert!(
        !reason.to_string().contains("addresses are not kept"),
        "{reason}"
    );
}
