//! Pods in the node's own network: each is its cgroup.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use shunt_tests::kubernetes::{ApiServer, Driver, Failing, Sandbox, namespace, pod};
use shunt_tests::{Agent, AgentBuilder, Bpffs, Pod, World, require, wait, world};

use crate::{is_intercepted, served, shown, upgrade_all, wait_for};

const SECONDS: Duration = Duration::from_secs(15);

/// A node, with an API server and two pods in its own network, and a pod elsewhere that serves.
struct Scene {
    api: ApiServer,
    client: Sandbox,
    other: Sandbox,
    server: Sandbox,
    host: Pod,
    world: World,
}

fn scene() -> Scene {
    scene_below(|world| world.cgroup().to_owned())
}

fn scene_below(root: impl Fn(&World) -> PathBuf) -> Scene {
    require::everything();
    let world = World::new();
    let (host, root) = (world.pod(), root(&world));
    let [client, other] = [(); 2].map(|()| Sandbox::run_on(&root, &host));
    let server = Sandbox::run(&world, Driver::Systemd);
    Scene {
        api: ApiServer::start_in(&host),
        client,
        other,
        server,
        host,
        world,
    }
}

impl Scene {
    /// On the node.
    fn agent(self: &Scene, mode: &str, more: &str) -> AgentBuilder<'_> {
        for name in ["default", "kube-system"] {
            self.api.put(namespace(name, json!({})));
        }
        self.api
            .put(namespace("shop", json!({"shunt.io/inject": "enabled"})));
        let section = self.api.section(self.world.dir.path(), more);
        AgentBuilder::new(&self.world, mode)
            .on(&self.host)
            .set(&section)
    }
}

fn on_the_host(name: &str, sandbox: &Sandbox, label: Option<&str>) -> Value {
    let mut object = shown(name, sandbox, label);
    object["spec"]["hostNetwork"] = true.into();
    object
}

/// What `status` says of one that is not enrolled.
fn told(agent: &Agent, name: &str) -> String {
    wait::until(&format!("{name} is told"), SECONDS, || {
        let status = agent.status();
        let all = status["workloads"].as_array()?.clone();
        let told = all.into_iter().find(|workload| workload["name"] == name)?;
        let reason = told["state_reason"].as_str()?.to_owned();
        (told["state"] == "failed").then_some(reason)
    })
}

#[test]
fn by_its_own_label_alone() {
    let scene = scene();
    let (api, client, other, server) = (&scene.api, &scene.client, &scene.other, &scene.server);
    let _nginx = server.pod.nginx(&scene.world);
    let before = scene.host.state();
    let agent = scene.agent("auto", ", default: on").start();
    api.put(on_the_host("other", other, None));
    api.put(shown("server", server, None));
    wait_for(&agent, &["server"]);
    api.put(on_the_host("client", client, Some("enabled")));
    wait_for(&agent, &["client", "server"]);
    api.put(shown("server", server, Some("disabled")));
    wait_for(&agent, &["client"]);
    assert!(is_intercepted(&agent, client, server));
    assert!(!is_intercepted(&agent, other, server));
    let sidecar = client.container("cri-containerd-sidecar.scope");
    let url = format!("http://{}/", server.pod.v4);
    assert_eq!(
        sidecar.says("curl", &["-sSf", "-m", "5", &url]),
        client.pod.v4
    );
    let lines = agent.lines(2);
    assert_eq!(lines[1]["workload"], "shop/client");
    let workload = agent.workload("client");
    assert_eq!(workload["mode"], "ebpf");
    assert_eq!(workload["labels"]["shunt.io/pod-uid"], client.uid.as_str());
    let reason = workload["mode_reason"].to_string();
    assert!(
        reason.contains("for outbound connections alone"),
        "{reason}"
    );

    api.put(on_the_host("client", client, None));
    wait_for(&agent, &[]);
    assert!(!is_intercepted(&agent, client, server));
    wait::until("nothing of it is left", SECONDS, || {
        (scene.host.state() == before).then_some(())
    });
}

#[test]
fn its_next_containers_and_the_next_agent_find_it() {
    let mut scene = scene();
    let bpffs = Bpffs::mount(scene.world.dir.path());
    let _nginx = scene.server.pod.nginx(&scene.world);
    let mut of_client = on_the_host("client", &scene.client, Some("enabled"));
    of_client["metadata"]["annotations"]["shunt.io/on-failure"] = "closed".into();
    scene.api.put(of_client);
    let url = format!("http://{}/", scene.server.pod.v4);
    let mut agent = scene
        .agent("ebpf", "")
        .set(&format!("bpffs: {}/shunt", bpffs.0))
        .start();
    wait_for(&agent, &["client"]);
    assert!(is_intercepted(&agent, &scene.client, &scene.server));

    scene.api.fail(Failing::Dead);
    agent.kill();
    wait::until("it fails closed", SECONDS, || {
        let tried = scene.client.pod.run("curl", &["-sS", "-m", "5", &url]);
        (!tried.status.success()).then_some(())
    });
    assert_eq!(
        scene.other.pod.says("curl", &["-sSf", "-m", "5", &url]),
        scene.host.v4,
        "another's is not refused"
    );
    agent.restart();
    wait_for(&agent, &["client"]);
    wait::until("it is served again", SECONDS, || {
        let tried = scene.client.pod.run("curl", &["-sSf", "-m", "5", &url]);
        tried.status.success().then_some(())
    });
    assert!(is_intercepted(&agent, &scene.client, &scene.server));

    // The kubelet has made the pod's sandbox anew, with its cgroups.
    scene.client.clear();
    scene.client.start();
    wait::until("it is captured again", SECONDS, || {
        is_intercepted(&agent, &scene.client, &scene.server).then_some(())
    });
    assert_eq!(served(&agent), ["client"]);
}

