//! What the agent's processes may do, and that it is enough and no more.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use shunt_tests::agent::{binary, entry};
use shunt_tests::kubernetes::{ApiServer, namespace};
use shunt_tests::{Agent, AgentBuilder, Pair, Pod, in_both_modes, require, wait};

in_both_modes!(
    each_process_holds_what_it_needs,
    without_net_admin_rules_cannot_be_written,
);

/// Numbers from linux/capability.h.
const NUMBERS: [(&str, u32); 9] = [
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_SETPCAP", 8),
    ("CAP_NET_BIND_SERVICE", 10),
    ("CAP_NET_ADMIN", 12),
    ("CAP_NET_RAW", 13),
    ("CAP_SYS_MODULE", 16),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_SYS_RESOURCE", 24),
];

/// A field of /proc/PID/status.
fn field(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.expect("a field").trim().to_owned()
}

/// A capability set of a process.
fn held(pid: u32, set: &str) -> BTreeSet<String> {
    let mask = u64::from_str_radix(&field(pid, set), 16).expect("a mask");
    let name = |bit: u32| {
        let known = NUMBERS.iter().find(|(_, number)| *number == bit);
        known.map_or(format!("capability {bit}"), |(name, _)| (*name).to_owned())
    };
    let bits = (0..64).filter(|bit| mask >> bit & 1 == 1);
    bits.map(name).collect()
}

fn without(name: &str) -> Vec<String> {
    let all = require::service_capabilities().into_iter();
    all.filter(|given| given != name).collect()
}

fn each_process_holds_what_it_needs(mode: &str) {
    let scene = Pair::new();
    let _nginx = scene.server.nginx(&scene.world);
    let api = ApiServer::start();
    api.put(namespace("default", json!({})));
    let section = api.section(scene.world.dir.path(), "");
    let given = require::service_capabilities();
    let builder = scene.both(mode, "").set(&section);
    let agent = builder.with_capabilities(&given).start();
    let url = format!("http://{}/", scene.server.v4);
    let seen = scene.client.says("curl", &["-sSf", "-m", "5", &url]);
    assert_eq!(seen, scene.client.v4, "the client's own address");
    agent.lines(1);

    let mut kept: BTreeSet<String> = given.into_iter().collect();
    assert!(kept.remove("CAP_SYS_RESOURCE"), "of the start alone");
    // A container in which tests run may lack that one.
    let log = agent.log();
    let complaints = log
        .lines()
        .filter(|line| line.contains("a capability is missing"));
    assert_eq!(
        complaints
            .filter(|line| !line.contains("CAP_SYS_RESOURCE"))
            .count(),
        0
    );
    let others = [
        agent.worker_pid().expect("a data plane"),
        agent.watcher_pid().expect("a watcher"),
    ];
    for set in ["CapBnd", "CapPrm", "CapEff"] {
        assert_eq!(held(agent.pid(), set), kept, "{set} of the supervisor");
        for pid in others {
            assert_eq!(held(pid, set), BTreeSet::new(), "{set} of {pid}");
        }
    }
    // The supervisor's filter is also that of what it starts, which adds two of its own.
    let filters = |pid: u32| -> u32 { field(pid, "Seccomp_filters").parse().expect("a number") };
    let before = filters(std::process::id());
    assert_eq!(filters(agent.pid()), before + 1);
    assert_eq!(others.map(filters), [before + 3; 2]);
    for pid in others.into_iter().chain([agent.pid()]) {
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(held(pid, set), BTreeSet::new(), "{set} of {pid}");
        }
        assert_eq!(field(pid, "NoNewPrivs"), "1", "of {pid}");
        assert_eq!(field(pid, "Seccomp"), "2", "of {pid}");
    }
}

