//! Legacy tables announce nothing: what a glance at their outline tells, and what only reading them does.

use shunt_core::workload::OnFailure;
use shunt_intercept::Backend;
use shunt_intercept::drift::Look;
use shunt_intercept::iptables::DeadMan;

use crate::world::World;
use crate::{backend, settle};

#[test]
fn a_glance_tells_of_rules_that_go_and_a_full_look_of_rules_that_differ() {
    let world = World::new();
    settle(&world.pod, "legacy");
    let mut backend = backend(DeadMan::Recent);
    let enrolment = world.enrolment(OnFailure::Open);
    backend.install(&enrolment).expect("installs");
    let mut found = |look| {
        let found = backend.inspect(&enrolment, look).expect("a look");
        found
            .iter()
            .map(|drift| drift.found.clone())
            .collect::<Vec<_>>()
            .join("; ")
    };
    assert_eq!(
        (found(Look::Glance), found(Look::Full)),
        (String::new(), String::new())
    );

    let rules = |line: &str| world.pod.sh(&format!("iptables-legacy -t nat {line}"));
    // Somebody else's: the outline changes, ours are as they were.
    rules("-A FOREIGN -p tcp --dport 7 -j RETURN");
    assert_eq!(found(Look::Glance), "");

    rules("-D OUTPUT -p tcp --syn -j SHUNT_OUTPUT");
    let jump = "the jump from OUTPUT to SHUNT_OUTPUT is gone";
    assert!(
        found(Look::Glance).contains(jump),
        "{}",
        found(Look::Glance)
    );
    assert!(
        found(Look::Glance).contains(jump),
        "each time, until it is repaired"
    );
    rules("-A OUTPUT -p tcp --syn -j SHUNT_OUTPUT");
    assert_eq!(found(Look::Glance), "");

    // As long as the one in whose place it is.
    let ours = rules("-S SHUNT_OUTPUT");
    let plain = |line: &str| line.contains(" -d ") && !line.contains(" -m ");
    let number = ours
        .lines()
        .position(plain)
        .expect("a rule with an address");
    rules(&format!(
        "-R SHUNT_OUTPUT {number} -d 192.0.2.0/24 -j RETURN"
    ));
    assert_eq!(found(Look::Glance), "", "{ours}");
    let differs = found(Look::Full);
    let what = "rules of SHUNT_OUTPUT were changed";
    assert!(differs.contains(what), "{differs}: {ours}");
}
