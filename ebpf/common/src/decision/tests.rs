use std::net::{IpAddr, Ipv6Addr};

use super::*;

struct Fixed {
    restricts: u32,
    port: u32,
    address: u32,
}

impl Rules for Fixed {
    fn restricts(&self) -> Restricts {
        Restricts(self.restricts)
    }
    fn port(&self, _: u16) -> Marks {
        Marks(self.port)
    }
    fn address(&self, _: &Address) -> Marks {
        Marks(self.address)
    }
}

const NO_RULES: Fixed = Fixed {
    restricts: 0,
    port: 0,
    address: 0,
};

fn address(text: &str) -> Address {
    let octets = match text.parse().expect("an address") {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    Address::from_octets(octets)
}

fn ask(text: &str, rules: &Fixed) -> Verdict {
    let question = Question {
        direction: Direction::Outbound,
        address: address(text),
        port: 80,
        bound_to_device: false,
    };
    decide(&question, rules)
}

#[test]
fn some_addresses_are_never_captured() {
    for (text, want) in [
        ("127.0.0.1", Verdict::Loopback),
        ("127.8.9.10", Verdict::Loopback),
        ("::1", Verdict::Loopback),
        ("0.0.0.0", Verdict::Unspecified),
        ("::", Verdict::Unspecified),
        ("224.0.0.1", Verdict::Multicast),
        ("239.255.255.255", Verdict::Multicast),
        ("ff02::1", Verdict::Multicast),
        ("255.255.255.255", Verdict::Broadcast),
        ("10.0.0.1", Verdict::Capture),
        ("240.0.0.1", Verdict::Capture),
        ("fd00::1", Verdict::Capture),
        ("::2", Verdict::Capture),
    ] {
        assert_eq!(ask(text, &NO_RULES), want, "{text}");
    }
}

#[test]
fn a_mapped_address_is_judged_as_ipv4() {
    let mapped: Ipv6Addr = "::ffff:127.0.0.1".parse().expect("an address");
    assert_eq!(Address::from_octets(mapped.octets()), address("127.0.0.1"));
}

#[test]
fn exclusion_wins_over_inclusion() {
    let both = Marks::INCLUDED | Marks::EXCLUDED;
    let all = Restricts::ANY_PORTS | Restricts::INCLUDE_PORTS | Restricts::INCLUDE_ADDRESSES;
    let rules = Fixed {
        restricts: all,
        port: both,
        address: Marks::INCLUDED,
    };
    assert_eq!(ask("10.0.0.1", &rules), Verdict::ExcludedPort);
    let rules = Fixed {
        restricts: all,
        port: Marks::INCLUDED,
        address: both,
    };
    assert_eq!(ask("10.0.0.1", &rules), Verdict::ExcludedAddress);
}

#[test]
fn include_lists_leave_the_rest_alone() {
    let ports = Restricts::ANY_PORTS | Restricts::INCLUDE_PORTS;
    assert_eq!(
        ask(
            "10.0.0.1",
            &Fixed {
                restricts: ports,
                port: 0,
                address: 0
            }
        ),
        Verdict::PortNotIncluded
    );
    let addresses = Restricts::INCLUDE_ADDRESSES;
    assert_eq!(
        ask(
            "10.0.0.1",
            &Fixed {
                restricts: addresses,
                port: 0,
                address: 0
            }
        ),
        Verdict::AddressNotIncluded
    );
    let rules = Fixed {
        restricts: ports | addresses,
        port: Marks::INCLUDED,
        address: Marks::INCLUDED,
    };
    assert_eq!(ask("10.0.0.1", &rules), Verdict::Capture);
}

#[test]
fn own_addresses_come_before_any_rule() {
    let rules = Fixed {
        restricts: 0,
        port: 0,
        address: Marks::OWN | Marks::INCLUDED,
    };
    assert_eq!(ask("10.0.0.1", &rules), Verdict::OwnAddress);
}

#[test]
fn octets_survive_the_round_trip() {
    let octets = *b"0123456789abcdef";
    assert_eq!(Address::from_octets(octets).octets(), octets);
}

#[test]
fn a_witness_sees_every_rule_up_to_the_one_that_holds() {
    #[derive(Default)]
    struct Steps(Vec<(Verdict, bool)>);
    impl Witness for Steps {
        fn saw(&mut self, rule: Verdict, holds: bool) {
            self.0.push((rule, holds));
        }
    }
    let steps = |text: &str, rules: &Fixed| {
        let question = Question {
            direction: Direction::Outbound,
            address: address(text),
            port: 80,
            bound_to_device: false,
        };
        let mut steps = Steps::default();
        let verdict = decide_before(&question, rules, &mut steps);
        assert_eq!(verdict, ask(text, rules));
        steps.0
    };
    let seen = steps("127.0.0.1", &NO_RULES);
    assert_eq!(
        seen,
        [(Verdict::BoundToDevice, false), (Verdict::Loopback, true)]
    );
    let seen = steps("10.0.0.1", &NO_RULES);
    assert_eq!(seen.len(), 10);
    assert!(seen.iter().all(|(_, held)| !held), "{seen:?}");
    assert_eq!(seen.last(), Some(&(Verdict::AddressNotIncluded, false)));
}