/// A workload that is wanted of an agent that runs: once it is served, or it is told that this is not permitted.
fn wanted(agent: &Agent, entry: String, served: bool) -> Value {
    agent.rewrite(&[entry]);
    wait::until("the workload was tried", Duration::from_secs(10), || {
        let workload = agent.status()["workloads"].get(0)?.clone();
        let told = workload["state_reason"].as_str()?;
        let refused = told.contains("denied") || told.contains("not permitted");
        let done = match served {
            true => workload["state"] == "ready",
            false => workload["state"] != "ready" && refused,
        };
        done.then_some(workload)
    })
}

fn without_net_admin_rules_cannot_be_written(mode: &str) {
    let scene = Pair::new();
    let builder = AgentBuilder::new(&scene.world, mode);
    let agent = builder.with_capabilities(&without("CAP_NET_ADMIN")).start();
    let log = agent.log();
    let warned = log
        .lines()
        .find(|line| line.contains("a capability is missing"));
    let warned: Value = serde_json::from_str(warned.expect("a warning")).expect("JSON");
    assert_eq!(warned["capability"], "CAP_NET_ADMIN");
    assert!(warned["without"].to_string().contains("no rule"));
    let served = mode == "ebpf";
    let workload = wanted(&agent, entry("client", &scene.client, ""), served);
    if served {
        let reason = workload["mode_reason"].as_str().expect("a reason");
        assert!(
            reason.contains("clients' addresses are not kept"),
            "{reason}"
        );
    }
}

#[test]
fn without_sys_admin_it_does_not_start() {
    let scene = Pair::new();
    let dir = scene.world.dir.path().display();
    let config = scene.world.dir.path().join("shunt.yaml");
    let text = format!(
        "state_dir: {dir}/state\nadmin: {{socket: {dir}/admin.sock}}\nlog: {{format: json}}\n"
    );
    fs::write(&config, text).expect("written");
    let prefix = require::with_capabilities(&without("CAP_SYS_ADMIN"));
    let mut command = require::prefixed(&prefix, &binary());
    let output = command.args(["run", "-c"]).arg(&config).output();
    let output = output.expect("runs");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("CAP_SYS_ADMIN"), "{said}");
    assert!(said.contains("Operation not permitted"), "{said}");
}

/// A namespace by a process of another user.
fn of_another_user(pod: &Pod) -> (shunt_tests::Running, String) {
    let args = [
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "sleep",
        "60",
    ];
    let running = pod.spawn("setpriv", &args);
    let pid = running.0.id();
    wait::until("the process", Duration::from_secs(5), || {
        (fs::read_to_string(format!("/proc/{pid}/comm")).ok()? == "sleep\n").then_some(())
    });
    (running, format!("/proc/{pid}/ns/net"))
}

#[test]
fn without_sys_ptrace_others_namespaces_are_out_of_reach() {
    let scene = Pair::new();
    let (_sleeps, netns) = of_another_user(&scene.client);
    let entry = format!(
        "  - {{name: client, netns: {netns}, cgroup: {}}}\n",
        scene.client.cgroup.display()
    );
    for (given, served) in [
        (require::service_capabilities(), true),
        (without("CAP_SYS_PTRACE"), false),
    ] {
        let builder = AgentBuilder::new(&scene.world, "ebpf");
        let agent = builder.with_capabilities(&given).start();
        wanted(&agent, entry.clone(), served);
    }
}

/// `shunt check` says what stands in the way, not only that something does.
#[test]
fn check_explains_what_is_not_permitted() {
    let refused = [
        (
            require::with_capabilities(&without("CAP_SYS_ADMIN")),
            "CAP_SYS_ADMIN (or CAP_BPF) is missing",
        ),
        (require::without_bpf(), "a seccomp filter refuses bpf(2)"),
    ];
    for (prefix, cause) in refused {
        let mut command = require::prefixed(&prefix, &binary());
        let output = command
            .args(["check", "-o", "json"])
            .output()
            .expect("runs");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let findings = report["findings"].as_array().expect("a list");
        let bpf = findings.iter().find(|finding| finding["name"] == "bpf(2)");
        let found = bpf.expect("a finding")["found"].to_string();
        assert!(found.contains(cause), "{found}");
    }
}
