//! What `explain` says of a connection is what happens to it, with real rules and real connections.

use std::net::{IpAddr, SocketAddr};

use shunt_core::explain::{Explanation, Inquiry, Outcome, rule};
use shunt_core::flow::Direction;
use shunt_core::workload::{CapturePolicy, OnFailure};
use shunt_intercept::iptables::{DeadMan, IptablesBackend};
use shunt_intercept::{Backend, Enrolment};

use crate::world::{PEER, PEER_PORT, POD, World, at, enrolment, until};
use crate::{OPEN_WITHIN, backend, settle};

/// Where somebody answers at the peer and in the pod.
const PORTS: [u16; 6] = [7000, 7001, 7002, 7003, 7999, 8000];

fn ask(
    backend: &IptablesBackend,
    enrolment: &Enrolment,
    direction: Direction,
    destination: &str,
    client: Option<&str>,
) -> Explanation {
    let inquiry = Inquiry {
        workload: "pod".into(),
        direction,
        destination: destination.parse().expect("an address"),
        client: client.map(|ip| ip.parse().expect("an address")),
    };
    backend.explain(enrolment, &inquiry).expect("an answer")
}

fn outbound(backend: &IptablesBackend, enrolment: &Enrolment, destination: &str) -> Explanation {
    ask(backend, enrolment, Direction::Outbound, destination, None)
}

fn policy(ports: [&str; 2], nets: [&str; 2]) -> CapturePolicy {
    let words = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let ports = ports.map(|text| {
        words(text)
            .iter()
            .map(|word| word.parse().expect("ports"))
            .collect()
    });
    let nets = nets.map(|text| {
        words(text)
            .iter()
            .map(|word| word.parse().expect("a net"))
            .collect()
    });
    let [include_ports, exclude_ports] = ports;
    let [include_cidrs, exclude_cidrs] = nets;
    CapturePolicy {
        include_ports,
        exclude_ports,
        include_cidrs,
        exclude_cidrs,
    }
}

fn policies() -> Vec<CapturePolicy> {
    vec![
        policy(["", ""], ["", ""]),
        policy(["7001-7002", ""], ["", ""]),
        policy(["", "7000 7999-8000"], ["", ""]),
        policy(
            ["7000-8000", "7002"],
            ["10.99.0.0/25 fd99::/127", "10.99.0.127/32"],
        ),
        policy(["", ""], ["", "10.99.0.128/25 fd99::2/128"]),
        policy(["", "8000"], ["fd99::/16", ""]),
        policy(["7003 8000", ""], ["10.98.0.0/15", "::/0"]),
        policy(["", "7000-7003"], ["0.0.0.0/0 ::/0", "0.0.0.0/1"]),
    ]
}

fn agree(variant: &str, dead_man: DeadMan) {
    let world = World::new();
    settle(&world.pod, variant);
    // The peer answers as any of these.
    world
        .peer
        .sh("ip route add local 10.99.0.0/24 dev lo; ip -6 route add local fd99::/64 dev lo");
    for port in PORTS {
        world.peer.serve_direct(port);
        world.pod.serve_direct(port);
    }
    let mut backend = backend(dead_man);
    let mut enrolment = world.enrolment(OnFailure::Open);
    backend.install(&enrolment).expect("installs");
    let remotes = [
        "10.99.0.0",
        "10.99.0.127",
        "10.99.0.128",
        PEER[0],
        "fd99::1",
        "fd99::2",
        PEER[1],
        POD[0],
        POD[1],
    ];
    let (mut asked, mut captured) = (0, 0);
    for policy in policies() {
        enrolment.spec.outbound = policy.clone();
        enrolment.spec.inbound = CapturePolicy {
            include_cidrs: vec![],
            exclude_cidrs: vec![],
            ..policy
        };
        backend.update(&enrolment).expect("updates");
        for port in PORTS {
            backend.keep_alive();
            let outbound = remotes.map(|remote| (remote, None, &world.pod));
            let inbound = [
                (POD[0], Some(PEER[0]), &world.peer),
                (POD[1], Some(PEER[1]), &world.peer),
            ];
            for (to, client, from) in outbound.into_iter().chain(inbound) {
                let direction = match client {
                    None => Direction::Outbound,
                    Some(_) => Direction::Inbound,
                };
                let destination = at(to, port);
                let answer = ask(&backend, &enrolment, direction, &destination, client);
                let happened = match from.ask(&destination) {
                    text if text.starts_with("agent") && client.is_none() => Outcome::Captured,
                    text if text.starts_with("inbound") && client.is_some() => Outcome::Captured,
                    text if text.starts_with("direct") => Outcome::Direct,
                    other => panic!("{destination}: {other}"),
                };
                assert_eq!(answer.outcome, happened, "{destination} {answer:#?}");
                let sure = answer.drift.is_empty() && answer.doubts.is_empty();
                assert!(sure, "{answer:#?}");
                asked += 1;
                captured += u32::from(happened == Outcome::Captured);
            }
        }
    }
    assert!(asked > 500 && captured > 100, "{asked} {captured}");
}

