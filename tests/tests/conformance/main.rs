//! What programs see of their sockets, on each path: exactly what they see without us, but for the differences that
//! docs/semantics.md lists. One that is not listed fails, and so does a listed one that is no longer there.

mod expected;
mod learned;
mod outages;
mod semantics;

use std::collections::BTreeMap;

use shunt_tests::{Agent, AgentBuilder, World, conform, require};

use self::semantics::Difference;

/// The way that bytes take in a test.
#[derive(Debug)]
struct Scene {
    name: &'static str,
    /// `None`: nobody intercepts.
    mode: Option<&'static str>,
    setting: &'static str,
    /// Fields of both workloads.
    workload: &'static str,
    /// As the access log names it; most bytes must have taken it.
    path: &'static str,
}

/// A path is judged by adding its line.
macro_rules! scenes {
    ($($name:ident: $mode:expr, $setting:literal, $workload:literal, $path:literal;)*) => {
        const SCENES: &[Scene] = &[$(Scene {
            name: stringify!($name), mode: $mode, setting: $setting, workload: $workload, path: $path,
        }),*];
        $(#[test] fn $name() { judge(stringify!($name)); })*
    };
}

scenes! {
    plain: None, "", "", "none";
    ebpf_copy: Some("ebpf"), "splice_after: off", "acceleration: off", "copy";
    ebpf_splice: Some("ebpf"), "splice_after: 0", "acceleration: off", "splice";
    iptables_copy: Some("iptables"), "splice_after: off", "", "copy";
    ebpf_sockmap: Some("ebpf"), "splice_after: off", "acceleration: {default: always, direct: false, handoff: false}", "sockmap";
    ebpf_handoff: Some("ebpf"), "splice_after: off", "acceleration: {default: always, direct: false}", "handoff";
    ebpf_direct: Some("ebpf"), "", "acceleration: auto", "direct";
    ebpf_direct_queues: Some("ebpf"), "", "acceleration: always", "direct";
    iptables_splice: Some("iptables"), "splice_after: 0", "", "splice";
}

fn judge(name: &str) {
    let scene = scene(name);
    require::everything();
    let differences = semantics::differences();
    let world = World::new();
    let (client, server) = (world.pod(), world.pod());
    let agent = scene.mode.map(|mode| {
        AgentBuilder::new(&world, mode)
            .set(scene.setting)
            .enrol("client", &client, scene.workload)
            .enrol("server", &server, scene.workload)
            .start()
    });
    let only = std::env::var("SHUNT_ROWS").unwrap_or_default();
    let control = world.dir.path().join("control");
    let mut seen = conform::observe(&client, &server, &control, (&only, false));
    if only.is_empty() {
        let rows = expected::rows().filter(|row| !seen.keys().any(|variant| row.covers(variant)));
        let missing: Vec<String> = rows.map(|row| row.0).collect();
        assert!(missing.is_empty(), "no such rows, or not run: {missing:?}");
    }
    // docs/semantics.md says of it what blocking sockets must expect.
    let queues = scene.workload.contains("always");
    let judged = |variant: &str| !queues || !variant.contains("/blocking");
    seen.retain(|variant, _| judged(variant));
    let mut faults = faults(scene, &seen, &differences);
    if queues && !faults.is_empty() {
        // Its wake-ups race under load: told, and a fault when it shows again. Order and bytes are judged without mercy
        // by tests/acceleration.rs.
        note(&format!("seen once on {name}:\n{}", faults.join("\n")));
        let again = conform::observe(&client, &server, &control, (&only, false));
        seen.retain(|variant, was| judged(variant) && again.get(variant) == Some(was));
        faults = self::faults(scene, &seen, &differences);
    }
    if only.is_empty() {
        faults.extend(unseen(scene, &seen, &differences));
    }
    assert!(
        faults.is_empty(),
        "{} faults on {name}\n{}",
        faults.len(),
        faults.join("\n")
    );
    if let Some(agent) = agent
        && only.is_empty()
    {
        took_the_path(&agent, scene);
    }
}

fn scene(name: &str) -> &'static Scene {
    let scene = SCENES.iter().find(|scene| scene.name == name);
    scene.expect("a scene")
}

#[expect(clippy::print_stderr, reason = "what a passing test has to tell")]
fn note(text: &str) {
    eprintln!("{text}");
}

/// What was seen and should not have been, and what should have been and was not.
fn faults(
    scene: &Scene,
    seen: &BTreeMap<String, String>,
    differences: &[Difference],
) -> Vec<String> {
    let wrong = |(variant, seen): (&String, &String)| {
        let listed: Vec<&Difference> = differences
            .iter()
            .filter(|difference| difference.applies(scene) && difference.row.covers(variant))
            .collect();
        let plain = expected::plain(variant);
        let (right, wanted) = match &listed[..] {
            [] => (plain == Some(seen), format!("{plain:?}, as without us")),
            [line] => (line.allows(seen), format!("{:?}, {}", line.with, line.id)),
            many => (false, format!("listed once, not by {many:?}")),
        };
        (!right).then(|| format!("{variant}\n  {seen}\n  and not: {wanted}"))
    };
    seen.iter().filter_map(wrong).collect()
}

/// Lines of which nothing has been seen: differences that are no more.
fn unseen(
    scene: &Scene,
    seen: &BTreeMap<String, String>,
    differences: &[Difference],
) -> Vec<String> {
    let differs = |line: &&Difference| {
        let mut covered = seen.iter().filter(|(variant, _)| line.row.covers(variant));
        covered.any(|(variant, seen)| {
            let plain = expected::plain(variant);
            // A line that also allows what is seen without us is about a race.
            plain != Some(seen) || plain.is_some_and(|plain| line.allows(plain))
        })
    };
    let listed = differences.iter().filter(|line| line.applies(scene));
    let vanished = listed.filter(|line| !differs(line));
    vanished
        .map(|line| format!("{}: a listed difference that is no more", line.id))
        .collect()
}

/// Else the scene has judged another path than it says.
fn took_the_path(agent: &Agent, scene: &Scene) {
    for name in ["client", "server"] {
        let bytes = &agent.workload(name)["bytes"];
        let all = bytes.as_object().expect("by path").values();
        let all: u64 = all.filter_map(serde_json::Value::as_u64).sum();
        let taken = bytes[scene.path].as_u64().expect("a number");
        assert!(taken > all / 2 && all > 100 << 20, "{name}: {bytes:#}");
    }
}
