//! Pods that the CNI plugin enrols and the API tells of, whichever comes first.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use shunt_tests::cni::{Network, Said, binary};
use shunt_tests::kubernetes::{Sandbox, pod};
use shunt_tests::{Agent, World, in_both_modes, require, wait};

use crate::{is_intercepted, scene, served, shown, two, wait_for};

in_both_modes!(what_the_pod_refuses_the_plugin_leaves_alone);

/// `shunt-cni`, asked by a runtime about a pod of a kubelet.
struct Plugin<'w> {
    network: Network<'w>,
    socket: std::path::PathBuf,
    settings: Value,
}

impl<'w> Plugin<'w> {
    fn new(world: &'w World, agent: &Agent, settings: Value) -> Self {
        Self {
            network: Network::new(world, "1.0.0", Value::Null),
            socket: agent.dir.join("state/cni.sock"),
            settings,
        }
    }

    fn ask(&self, verb: &str, name: &str, sandbox: &Sandbox) -> Said {
        let mut input = json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "shunt-cni", "socket": self.socket,
            "timeout_ms": 10_000, "prevResult": {"cniVersion": "1.0.0"},
        });
        let map = input.as_object_mut().expect("an object");
        map.extend(self.settings.as_object().expect("an object").clone());
        let environment = [
            ("CNI_CONTAINERID", format!("c0ffee-{name}")),
            ("CNI_NETNS", format!("/run/netns/{}", sandbox.pod.netns)),
            ("CNI_IFNAME", "eth0".to_owned()),
            (
                "CNI_ARGS",
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name}"),
            ),
        ];
        let text = input.to_string();
        self.network
            .run(&binary(), verb, &environment, text.as_bytes())
    }

    fn must(&self, verb: &str, name: &str, sandbox: &Sandbox) {
        let said = self.ask(verb, name, sandbox);
        assert!(said.succeeded && said.stderr.is_empty(), "{verb}: {said:?}");
    }
}

fn both_know(agent: &Agent, name: &str, sandbox: &Sandbox) {
    wait::until("both know it", Duration::from_secs(15), || {
        let labels = agent.workload(name)["labels"].clone();
        let of_plugin = labels["shunt.io/cni-container"] == format!("c0ffee-{name}");
        (of_plugin && labels["shunt.io/pod-uid"] == sandbox.uid.as_str()).then_some(())
    });
}

/// Would a connection to this port be intercepted?
fn captured(agent: &Agent, name: &str, to: &Sandbox, port: u16) -> bool {
    let to = format!("{}:{port}", to.pod.v4);
    let asked = Command::new(shunt_tests::agent::binary())
        .args(["explain", &format!("shop/{name}"), &to, "--socket"])
        .arg(agent.dir.join("admin.sock"))
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&asked.stdout).into_owned();
    let verdict = said.lines().next().unwrap_or_default();
    assert!(verdict.contains(&to), "{asked:?}");
    verdict.contains(": captured")
}

#[test]
fn a_pod_of_the_cni_plugin_is_one_workload() {
    require::everything();
    let world = World::new();
    let (client, server) = two(&world);
    let _nginx = server.pod.nginx(&world);
    let (api, agent) = scene(&world, "ebpf", "");
    let agent = agent.start();
    let workload = json!({"acceleration": "off"});
    let plugin = Plugin::new(&world, &agent, json!({"workload": workload}));
    // Before the API has told of the pod.
    plugin.must("ADD", "client", &client);
    api.put(shown("client", &client, Some("enabled")));
    both_know(&agent, "client", &client);
    let netns = format!("/run/netns/{}", client.pod.netns);
    assert_eq!(
        agent.workload("client")["netns"],
        netns.as_str(),
        "the plugin's name for it"
    );
    assert_eq!(served(&agent), ["client"]);
    assert!(is_intercepted(&agent, &client, &server));
    plugin.must("ADD", "client", &client);
    plugin.must("CHECK", "client", &client);
    both_know(&agent, "client", &client);
    // While the API still shows the pod and its processes end.
    plugin.must("DEL", "client", &client);
    wait::pause(Duration::from_secs(1));
    assert_eq!(served(&agent), [""; 0]);
    // Its namespace never said anything: who is not wanted by the API is left to the plugin.
    plugin.must("ADD", "other", &client);
    api.put(shown("other", &client, None));
    wait::pause(Duration::from_secs(1));
    assert_eq!(served(&agent), ["other"]);
    api.put(shown("other", &client, Some("disabled")));
    wait_for(&agent, &[]);
}

