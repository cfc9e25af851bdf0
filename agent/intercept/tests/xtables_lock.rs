//! A process of its own, since whoever uses legacy tables meanwhile would wait too. Needs root.

#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "iptables/world.rs"]
mod world;

use std::fs::File;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use shunt_core::workload::OnFailure;
use shunt_intercept::Backend;
use shunt_intercept::iptables::{DeadMan, IptablesBackend};

use crate::world::{MARKS, World};

/// The legacy programs share one lock on the host. Whoever holds it must not hold up the agent.
#[test]
fn a_held_lock_delays_nobody_for_long() {
    let world = World::new();
    world
        .pod
        .sh("iptables-legacy -t nat -A OUTPUT -p udp -j ACCEPT");
    let mut backend =
        IptablesBackend::with_dead_man(MARKS, Some(DeadMan::Recent)).expect("installed");
    let enrolment = world.enrolment(OnFailure::Open);
    backend.install(&enrolment).expect("installs");
    let lock = File::create("/run/xtables.lock").expect("root");
    let held = Flock::lock(lock, FlockArg::LockExclusive).expect("free");
    let start = Instant::now();
    let answer = backend.update(&enrolment).map_err(|error| error.chain());
    let took = start.elapsed();
    drop(held);
    let error = answer.expect_err("held");
    assert!(error.contains("xtables.lock"), "{error}");
    assert!(took < Duration::from_millis(700), "{took:?}");
    backend.update(&enrolment).expect("free again");
}
