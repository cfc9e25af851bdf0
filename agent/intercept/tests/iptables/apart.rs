//! The agent's own table, which keeps connections from one source port apart. That it does is seen in
//! `tests/tests/destinations.rs`.

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::IpTransparent;
use shunt_core::flow::Direction;
use shunt_core::sockets::Family;
use shunt_core::workload::OnFailure;
use shunt_intercept::drift::Look;
use shunt_intercept::iptables::DeadMan;
use shunt_intercept::{Backend, Enrolment};

use crate::world::{Space, World, until};
use crate::{OPEN_WITHIN, backend, captured};

/// Empty where there is none.
fn table(pod: &Space) -> String {
    pod.sh("nft list table inet shunt 2>/dev/null || true")
}

#[track_caller]
fn assert_for(enrolment: &Enrolment, table: &str) {
    for (family, name, address) in [
        (Family::V4, "ip", "127.0.0.1"),
        (Family::V6, "ip6", "[::1]"),
    ] {
        let port = enrolment
            .port(Direction::Outbound, family)
            .expect("listens");
        for rule in [
            format!("tcp dport {port}"),
            format!("tproxy {name} to {address}:{port}"),
        ] {
            assert!(table.contains(&rule), "{rule}:\n{table}");
        }
    }
    let drawn = "to :1024-65535 fully-random";
    assert_eq!(table.matches(drawn).count(), 2, "{table}");
    assert_eq!(table.matches("tproxy").count(), 2, "{table}");
}

#[test]
fn nobody_flushes_it_and_it_follows_the_listeners() {
    let world = World::new();
    let mut backend = backend(DeadMan::Recent);
    let first = world.enrolment(OnFailure::Open);
    backend.install(&first).expect("installs");
    captured(&world, &mut backend);
    assert_eq!(backend.shortcoming(&first), None);
    let written = table(&world.pod);
    assert_for(&first, &written);

    world
        .pod
        .sh("! nft delete table inet shunt 2>/dev/null; ! nft flush table inet shunt 2>/dev/null");
    world.pod.sh("iptables-nft -t mangle -F; nft flush ruleset");
    assert_eq!(table(&world.pod), written);
    backend.repair(&first).expect("repairs");
    captured(&world, &mut backend);

    let second = world.enrolment(OnFailure::Open);
    backend.release(&first).expect("goes");
    backend.install(&second).expect("installs");
    captured(&world, &mut backend);
    assert_for(&second, &table(&world.pod));

    backend.release(&second).expect("goes");
    assert_for(&second, &table(&world.pod));
    backend.finish(&second).expect("goes");
    assert_eq!(table(&world.pod), "");
}

/// The flows of an agent that goes are not over yet. Its table may lead to the same port.
#[test]
fn another_agents_table_is_waited_for() {
    let world = World::new();
    let mut older = backend(DeadMan::Recent);
    older
        .install(&world.enrolment(OnFailure::Open))
        .expect("installs");
    let mut newer = backend(DeadMan::Recent);
    let enrolment = world.enrolment(OnFailure::Open);
    newer.install(&enrolment).expect("installs");
    captured(&world, &mut newer);
    let lacks = newer.shortcoming(&enrolment).expect("a reason");
    assert!(lacks.contains("keep a table"), "{lacks}");
    let listener = enrolment.listener(Direction::Outbound, Family::V4);
    let socket = &listener.expect("listens").sockets[0];
    assert!(getsockopt(socket, IpTransparent).expect("an option"));

    drop(older);
    until("its own table", OPEN_WITHIN, || {
        let found = newer.inspect(&enrolment, Look::Close).expect("looks");
        assert_eq!(found, []);
        newer.shortcoming(&enrolment).is_none()
    });
    assert_for(&enrolment, &table(&world.pod));
    captured(&world, &mut newer);
}