#[test]
fn explained_nft_recent() {
    agree("nft", DeadMan::Recent);
}

#[test]
fn explained_legacy_set() {
    agree("legacy", DeadMan::Set);
}

fn the_gate_is_told(dead_man: DeadMan) {
    let world = World::new();
    let mut backend = backend(dead_man);
    let enrolment = world.enrolment(OnFailure::Open);
    backend.install(&enrolment).expect("installs");
    let destination = at(PEER[0], PEER_PORT);
    let explained = |backend: &IptablesBackend| outbound(backend, &enrolment, &destination);
    let never = explained(&backend);
    assert_eq!(
        (never.rule.as_str(), never.outcome),
        (rule::GATE_STALE, Outcome::Direct)
    );
    backend.keep_alive();
    let open = explained(&backend);
    assert_eq!(
        (open.gate.holds, open.outcome),
        (Some(true), Outcome::Captured),
        "{open:#?}"
    );
    until("the gate opens", OPEN_WITHIN, || {
        let answer = explained(&backend);
        answer.rule == rule::GATE_STALE && answer.gate.holds == Some(false)
    });
    assert!(world.pod.ask(&destination).starts_with("direct"));
    backend.keep_alive();
    assert_eq!(explained(&backend).outcome, Outcome::Captured);
    backend
        .release(&enrolment)
        .and_then(|()| backend.finish(&enrolment))
        .expect("removed");
}

#[test]
fn a_stale_recent_list_is_told() {
    the_gate_is_told(DeadMan::Recent);
}

#[test]
fn a_stale_set_is_told() {
    the_gate_is_told(DeadMan::Set);
}

#[test]
fn what_others_did_to_the_rules_is_told() {
    let world = World::new();
    let mut backend = backend(DeadMan::Recent);
    let enrolment = world.enrolment(OnFailure::Open);
    backend.install(&enrolment).expect("installs");
    backend.keep_alive();
    let destination = at(PEER[0], PEER_PORT);
    let mut explained = || {
        backend.keep_alive();
        outbound(&backend, &enrolment, &destination)
    };
    assert_eq!(explained().outcome, Outcome::Captured);

    world
        .pod
        .sh("iptables-nft -t nat -I OUTPUT 1 -m owner --uid-owner 12345 -j ACCEPT");
    let doubtful = explained();
    assert_eq!(
        (doubtful.outcome, doubtful.doubts.len()),
        (Outcome::Captured, 1),
        "{doubtful:#?}"
    );

    let foreign = format!("-d {} -p tcp -j ACCEPT", PEER[0]);
    world
        .pod
        .sh(&format!("iptables-nft -t nat -I OUTPUT 1 {foreign}"));
    let answer = explained();
    assert_eq!(
        (answer.rule.as_str(), answer.outcome),
        (rule::FOREIGN_RULE, Outcome::Direct)
    );
    assert!(!answer.drift.is_empty(), "{answer:#?}");
    assert!(world.pod.ask(&destination).starts_with("direct"));

    world.pod.sh("iptables-nft -t nat -F OUTPUT");
    let answer = explained();
    assert_eq!(
        (answer.rule.as_str(), answer.outcome),
        (rule::NOT_ENROLLED, Outcome::Direct)
    );
    assert!(!answer.drift.is_empty() && world.pod.ask(&destination).starts_with("direct"));
}

#[test]
fn without_its_listener_a_redirect_refuses() {
    let world = World::new();
    let mut backend = backend(DeadMan::Recent);
    let mut enrolment = enrolment(&world.pod, OnFailure::Closed, &[], &[]);
    let (addr, sockets) = world
        .pod
        .netns
        .listen(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 0), 0, 1)
        .expect("free");
    let spec = shunt_core::sockets::ListenerSpec {
        workload: enrolment.id,
        direction: Direction::Outbound,
        steering: shunt_core::sockets::Steering::Redirect,
        addr,
    };
    enrolment
        .listeners
        .push(shunt_intercept::Listener { spec, sockets });
    backend.install(&enrolment).expect("installs");
    let destination = at(PEER[0], PEER_PORT);
    let answer = outbound(&backend, &enrolment, &destination);
    assert_eq!(
        (answer.rule.as_str(), answer.outcome),
        (rule::GATE_STALE, Outcome::Refused),
        "nobody has spoken for the agent yet: {answer:#?}"
    );
    assert_eq!(world.pod.ask(&destination), "ConnectionRefused");
    backend.keep_alive();
    let answer = outbound(&backend, &enrolment, &destination);
    assert_eq!(
        (answer.outcome, answer.gate.holds),
        (Outcome::Captured, Some(true)),
        "{answer:#?}"
    );
    enrolment.listeners[0].sockets.clear();
    let answer = outbound(&backend, &enrolment, &destination);
    assert_eq!(
        (answer.rule.as_str(), answer.outcome),
        (rule::LISTENER_GONE, Outcome::Refused)
    );
    assert_eq!(world.pod.ask(&destination), "ConnectionRefused");
}
