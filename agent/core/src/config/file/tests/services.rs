//! What `services` and `policy` refuse.

use super::{faults, read};
use crate::policy::Peer;
use crate::service::Balance;

/// Each setting in turn, in a list with one entry: exactly one fault, of this field, which says this.
fn each_is_refused(list: &str, cases: &[(&str, &str, &str)]) {
    for (entry, field, message) in cases {
        let error = read(&format!("{list}:\n- {entry}\n")).expect_err(entry);
        let [fault] = error.faults() else {
            panic!("{entry}: {error}")
        };
        let field = match *field {
            "" => format!("{list}[0]"),
            field => format!("{list}[0].{field}"),
        };
        assert_eq!(
            (fault.line, &fault.field),
            (Some(2), &field),
            "{entry}: {error}"
        );
        assert!(fault.message.contains(message), "{entry}: {error}");
    }
}

#[test]
fn each_wrong_service_is_named() {
    let of_address = [
        ("10.0.0.1", "not an address with a port"),
        ("web:80", "not an address with a port"),
        ("fd00::1:80", "not an address with a port"),
        ("10.0.0.1:0", "a port is 1 to 65535"),
        ("10.0.0.1:65536", "not an address with a port"),
        ("127.0.0.2:80", "loopback"),
        ("'[::1]:80'", "loopback"),
        ("'[::ffff:127.0.0.1]:80'", "loopback"),
        ("224.0.0.1:80", "multicast"),
        ("'[ff02::1]:80'", "multicast"),
        ("0.0.0.0:80", "no address of a host"),
        ("'[::]:80'", "no address of a host"),
        ("255.255.255.255:80", "broadcast"),
        ("'[fe80::1]:80'", "link-local"),
    ];
    for (address, message) in of_address {
        let entry = format!("{{name: a, addresses: [{address}], endpoints: []}}");
        each_is_refused("services", &[(&entry, "addresses[0]", message)]);
        let entry = format!("{{name: a, addresses: ['10.0.0.9:1'], endpoints: [{address}]}}");
        each_is_refused("services", &[(&entry, "endpoints[0]", message)]);
    }
    each_is_refused(
        "services",
        &[
            (
                "{addresses: ['10.0.0.1:1'], endpoints: []}",
                "name",
                "missing",
            ),
            (
                "{name: a/b, addresses: ['10.0.0.1:1'], endpoints: []}",
                "name",
                "1 to 253",
            ),
            ("{name: a, endpoints: []}", "addresses", "missing"),
            (
                "{name: a, addresses: [], endpoints: []}",
                "addresses",
                "missing",
            ),
            (
                "{name: a, addresses: , endpoints: []}",
                "addresses",
                "missing",
            ),
            (
                "{name: a, addresses: x, endpoints: []}",
                "addresses",
                "where a list",
            ),
            (
                "{name: a, addresses: ['10.0.0.1:1']}",
                "endpoints",
                "[] refuses every connection",
            ),
            (
                "{name: a, addresses: ['10.0.0.1:1'], endpoints: {}}",
                "endpoints",
                "where a list",
            ),
            (
                "{name: a, addresses: ['10.0.0.1:1'], endpoints: [], balance: least}",
                "balance",
                "round_robin | random",
            ),
            (
                "{name: a, addresses: ['10.0.0.1:1'], endpoints: [], port: 80}",
                "port",
                "unknown key (name, addresses, endpoints, balance)",
            ),
            (
                "{name: a, addresses: ['10.0.0.1:1', '[fd00::1]:1'], endpoints: ['10.0.0.2:1']}",
                "addresses[1]",
                "`[fd00::1]:1` has no endpoint of its address family",
            ),
            (
                "{name: a, addresses: ['10.0.0.1:1'], endpoints: ['10.0.0.2:1', '[fd00::2]:1']}",
                "endpoints[1]",
                "no address of the service is of `[fd00::2]:1`'s address family",
            ),
            (
                "{name: a, addresses: ['10.0.0.1:1'], endpoints: ['10.0.0.2:1', '[::ffff:10.0.0.2]:1']}",
                "endpoints[1]",
                "`10.0.0.2:1` is given twice",
            ),
            (
                "{name: a, addresses: ['10.0.0.1:1'], endpoints: ['10.0.0.1:1']}",
                "endpoints[0]",
                "`10.0.0.1:1` is an address of service `a`",
            ),
        ],
    );
}