#[test]
fn what_cannot_be_is_told() {
    let scene = scene();
    let (api, client, other) = (&scene.api, &scene.client, &scene.other);
    let labels = json!({"shunt.io/inject": "enabled"});
    let annotated = |name: &str, sandbox: &Sandbox, annotations: Value| {
        let mut object = pod(
            name,
            &sandbox.uid,
            &sandbox.pod.v4,
            labels.clone(),
            annotations,
        );
        object["spec"]["hostNetwork"] = true.into();
        object
    };
    let agent = scene.agent("ebpf", "").start();
    for (annotations, says) in [
        (json!({"shunt.io/mode": "iptables"}), "needs eBPF mode"),
        (
            json!({"traffic.sidecar.istio.io/excludeInboundPorts": "22"}),
            "are not captured",
        ),
        (json!({"shunt.io/dns-capture": "true"}), "are not captured"),
    ] {
        api.put(annotated("client", client, annotations));
        wait::until(says, SECONDS, || {
            told(&agent, "client").contains(says).then_some(())
        });
    }
    // Its network is not what the API says.
    api.put(on_the_host("server", &scene.server, Some("enabled")));
    let reason = told(&agent, "server");
    assert!(
        reason.contains("is not in the network namespace of the agent"),
        "{reason}"
    );
    // Somebody has its cgroup.
    let body = json!({"cgroup": other.pod.cgroup}).to_string();
    assert_eq!(agent.admin("PUT", "/workloads/default/unit", &body).0, 200);
    api.put(on_the_host("other", other, Some("enabled")));
    let reason = told(&agent, "other");
    assert!(reason.contains("of workload `default/unit`"), "{reason}");
    drop(agent);

    let agent = scene.agent("iptables", "").start();
    api.put(on_the_host("client", client, Some("enabled")));
    wait::until("it is told", SECONDS, || {
        told(&agent, "client")
            .contains("needs eBPF mode")
            .then_some(())
    });
}

#[test]
fn the_agents_own_pod_never() {
    let scene = scene();
    for (name, sandbox) in [("client", &scene.client), ("other", &scene.other)] {
        let object = on_the_host(name, sandbox, Some("enabled"));
        scene.api.put(object);
    }
    let agent = scene.agent("ebpf", "").of_pod(&scene.client).start();
    wait_for(&agent, &["other"]);
    assert_eq!(told(&agent, "client"), "it is the agent's own");
}

/// It is told of others' cgroups as they are seen from its own, and of those of its own pod without the pod's name.
#[test]
fn an_agent_in_a_cgroup_namespace_finds_them_too() {
    let scene = scene_below(|_| world::cgroup2());
    let _nginx = scene.server.pod.nginx(&scene.world);
    for (name, sandbox) in [("client", &scene.client), ("other", &scene.other)] {
        let object = on_the_host(name, sandbox, Some("enabled"));
        scene.api.put(object);
    }
    let agent = scene
        .agent("ebpf", "")
        .of_pod_in_a_cgroup_namespace(&scene.other)
        .start();
    wait_for(&agent, &["client"]);
    assert!(is_intercepted(&agent, &scene.client, &scene.server));
    upgrade_all(&agent);
    wait_for(&agent, &["client"]);
    assert!(is_intercepted(&agent, &scene.client, &scene.server));
    let reason = agent.workload("client")["mode_reason"].to_string();
    let cgroup = scene.client.pod.cgroup.parent().expect("the pod's");
    assert!(reason.contains(&cgroup.display().to_string()), "{reason}");
    let pods = agent.status()["agent"]["pods"].clone();
    assert_eq!(pods["not_found"], json!(["shop/other"]), "its own");
}

/// The first version of cgroups alone has no place for hooks but the root, which is everybody's.
#[test]
fn in_the_first_version_of_cgroups_it_cannot_be() {
    let hierarchy = Path::new("/sys/fs/cgroup/systemd");
    if !hierarchy.join("cgroup.procs").exists() {
        assert!(
            std::env::var_os("CI").is_none(),
            "SKIPPED: {hierarchy:?} is not here"
        );
        return;
    }
    let mut root = PathBuf::new();
    {
        let scene = scene_below(|world| hierarchy.join(world.label()));
        root.push(hierarchy.join(scene.world.label()));
        let agent = scene.agent("ebpf", "").start();
        let object = on_the_host("client", &scene.client, Some("enabled"));
        scene.api.put(object);
        let reason = told(&agent, "client");
        assert!(
            reason.contains("no cgroup of its own in cgroup2"),
            "{reason}"
        );
    }
    let _ = std::fs::remove_dir(root);
}
