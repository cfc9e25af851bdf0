//! Who is enrolled, and where it is found.

use serde_json::json;
use shunt_tests::kubernetes::{Driver, Sandbox, namespace, pod, uid};
use shunt_tests::{World, in_both_modes, require, wait};
use std::time::Duration;

use crate::{is_intercepted, scene, served, shown, two, wait_for};

in_both_modes!(by_labels_live);

fn by_labels_live(mode: &str) {
    require::everything();
    let world = World::new();
    let (client, server) = two(&world);
    let _nginx = server.pod.nginx(&world);
    let (api, agent) = scene(&world, mode, "");
    api.put(shown("client", &client, Some("enabled")));
    api.put(shown("server", &server, None));
    let agent = agent.start();
    wait_for(&agent, &["client"]);
    assert!(is_intercepted(&agent, &client, &server));
    assert_eq!(agent.access_log()[0]["workload"], "shop/client");
    let workload = agent.workload("client");
    assert_eq!(workload["mode"], mode);
    assert_eq!(workload["labels"]["shunt.io/pod-uid"], client.uid.as_str());

    api.put(shown("client", &client, Some("disabled")));
    wait_for(&agent, &[]);
    assert!(!is_intercepted(&agent, &client, &server));

    api.put(namespace(
        "shop",
        json!({"istio.io/dataplane-mode": "ambient"}),
    ));
    wait_for(&agent, &["server"]);
    api.put(shown("client", &client, None));
    wait_for(&agent, &["client", "server"]);
    assert!(is_intercepted(&agent, &client, &server));

    api.put(namespace("shop", json!({})));
    wait_for(&agent, &[]);
    assert!(!is_intercepted(&agent, &client, &server));
}

#[test]
fn only_this_nodes_pods_that_live() {
    require::everything();
    let world = World::new();
    let (client, other) = two(&world);
    let (api, agent) = scene(&world, "ebpf", ", default: on");
    let mut elsewhere = shown("elsewhere", &other, None);
    elsewhere["spec"]["nodeName"] = "n2".into();
    let mut system = shown("system", &other, Some("enabled"));
    system["metadata"]["namespace"] = "kube-system".into();
    let mut ended = shown("ended", &other, Some("enabled"));
    ended["status"]["phase"] = "Succeeded".into();
    for object in [elsewhere, system, ended, shown("client", &client, None)] {
        api.put(object);
    }
    let agent = agent.start();
    wait_for(&agent, &["client"]);
    let lists: Vec<String> = api
        .requests()
        .into_iter()
        .filter(|line| line.contains("/pods?"))
        .collect();
    let ours = |line: &String| line.contains("fieldSelector=spec.nodeName%3Dn1");
    assert!(!lists.is_empty() && lists.iter().all(ours), "{lists:?}");
    assert!(
        lists
            .iter()
            .any(|line| line.contains("allowWatchBookmarks=true")),
        "{lists:?}"
    );
}

#[test]
fn each_driver_of_cgroups() {
    require::everything();
    let world = World::new();
    let systemd = Sandbox::run(&world, Driver::Systemd);
    let cgroupfs = Sandbox::run(&world, Driver::Cgroupfs);
    let (api, agent) = scene(&world, "ebpf", ", default: on");
    api.put(shown("cgroupfs", &cgroupfs, None));
    api.put(shown("systemd", &systemd, None));
    let agent = agent.start();
    wait_for(&agent, &["cgroupfs", "systemd"]);
    let _nginx = cgroupfs.pod.nginx(&world);
    assert!(is_intercepted(&agent, &systemd, &cgroupfs));
}

/// The first version of cgroups alone has no place for hooks but the root.
#[test]
fn pods_in_the_first_version_of_cgroups() {
    require::everything();
    let hierarchy = std::path::Path::new("/sys/fs/cgroup/systemd");
    if !hierarchy.join("cgroup.procs").exists() {
        assert!(
            std::env::var_os("CI").is_none(),
            "SKIPPED: {hierarchy:?} is not here"
        );
        return;
    }
    let world = World::new();
    let root = hierarchy.join(world.label());
    let server = Sandbox::run(&world, Driver::Systemd);
    let _nginx = server.pod.nginx(&world);
    {
        let mut client = Sandbox::prepare(root.clone(), &uid(), Driver::Cgroupfs, world.pod());
        client.start();
        let (api, agent) = scene(&world, "ebpf", "");
        api.put(shown("client", &client, Some("enabled")));
        let agent = agent.start();
        wait_for(&agent, &["client"]);
        let reason = agent.workload("client")["mode_reason"].clone();
        assert!(reason.to_string().contains("cgroup2 root"), "{reason}");
        assert!(is_intercepted(&agent, &client, &server));
    }
    let _ = std::fs::remove_dir(root);
}

