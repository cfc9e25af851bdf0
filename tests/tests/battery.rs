//! The behaviour battery: it passes here, it fails where something is broken, and what it says is heeded.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use shunt_tests::agent::binary;
use shunt_tests::{Agent, Pair, World, require};

const FATAL: [&str; 9] = [
    "redirect",
    "order_under_close",
    "half_close",
    "reset",
    "bounded_queue",
    "early_bytes",
    "large_messages",
    "mapped_addresses",
    "isolation",
];
const GATED: [&str; 5] = [
    "blocking_receive",
    "wait_all",
    "splice_out",
    "bytes_waiting",
    "zero_copy",
];

/// Every question with its answer.
fn battery(fault: &[&str]) -> Vec<Value> {
    require::everything();
    let world = World::new();
    let cgroup = world.pod().cgroup;
    let output = Command::new(binary())
        .arg("battery")
        .arg(&cgroup)
        .args(fault)
        .output()
        .expect("the battery runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let behaviour: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let verdicts = behaviour["verdicts"].as_array().expect("a list").clone();
    let asked: Vec<&str> = verdicts.iter().map(question).collect();
    assert_eq!(asked, [&FATAL[..], &GATED].concat());
    verdicts
}

fn question(verdict: &Value) -> &str {
    verdict["question"].as_str().expect("a question")
}

/// The fatal questions that were answered with no.
fn failed(verdicts: &[Value]) -> Vec<&str> {
    let no = verdicts.iter().filter(|verdict| verdict["holds"] == false);
    no.map(question)
        .filter(|question| FATAL.contains(question))
        .collect()
}

#[test]
fn nothing_fatal_fails_here() {
    let verdicts = battery(&[]);
    assert_eq!(failed(&verdicts), [""; 0], "{verdicts:#?}");
    // What docs/semantics.md says of the path.
    let holds = |name: &str| {
        let verdict = verdicts.iter().find(|verdict| question(verdict) == name);
        verdict.expect("asked")["holds"] == true
    };
    let held: Vec<&str> = GATED.into_iter().filter(|name| holds(name)).collect();
    assert_eq!(held, ["bytes_waiting"], "{verdicts:#?}");
}

#[test]
fn programs_that_are_not_attached_fail_everything() {
    let verdicts = battery(&["--fault", "detached"]);
    assert_eq!(failed(&verdicts), FATAL);
    for verdict in &verdicts {
        assert_eq!(verdict["holds"], false, "{verdict}");
        assert_eq!(verdict["evidence"], "the connection was not accelerated");
    }
}

#[test]
fn a_queue_without_a_bound_fails_the_bound() {
    let verdicts = battery(&["--fault", "unbounded"]);
    assert_eq!(failed(&verdicts), ["bounded_queue"], "{verdicts:#?}");
}

#[test]
fn crossed_pairs_fail_isolation() {
    let verdicts = battery(&["--fault", "crossed"]);
    assert_eq!(failed(&verdicts), ["isolation"], "{verdicts:#?}");
}

#[test]
fn sockets_that_leave_with_bytes_fail_the_order() {
    let verdicts = battery(&["--fault", "deleted"]);
    assert_eq!(failed(&verdicts), ["order_under_close"], "{verdicts:#?}");
}

#[test]
fn check_tells_each_answer_and_leaves_nothing() {
    require::everything();
    let mut check = Command::new(binary());
    check.args(["check", "-o", "json"]).stdout(Stdio::piped());
    let check = check.spawn().expect("it runs");
    let pid = check.id();
    let output = check.wait_with_output().expect("its end");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = report["findings"].as_array().expect("a list");
    let about = |prefix: &str| {
        let name = |finding: &&Value| finding["name"].as_str().unwrap_or("").starts_with(prefix);
        findings
            .iter()
            .filter(name)
            .cloned()
            .collect::<Vec<Value>>()
    };
    assert_eq!(about("queues past TCP")[0]["ok"], true, "{report:#}");
    let rows = about("queue: ");
    assert_eq!(rows.len(), FATAL.len() + GATED.len());
    for row in rows {
        assert_ne!(row["found"], "", "{row}");
        assert_ne!(row["meaning"], "", "{row}");
    }
    let cgroup = shunt_tests::world::cgroup2().join(format!("shunt-battery-{pid}"));
    assert!(!cgroup.exists(), "{} stays", cgroup.display());
}

/// Says `served`.
const SERVER: &str = "
import socket
l = socket.create_server(('', 7000))
while True: s = l.accept()[0]; s.sendall(b'served'); s.close()
";

/// What was said of acceleration, and the path that a connection really took.
fn accelerates(agent: &Agent, scene: &Pair) -> (bool, String) {
    let before = agent.access_log().len();
    let call = format!(
        "import select, socket
s = socket.create_connection(('{}', 7000)); s.setblocking(False); heard = b''
while True:
    select.select([s], [], [])
    some = s.recv(100); heard += some
    if not some: break
print(heard.decode())",
        scene.server.v4
    );
    assert_eq!(scene.client.python(&call), "served");
    let line = agent.lines(before + 1).remove(before);
    let target = format!(
        "/explain?workload=client&destination={}:7000",
        scene.server.v4
    );
    let (code, told) = agent.admin("GET", &target, "");
    assert_eq!(code, 200, "{told}");
    let explained: Value = serde_json::from_str(&told).expect("JSON");
    let reason = agent.workload("client")["mode_reason"].to_string();
    let by_tcp = line["path"] == "copy";
    assert_eq!(explained["path"] == "copy", by_tcp, "{told}\n{line}");
    assert_eq!(
        reason.contains("nothing is accelerated"),
        by_tcp,
        "{reason}\n{line}"
    );
    (!by_tcp, format!("{told} {reason}"))
}

fn answers(agent: &Agent) -> std::path::PathBuf {
    agent.dir.join("state/behaviour.json")
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let text = fs::read(path).expect("the answers are kept");
    let mut entry: Value = serde_json::from_slice(&text).expect("JSON");
    change(&mut entry);
    fs::write(path, entry.to_string()).expect("written");
}

#[test]
fn what_was_found_is_kept_and_heeded() {
    let scene = Pair::new();
    let _server = scene.server.spawn("python3", &["-c", SERVER]);
    scene.server.wait_for_listener(7000);
    let mut agent = scene
        .both("ebpf", "acceleration: {default: always, direct: false}")
        .start();
    let (accelerated, told) = accelerates(&agent, &scene);
    assert!(accelerated, "{told}");

    agent.terminate();
    edit(&answers(&agent), |entry| {
        let verdict = &mut entry["behaviour"]["verdicts"][0];
        assert_eq!(verdict["question"], "redirect");
        verdict["holds"] = false.into();
        verdict["evidence"] = "as if".into();
    });
    agent.restart();
    let (accelerated, told) = accelerates(&agent, &scene);
    assert!(!accelerated, "{told}");
    assert!(told.contains("queue: redirect: as if"), "{told}");

    // Another kernel, or another boot: it asks again.
    agent.terminate();
    edit(&answers(&agent), |entry| {
        entry["key"]["kernel"] = "another".into()
    });
    agent.restart();
    assert!(accelerates(&agent, &scene).0);
    agent.terminate();
    fs::write(answers(&agent), "{").expect("written");
    agent.restart();
    assert!(accelerates(&agent, &scene).0);
}

#[test]
fn what_cannot_be_found_out_is_not_accelerated_and_not_kept() {
    let scene = Pair::new();
    let _server = scene.server.spawn("python3", &["-c", SERVER]);
    scene.server.wait_for_listener(7000);
    let agent = scene.both("ebpf", "acceleration: {default: always, direct: false}");
    let agent = agent.without_new_namespaces().start();
    let (accelerated, told) = accelerates(&agent, &scene);
    assert!(!accelerated, "{told}");
    assert!(told.contains("cannot make namespaces"), "{told}");
    assert!(!answers(&agent).exists());
}

#[test]
fn nobody_is_asked_for_nothing() {
    let scene = Pair::new();
    let agent = scene.both("ebpf", "acceleration: off").start();
    assert!(!answers(&agent).exists());
}
