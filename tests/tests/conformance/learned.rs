//! `acceleration: auto` after it has learned. Each row comes after connections of its own kind that behaved well: whose that
//! block see what they see without acceleration, of those that do not block each is accelerated.

use std::collections::BTreeMap;

use shunt_tests::{AgentBuilder, World, conform, require};

use crate::{faults, note, scene, semantics};

#[test]
fn ebpf_auto() {
    require::everything();
    let differences = semantics::differences();
    let world = World::new();
    let (client, server) = (world.pod(), world.pod());
    // As nobody configures it, but for splicing, which is another path's affair.
    let agent = AgentBuilder::new(&world, "ebpf")
        .set("splice_after: off")
        .enrol("client", &client, "acceleration: {direct: false}")
        .enrol("server", &server, "acceleration: {direct: false}")
        .start();
    let only = std::env::var("SHUNT_ROWS").unwrap_or_default();
    let control = world.dir.path().join("control");
    let observe = || conform::observe(&client, &server, &control, (&only, true));
    let judge = |seen: BTreeMap<String, String>| {
        let of_kind = |blocks| {
            let mut seen = seen.clone();
            seen.retain(|variant, _| variant.contains("/blocking") == blocks);
            seen
        };
        let mut found = faults(scene("ebpf_copy"), &of_kind(true), &differences);
        found.extend(faults(scene("ebpf_handoff"), &of_kind(false), &differences));
        found
    };
    let mut seen = observe();
    let mut found = judge(seen.clone());
    if !found.is_empty() {
        // As on the path itself: wake-ups race under load, and what shows again is a fault.
        note(&format!("seen once under auto:\n{}", found.join("\n")));
        let again = observe();
        seen.retain(|variant, was| again.get(variant) == Some(was));
        found = judge(seen);
    }
    assert!(
        found.is_empty(),
        "{} faults under auto\n{}",
        found.len(),
        found.join("\n")
    );
    let known = agent.workload("server")["acceleration"].clone();
    let count = |verdict: &str| known[verdict].as_u64().unwrap_or_default();
    assert!(
        count("fault") > 0 && (count("proven") > 0 || !only.is_empty()),
        "{known}"
    );
}