#[test]
fn services_exclude_each_other_by_name_and_by_address() {
    let text = "services:\n\
                - {name: a, addresses: ['10.0.0.1:1'], endpoints: ['10.0.1.1:1']}\n\
                - {name: a, addresses: ['10.0.0.2:1'], endpoints: ['10.0.1.1:1']}\n\
                - name: b\n\
                \x20 addresses: ['10.0.0.1:2',\n\
                \x20             '[::ffff:10.0.0.1]:1']\n\
                \x20 endpoints: ['10.0.0.2:1']\n";
    assert_eq!(
        faults(text),
        [
            "3: services[1].name: service `a` is given twice",
            "6: services[2].addresses[1]: `10.0.0.1:1` is an address of service `a` already",
            "7: services[2].endpoints[0]: `10.0.0.2:1` is an address of service `a` (an endpoint is where somebody listens)",
        ]
    );
}

#[test]
fn each_wrong_rule_is_named() {
    each_is_refused(
        "policy",
        &[
            ("{direction: inbound}", "action", "missing (allow | deny)"),
            (
                "{action: allow}",
                "direction",
                "missing (inbound | outbound)",
            ),
            (
                "{action: drop, direction: inbound}",
                "action",
                "allow | deny",
            ),
            (
                "{action: deny, direction: ingress}",
                "direction",
                "inbound | outbound",
            ),
            (
                "{action: deny, direction: inbound, from: x}",
                "from",
                "unknown key",
            ),
            (
                "{action: deny, direction: inbound, workload: }",
                "workload",
                "empty",
            ),
            (
                "{action: deny, direction: inbound, workload: db}",
                "workload",
                "where a mapping",
            ),
            (
                "{action: deny, direction: inbound, workload: {nam: db}}",
                "workload.nam",
                "`name`",
            ),
            (
                "{action: deny, direction: inbound, workload: {name: a/b}}",
                "workload.name",
                "1 to 253",
            ),
            (
                "{action: deny, direction: inbound, workload: {labels: x}}",
                "workload.labels",
                "where a mapping",
            ),
            (
                "{action: deny, direction: inbound, peer: }",
                "peer",
                "empty",
            ),
            (
                "{action: deny, direction: inbound, peer: {}}",
                "peer",
                "neither of cidr and workload",
            ),
            (
                "{action: deny, direction: inbound, peer: {cidr: 10.0.0.0/8, workload: {}}}",
                "peer",
                "both of cidr and workload",
            ),
            (
                "{action: deny, direction: inbound, peer: {cidr: 10.0.0.0/33}}",
                "peer.cidr",
                "not a network",
            ),
            (
                "{action: deny, direction: inbound, peer: {workload: }}",
                "peer.workload",
                "empty",
            ),
            (
                "{action: deny, direction: inbound, peer: {workload: {}, name: db}}",
                "peer.name",
                "unknown key",
            ),
            (
                "{action: deny, direction: inbound, ports: [0]}",
                "ports[0]",
                "1 to 65535",
            ),
            (
                "{action: deny, direction: inbound, ports: 80}",
                "ports",
                "where a list",
            ),
        ],
    );
}

#[test]
fn short_forms_are_right() {
    let config = read(
        "services: [{name: a, addresses: ['10.0.0.1:1', '[fd00::1]:1'], endpoints: [], balance: random}]\n\
         policy:\n\
         - {action: deny, direction: outbound}\n\
         - {action: allow, direction: inbound, workload: {}, peer: {workload: {}}, ports: []}\n\
         - {action: allow, direction: inbound, peer: {cidr: 10.0.0.1}}\n",
    )
    .expect("a configuration");
    assert_eq!(config.services[0].balance, Balance::Random);
    let [all, enrolled, one] = &config.policy[..] else {
        panic!("three rules")
    };
    assert_eq!((&all.workload, &all.peer), (&None, &None));
    assert_eq!(enrolled.peer, Some(Peer::Workload(Default::default())));
    assert_eq!(one.peer, Some(Peer::Cidr("10.0.0.1/32".parse().unwrap())));
}
