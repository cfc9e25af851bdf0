//! A borrowed source address: the application sees the client, its answers find back.

use std::net::SocketAddr;
use std::time::Duration;

use shunt_core::sockets::{Family, SocketRole};
use shunt_core::workload::Mode;
use shunt_intercept::iptables;
use shunt_intercept::return_path::{ensure, leftovers, remove};

use crate::world::{MARKS, POD, World, assert_same, at};

/// Addresses that would be answered through eth0, to a router that knows them not.
const CLIENTS: [&str; 2] = ["203.0.113.9", "2001:db8::9"];

/// What the application says to whom it saw, asked by a delivery socket bound to `client`.
fn deliver(world: &World, client: &str, app: &str) -> Result<String, std::io::Error> {
    let app: SocketAddr = app.parse().expect("an address");
    let client: SocketAddr = at(client, 0).parse().expect("an address");
    let stock = world
        .pod
        .netns
        .stock(SocketRole::Delivery, Family::of(app), MARKS, 1);
    let socket = socket2::Socket::from(stock.expect("root").remove(0));
    socket.set_nonblocking(false).expect("a socket");
    socket.bind(&client.into()).expect("transparent");
    socket.connect_timeout(&app.into(), Duration::from_millis(1500))?;
    Ok(crate::world::read(socket.into()))
}

#[track_caller]
fn works(world: &World) {
    for (client, ip) in CLIENTS.iter().zip(POD) {
        let answer = deliver(world, client, &at(ip, 7000)).expect("delivers");
        assert_eq!(answer, format!("direct for {client}"));
        // A closed port refuses at once.
        let refused = deliver(world, client, &at(ip, 7001)).expect_err("nobody listens");
        assert_eq!(
            refused.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "{client}"
        );
    }
}

#[test]
fn the_application_sees_the_client_and_answers_it() {
    let world = World::new();
    world.pod.serve_direct(7000);
    let before = world.pod.state();
    let (client, app) = (CLIENTS[0], at(POD[0], 7000));
    let lost = deliver(&world, client, &app).expect_err("the answer leaves by eth0");
    assert_eq!(lost.kind(), std::io::ErrorKind::TimedOut);

    ensure(&world.pod.netns, MARKS.delivery, Mode::Iptables).expect("makes it");
    let once = world.pod.state();
    ensure(&world.pod.netns, MARKS.delivery, Mode::Iptables).expect("makes it again");
    assert_same(&world.pod.state(), &once, "state");
    works(&world);
    remove(&world.pod.netns, MARKS.delivery).expect("removes it");
    assert_same(&world.pod.state(), &before, "state");
    remove(&world.pod.netns, MARKS.delivery).expect("again is nothing");
}

#[test]
fn strict_and_loose_source_checks_do_not_matter() {
    for filter in [1, 2] {
        let world = World::new();
        world.pod.serve_direct(7000);
        world.pod.sh(&format!(
            "for c in all default lo eth0; do echo {filter} > /proc/sys/net/ipv4/conf/$c/rp_filter; done"
        ));
        ensure(&world.pod.netns, MARKS.delivery, Mode::Iptables).expect("makes it");
        works(&world);
    }
}

#[test]
fn what_was_switched_on_before_stays_on() {
    let world = World::new();
    world.pod.sh(
        "echo 1 > /proc/sys/net/ipv4/tcp_fwmark_accept; echo 1 > /proc/sys/net/ipv6/fwmark_reflect",
    );
    let before = world.pod.state();
    ensure(&world.pod.netns, MARKS.delivery, Mode::Iptables).expect("makes it");
    // Another agent, with another mark, after the first was killed.
    ensure(&world.pod.netns, 0x77, Mode::Iptables).expect("makes it for another");
    assert_eq!(
        world
            .pod
            .sh("ip rule; ip -6 rule")
            .matches("lookup 15006")
            .count(),
        2
    );
    assert!(!leftovers(&world.pod.netns).is_empty());
    let removed = iptables::cleanup(&world.pod.netns).expect("cleans");
    assert_same(&world.pod.state(), &before, &format!("{removed:?}"));
}

/// Containers often have it so: IPv4 must not suffer from it.
#[test]
fn ipv6_switched_off() {
    let world = World::new();
    world.pod.serve_direct(7000);
    world.pod.sh(
        "for c in all default lo eth0; do echo 1 > /proc/sys/net/ipv6/conf/$c/disable_ipv6; done",
    );
    let before = world.pod.state();
    ensure(&world.pod.netns, MARKS.delivery, Mode::Iptables).expect("makes it for IPv4");
    let answer = deliver(&world, CLIENTS[0], &at(POD[0], 7000)).expect("delivers");
    assert_eq!(answer, format!("direct for {}", CLIENTS[0]));
    remove(&world.pod.netns, MARKS.delivery).expect("removes it");
    assert_same(&world.pod.state(), &before, "state");
}
