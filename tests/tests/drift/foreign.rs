//! Others at the same places are named, and stay as they were.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use shunt_tests::agent::binary;
use shunt_tests::attachments::Foreign;
use shunt_tests::{World, require, wait};

use crate::scene::{Scene, run};

#[test]
fn others_are_named_and_left_alone() {
    require::everything();
    for (mode, variant) in [("ebpf", "nft"), ("iptables", "nft"), ("iptables", "legacy")] {
        let mut foreign = None;
        let mut scene = Scene::with(mode, variant, |client| {
            let world = client.cgroup.parent().expect("the world's");
            let netns = Path::new("/run/netns").join(&client.netns);
            foreign = Some(Foreign::attach(world, &netns));
            let program = format!("iptables-{variant}");
            client.says(&program, &["-t", "nat", "-N", "ISTIO_OUTPUT"]);
            client.says(
                &program,
                &[
                    "-t",
                    "nat",
                    "-A",
                    "ISTIO_OUTPUT",
                    "-p",
                    "udp",
                    "-j",
                    "RETURN",
                ],
            );
            client.says(
                &program,
                &[
                    "-t",
                    "nat",
                    "-A",
                    "OUTPUT",
                    "-p",
                    "udp",
                    "-j",
                    "ISTIO_OUTPUT",
                ],
            );
            None
        });
        let foreign = foreign.expect("attached");
        let theirs = || {
            let program = format!("iptables-{variant}-save");
            let rules = scene.client.says(&program, &[]);
            let rules: Vec<&str> = rules
                .lines()
                .filter(|line| line.contains("ISTIO_OUTPUT"))
                .collect();
            let cgroup = scene
                .client
                .cgroup
                .parent()
                .expect("the world's")
                .display()
                .to_string();
            let programs = foreign
                .programs
                .iter()
                .map(|id| run("bpftool", &["prog", "show", "id", id]));
            let links = foreign.links();
            assert_eq!(links.len(), 2, "sock_ops and sk_lookup");
            let links = links
                .iter()
                .map(|id| run("bpftool", &["link", "show", "id", id]));
            (
                without_counts(&rules.join("\n")),
                without_statistics(&programs.chain(links).collect::<String>()),
                run("bpftool", &["cgroup", "show", &cgroup]),
            )
        };
        let before = theirs();
        let notes = wait::until("they are named", Duration::from_secs(10), || {
            let notes = scene.agent.workload("client")["notes"].to_string();
            notes.contains("mb_msg_redir").then_some(notes)
        });
        for name in [
            "cil_sock4_conn (id ",
            " of Cilium at ",
            "cil_sockops (id ",
            "sk_lookup program tubular (id ",
            "ours is nearer to the workload and runs first",
            "it translates services of Kubernetes",
            "program mb_msg_redir (id ",
            "chain ISTIO_OUTPUT of Istio",
        ] {
            assert!(notes.contains(name), "{mode} {variant}: {name}: {notes}");
        }
        if mode == "iptables" {
            scene.repaired("rules", "SHUNT_TO_OUT", || {
                scene.in_client(&format!("iptables-{variant} -t nat -F SHUNT_TO_OUT"));
            });
        }
        let check = run(&binary().display().to_string(), &["check", "-o", "json"]);
        let check: Value = serde_json::from_str(&check).expect("JSON");
        let findings = check["findings"].to_string();
        for name in [
            "cil_sock4_conn (id ",
            "cil_sockops (id ",
            "mb_msg_redir (id ",
            "ISTIO_OUTPUT of Istio",
        ] {
            assert!(findings.contains(name), "{name}: {findings}");
        }
        assert_eq!(theirs(), before, "{mode} {variant}: while it is steered");
        scene.agent.terminate();
        assert_eq!(theirs(), before, "{mode} {variant}: afterwards");
    }
}

#[test]
fn every_known_mesh_is_named() {
    require::everything();
    let world = World::new();
    let pod = world.pod();
    let nft = "add table inet istio-proxy-nat; add chain inet istio-proxy-nat istio-inbound; \
               add table inet consul_tproxy; add chain inet consul_tproxy CONSUL_PROXY_OUTPUT; \
               add table inet other; add chain inet other inbound";
    pod.says("nft", &[nft]);
    for (program, chain) in [
        ("iptables-nft", "PROXY_INIT_REDIRECT"),
        ("iptables-legacy", "KUMA_MESH_OUTBOUND"),
        ("ip6tables-legacy", "MESH_INBOUND"),
        ("ip6tables-nft", "OSM_PROXY_INBOUND"),
        ("iptables-nft", "CILIUM_PRE_nat"),
        ("iptables-nft", "OTHERS"),
    ] {
        pod.says(program, &["-t", "nat", "-N", chain]);
    }
    let found = |prefix: &[String]| {
        let output = require::prefixed(prefix, &binary())
            .args(["check", "-o", "json"])
            .output();
        let check: Value = serde_json::from_slice(&output.expect("runs").stdout).expect("JSON");
        let findings = check["findings"].as_array().expect("a list").clone();
        let chains = findings
            .into_iter()
            .find(|finding| finding["name"] == "others' chains");
        chains.expect("it is looked for")["found"].to_string()
    };
    let all = [
        "istio-inbound of Istio in table istio-proxy-nat",
        "CONSUL_PROXY_OUTPUT of Consul in table consul_tproxy",
        "PROXY_INIT_REDIRECT of Linkerd in table nat",
        "KUMA_MESH_OUTBOUND of Kuma in table nat (legacy, IPv4)",
        "MESH_INBOUND of Kuma in table nat (legacy, IPv6)",
        "OSM_PROXY_INBOUND of Open Service Mesh in table nat",
        "CILIUM_PRE_nat of Cilium in table nat",
    ];
    // Of a workload's namespace, and of one that the agent shares with workloads.
    let inside = [
        "nsenter".to_owned(),
        format!("--net=/run/netns/{}", pod.netns),
    ];
    let named = format!("/run/netns/{}: chain ", pod.netns);
    for (prefix, place) in [
        (&[][..], named.as_str()),
        (&inside, "/proc/self/ns/net: chain "),
    ] {
        let found = found(prefix);
        for chain in all {
            assert!(
                found.contains(&format!("{place}{chain}")),
                "{chain}: {found}"
            );
        }
        assert!(!found.contains("OTHERS") && !found.contains("table other"));
    }
}

/// Somebody may have switched on `kernel.bpf_stats_enabled`.
fn without_statistics(programs: &str) -> String {
    let before = |line: &str| line.split(" run_time_ns ").next().map(str::to_owned);
    let lines: Vec<String> = programs.lines().filter_map(before).collect();
    lines.join("\n")
}

fn without_counts(rules: &str) -> String {
    rules
        .lines()
        .map(|line| line.split(" [").next().unwrap_or(line).to_owned() + "\n")
        .collect()
}
