//! What the agent does with what a host has: which mode it takes, what `shunt check` says, what it costs.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use shunt_tests::agent::{binary, entry};
use shunt_tests::{AgentBuilder, World, require, wait};

#[test]
fn without_bpf_auto_takes_iptables_and_says_why() {
    require::everything();
    let world = World::new();
    let (client, server) = (world.pod(), world.pod());
    let _nginx = server.nginx(&world);
    let agent = AgentBuilder::new(&world, "auto")
        .without_bpf()
        .enrol("client", &client, "")
        .start();
    let workload = agent.workload("client");
    assert_eq!(workload["mode"], "iptables", "{workload:#}");
    let reason = workload["mode_reason"].as_str().expect("text");
    assert!(
        reason.contains("ebpf does not work on this host")
            && reason.contains("Operation not permitted")
            && reason.contains("dead-man switch"),
        "{reason}"
    );
    agent.rewrite(&[
        entry("client", &client, ""),
        entry("only-ebpf", &server, "mode: ebpf"),
    ]);
    wait::until("it is said to have failed", Duration::from_secs(5), || {
        let status = agent.status();
        let all = status["workloads"].as_array()?.clone();
        let refused = all
            .iter()
            .find(|workload| workload["name"] == "only-ebpf")?;
        (refused["mode"] == "off" && refused["state"] == "failed").then_some(())
    });
    let url = format!("http://{}/", server.v4);
    assert_eq!(client.says("curl", &["-sS", &url]), client.v4);
    assert_eq!(agent.lines(1)[0]["original_dst_source"], "conntrack");
}

#[test]
fn auto_takes_ebpf_where_it_works() {
    require::everything();
    let world = World::new();
    let (client, server) = (world.pod(), world.pod());
    let _nginx = server.nginx(&world);
    let agent = AgentBuilder::new(&world, "auto")
        .enrol("client", &client, "")
        .enrol("web", &server, "mode: iptables")
        .start();
    assert_eq!(agent.workload("client")["mode"], "ebpf");
    assert_eq!(agent.workload("web")["mode"], "iptables", "its own wish");
    for host in [server.v4.clone(), format!("[{}]", server.v6)] {
        let seen = client.says("curl", &["-sS", &format!("http://{host}/")]);
        assert!([&client.v4, &client.v6].contains(&&seen), "{seen}");
    }
    // From the one mode into the other: still one line for each.
    for line in agent.lines(2) {
        assert_eq!(line["direction"], "outbound", "{line:#}");
        assert!(
            line["peer_workload"].to_string().contains("web"),
            "{line:#}"
        );
    }
}

#[test]
fn a_workload_without_a_cgroup_is_steered_from_the_root() {
    require::everything();
    let world = World::new();
    let (client, server) = (world.pod(), world.pod());
    let stranger = world.pod();
    let _nginx = server.nginx(&world);
    let agent = AgentBuilder::new(&world, "ebpf")
        .enrol_without_cgroup("client", &client)
        .enrol("web", &server, "")
        .start();
    let reason = agent.workload("client")["mode_reason"].to_string();
    assert!(reason.contains("cgroup2 root"), "{reason}");
    let url = format!("http://{}/", server.v4);
    assert_eq!(client.says("curl", &["-sS", &url]), client.v4);
    assert_eq!(stranger.says("curl", &["-sS", &url]), stranger.v4);
    let directions: Vec<Value> = agent
        .lines(2)
        .iter()
        .map(|line| line["direction"].clone())
        .collect();
    assert_eq!(directions, ["outbound", "inbound"]);
}

#[test]
fn include_lists_leave_the_rest_alone() {
    require::everything();
    for mode in ["ebpf", "iptables"] {
        let world = World::new();
        let (client, server) = (world.pod(), world.pod());
        let _nginx = server.nginx(&world);
        let agent = AgentBuilder::new(&world, mode)
            .enrol("client", &client, "outbound: {include_ports: [\"1-79\"]}")
            .start();
        let curl = |host: &str| client.says("curl", &["-sS", &format!("http://{host}/")]);
        let change = |more: &str| {
            let before = agent.log().matches("\"changed\"").count();
            agent.rewrite(&[entry("client", &client, more)]);
            wait::until("the change is in force", Duration::from_secs(5), || {
                (agent.log().matches("\"changed\"").count() > before).then_some(())
            });
        };
        curl(&server.v4);
        change("outbound: {include_ports: [\"79-80\"], include_cidrs: [10.66.0.0/24]}");
        curl(&format!("[{}]", server.v6));
        assert_eq!(
            agent.access_log().len(),
            0,
            "{mode}: port 80, then IPv6, not included"
        );
        curl(&server.v4);
        agent.lines(1);
        change("outbound: {include_cidrs: [\"fd66::/64\"]}");
        curl(&server.v4);
        curl(&format!("[{}]", server.v6));
        let lines = agent.lines(2);
        assert!(
            lines[1]["original_dst"].to_string().contains("fd66"),
            "{mode}: {lines:#?}"
        );
    }
}

#[test]
fn check_names_what_is_missing_and_what_follows() {
    require::everything();
    let check = |prefix: &[String], format: &str| {
        let output = require::prefixed(prefix, &binary())
            .args(["check", "-o", format])
            .output()
            .expect("runs");
        let text = String::from_utf8(output.stdout).expect("text");
        (output.status.code(), text)
    };
    let (code, table) = check(&[], "table");
    assert_eq!(code, Some(0));
    assert!(
        table.contains("eBPF mode works, iptables mode works"),
        "{table}"
    );
    let (code, text) = check(&require::without_bpf(), "json");
    assert_eq!(code, Some(0), "iptables still works");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (&report["ebpf"], &report["iptables"]),
        (&false.into(), &true.into())
    );
    let findings = report["findings"].as_array().expect("a list");
    let bpf = findings
        .iter()
        .find(|row| row["name"] == "bpf(2)")
        .expect("named");
    assert!(
        bpf["found"].to_string().contains("Operation not permitted"),
        "{bpf:#}"
    );
    assert!(bpf["meaning"].to_string().contains("seccomp"), "{bpf:#}");
}

/// A CI machine that does not permit bpf(2) must not look like one where everything passed.
#[test]
fn without_bpf_the_tests_fail_and_say_so() {
    require::everything();
    let own = std::env::current_exe().expect("a path");
    let output = require::prefixed(&require::without_bpf(), &own)
        .args(["--exact", "auto_takes_ebpf_where_it_works"])
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("cannot run both modes"), "{text}");
}

/// Two processes, ten workloads, nothing going on. The goal is 20 MB for an optimised build; this is a fuse.
#[test]
fn ten_workloads_take_little_memory() {
    require::everything();
    let world = World::new();
    let pods: Vec<_> = (0..10).map(|_| world.pod()).collect();
    let mut builder = AgentBuilder::new(&world, "auto");
    for (index, pod) in pods.iter().enumerate() {
        builder = builder.enrol(&format!("w{index}"), pod, "");
    }
    let agent = builder.start();
    let resident = |pid: u32| -> u64 {
        let ps = Command::new("ps")
            .args(["-o", "rss=", "-p", &pid.to_string()])
            .output();
        let text = String::from_utf8(ps.expect("ps runs").stdout).expect("text");
        text.trim().parse().expect("a number")
    };
    let both = resident(agent.pid()) + resident(agent.worker_pid().expect("a data plane"));
    assert!(both < 60 << 10, "{both} KiB resident");
}