/// The plugin's settings count where the pod says nothing, in either order.
#[test]
fn the_pods_annotations_are_laid_over_the_plugins_settings() {
    require::everything();
    let world = World::new();
    let (early, late) = two(&world);
    let server = Sandbox::run(&world, shunt_tests::kubernetes::Driver::Systemd);
    let _nginx = server.pod.nginx(&world);
    let (api, agent) = scene(&world, "iptables", "");
    let mut agent = agent.start();
    let workload = json!({
        "acceleration": "off", "labels": {"tier": "plugin", "app": "plugin"},
        "outbound": {"exclude_ports": [8443, 8444]},
    });
    let settings = json!({"on_failure": "closed", "workload": workload});
    let plugin = Plugin::new(&world, &agent, settings);
    let annotated = |name: &str, sandbox: &Sandbox, more: Value| {
        let labels = json!({"app": name, "shunt.io/inject": "enabled"});
        pod(name, &sandbox.uid, &sandbox.pod.v4, labels, more)
    };
    let inbound = json!({"shunt.io/exclude-inbound-ports": "9100"});
    plugin.must("ADD", "early", &early);
    api.put(annotated("early", &early, inbound.clone()));
    api.put(annotated("late", &late, inbound));
    wait_for(&agent, &["early", "late"]);
    plugin.must("ADD", "late", &late);
    for (name, sandbox) in [("early", &early), ("late", &late)] {
        both_know(&agent, name, sandbox);
        assert!(!captured(&agent, name, &server, 8443), "{name}");
        assert!(is_intercepted(&agent, sandbox, &server), "{name}");
    }
    agent.kill();
    let url = format!("http://{}/", server.pod.v4);
    for sandbox in [&early, &late] {
        wait::until(
            "it fails closed, as the plugin says",
            Duration::from_secs(10),
            || {
                let tried = sandbox.pod.run("curl", &["-sS", "-m", "5", &url]);
                (!tried.status.success()).then_some(())
            },
        );
    }
    agent.restart();
    wait_for(&agent, &["early", "late"]);

    // Of what both say, the pod's word counts; the rest of the section is the plugin's still.
    let outbound = json!({"shunt.io/exclude-outbound-ports": "80", "shunt.io/on-failure": "open"});
    api.put(annotated("early", &early, outbound));
    wait::until("port 80 is excluded", Duration::from_secs(15), || {
        let only = |port| captured(&agent, "early", &server, port);
        (only(8443) && !only(80)).then_some(())
    });
    for (name, sandbox) in [("early", &early), ("late", &late)] {
        plugin.must("DEL", name, sandbox);
    }
}

/// The wish is there first.
fn what_the_pod_refuses_the_plugin_leaves_alone(mode: &str) {
    require::everything();
    let world = World::new();
    let (client, marker) = two(&world);
    let _nginx = marker.pod.nginx(&world);
    let (api, agent) = scene(&world, mode, "");
    api.put(shown("client", &client, Some("disabled")));
    api.put(shown("marker", &marker, Some("enabled")));
    let agent = agent.start();
    wait_for(&agent, &["marker"]);
    let settings = json!({"on_failure": "closed", "workload": {"acceleration": "off"}});
    let plugin = Plugin::new(&world, &agent, settings);
    let before = client.pod.state();
    plugin.must("ADD", "client", &client);
    assert_eq!(served(&agent), ["marker"]);
    assert_eq!(client.pod.state(), before);
    plugin.must("CHECK", "client", &client);
    plugin.must("DEL", "client", &client);
    let netns = format!("/run/netns/{}", client.pod.netns);
    let body = json!({"netns": netns}).to_string();
    let (status, said) = agent.admin("PUT", "/workloads/shop/client", &body);
    assert_eq!(status, 409, "{said}");
    assert!(said.contains("its own labels"), "{said}");
    assert_eq!(served(&agent), ["marker"]);

    // It changes its mind.
    plugin.must("ADD", "client", &client);
    api.put(shown("client", &client, Some("enabled")));
    wait_for(&agent, &["client", "marker"]);
    assert!(is_intercepted(&agent, &client, &marker));
}