#[test]
fn a_sandbox_that_comes_later_and_again_elsewhere() {
    require::everything();
    let world = World::new();
    let server = Sandbox::run(&world, Driver::Systemd);
    let _nginx = server.pod.nginx(&world);
    let mut client = Sandbox::prepare(
        world.cgroup().to_owned(),
        &uid(),
        Driver::Systemd,
        world.pod(),
    );
    let (api, agent) = scene(&world, "ebpf", "");
    let agent = agent.start();
    let mut pending = shown("client", &client, Some("enabled"));
    pending["status"] = json!({"phase": "Pending", "qosClass": "Burstable"});
    api.put(pending);
    api.wait_for_watches();
    assert_eq!(
        agent.admin("GET", "/ready", "").0,
        200,
        "who is not there yet is nobody's fault"
    );
    client.start();
    wait_for(&agent, &["client"]);
    let before = agent.workload("client")["netns"].clone();
    assert!(is_intercepted(&agent, &client, &server));
    client.restart(world.pod());
    wait::until("it is found elsewhere", Duration::from_secs(15), || {
        let workload = served(&agent)
            .contains(&"client".to_owned())
            .then(|| agent.workload("client"))?;
        (workload["netns"] != before).then_some(())
    });
    assert!(is_intercepted(&agent, &client, &server));
}

#[test]
fn annotations_live_and_a_wrong_one_changes_nothing() {
    require::everything();
    let world = World::new();
    let (client, server) = two(&world);
    let _nginx = server.pod.nginx(&world);
    let (api, agent) = scene(&world, "ebpf", "");
    let agent = agent.start();
    let with = |annotations| {
        let labels = json!({"shunt.io/inject": "enabled"});
        pod("client", &client.uid, &client.pod.v4, labels, annotations)
    };
    let wrong =
        json!({"shunt.io/acceleration": "off", "shunt.io/exclude-outbound-ports": "80,nonsense"});
    api.put(with(wrong.clone()));
    let told = wait::until("it is told", Duration::from_secs(15), || {
        let status = agent.status();
        let all = status["workloads"].as_array()?.clone();
        all.into_iter()
            .find(|workload| workload["name"] == "client")
    });
    assert_eq!(
        (&told["mode"], &told["state"]),
        (&json!("off"), &json!("failed")),
        "{told:#}"
    );
    assert!(
        told["state_reason"]
            .as_str()
            .expect("a text")
            .contains("nonsense"),
        "{told:#}"
    );
    assert!(!is_intercepted(&agent, &client, &server));

    api.put(with(json!({"shunt.io/acceleration": "off"})));
    wait_for(&agent, &["client"]);
    assert!(is_intercepted(&agent, &client, &server));

    api.put(with(wrong));
    wait::until("it is noted", Duration::from_secs(15), || {
        let workload = agent.workload("client");
        let notes = workload["notes"].as_array()?.clone();
        notes
            .iter()
            .any(|note| note.as_str().is_some_and(|note| note.contains("nonsense")))
            .then_some(())
    });
    assert!(
        is_intercepted(&agent, &client, &server),
        "what was in force stays"
    );

    api.put(with(json!({"shunt.io/acceleration": "off", "traffic.sidecar.istio.io/excludeOutboundPorts": "80"})));
    wait::until("port 80 is excluded", Duration::from_secs(15), || {
        let asked = std::process::Command::new(shunt_tests::agent::binary())
            .args([
                "explain",
                "shop/client",
                &format!("{}:80", server.pod.v4),
                "--socket",
            ])
            .arg(agent.dir.join("admin.sock"))
            .output()
            .expect("it runs");
        let answer = String::from_utf8_lossy(&asked.stdout).into_owned();
        answer.contains("exclude_ports").then_some(())
    });
    assert!(!is_intercepted(&agent, &client, &server));
}
