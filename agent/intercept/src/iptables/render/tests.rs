use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use shunt_core::address::to_kernel;
use shunt_ebpf_common::decision::{Question, Verdict, decide};

use super::super::evaluate::{Packet, Table};
use super::super::explain::judge;
use super::*;
use crate::explain::Case;
use shunt_core::explain::{Explanation, Inquiry};
use shunt_core::rules::PolicyRules;
use shunt_core::status::StatusMode;

const MARKS: Marks = Marks {
    upstream: 0x539,
    delivery: 0x53a,
};

fn rendered<'a>(
    family: Family,
    own: &'a [IpAddr],
    outbound: &'a CapturePolicy,
    inbound: &'a CapturePolicy,
) -> Rendered<'a> {
    Rendered {
        family,
        marks: MARKS,
        outbound_port: Some(15001),
        inbound_port: Some(15006),
        dns_port: None,
        outbound,
        inbound,
        own,
        dead_man: Some(DeadMan::Recent),
        asks_sockets: true,
        on_failure: OnFailure::Open,
    }
}

/// What `shunt explain` says of a connection when these are the rules in the kernel, its gate being open.
fn explained(rules: &[String], case: &Case<'_>, local: bool) -> Explanation {
    let text: String = JUMPS
        .iter()
        .map(|(builtin, chain)| format!("-A {builtin} -p tcp -j {chain}\n"))
        .chain(rules.iter().map(|rule| format!("-A {rule}\n")))
        .collect();
    let packet = Packet {
        source: (case.direction == Direction::Inbound).then_some(case.client),
        destination: case.destination.ip(),
        port: case.destination.port(),
        mark: 0,
        local,
        alive: true,
        listening: true,
    };
    let inquiry = Inquiry {
        workload: "web".into(),
        direction: case.direction,
        destination: case.destination,
        client: Some(case.client),
    };
    let mut answer = Explanation::begin("default/web", &inquiry, StatusMode::Iptables);
    judge(case, &Table::parse(&text), &packet, &mut answer);
    answer
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![1_u16..40, 1_u16..]
}

fn range() -> impl Strategy<Value = PortRange> {
    (port(), port()).prop_map(|(a, b)| PortRange {
        first: a.min(b),
        last: a.max(b),
    })
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0_u8..3, 0_u8..3).prop_map(|(a, b)| IpAddr::from([10, 0, a, b])),
        (0_u16..3, 0_u16..3).prop_map(|(a, b)| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, a, b])),
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u16; 8]>().prop_map(IpAddr::from),
    ]
}

fn policy(cidrs: bool) -> impl Strategy<Value = CapturePolicy> {
    let net = (ip(), 0_u8..=128).prop_map(|(ip, bits)| {
        let most = if ip.is_ipv4() { 32 } else { 128 };
        IpNet::new(ip, bits.min(most)).expect("in range").trunc()
    });
    let ranges = || proptest::collection::vec(range(), 0..3);
    let nets = proptest::collection::vec(net, 0..if cidrs { 4 } else { 1 });
    (ranges(), ranges(), nets).prop_map(|(include_ports, exclude_ports, mut nets)| {
        let exclude_cidrs = nets.split_off(nets.len() / 2);
        CapturePolicy {
            include_ports,
            exclude_ports,
            include_cidrs: nets,
            exclude_cidrs,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_rules_say_what_the_decision_says(
        outbound in policy(true),
        inbound in policy(false),
        own in proptest::collection::vec(ip(), 0..3),
        remote in ip(),
        port in port(),
    ) {
        prop_assume!(remote.to_canonical() == remote);
        let inbound = CapturePolicy { include_cidrs: vec![], exclude_cidrs: vec![], ..inbound };
        let family = if remote.is_ipv4() { Family::V4 } else { Family::V6 };
        let rules = rendered(family, &own, &outbound, &inbound).rules();
        for (direction, policy, own) in [
            (Direction::Outbound, &outbound, own.as_slice()),
            (Direction::Inbound, &inbound, &[][..]),
        ] {
            let here = if family == Family::V4 { "10.1.0.5" } else { "fd01::5" };
            let (destination, client) = match direction {
                Direction::Outbound => (remote, here.parse().expect("an address")),
                Direction::Inbound => (here.parse().expect("an address"), remote),
            };
            let question = Question { direction, address: to_kernel(remote), port, bound_to_device: false };
            let case = Case {
                direction,
                destination: SocketAddr::new(destination, port),
                client,
                question,
                rules: PolicyRules { policy, own },
            };
            let verdict = decide(&question, &case.rules);
            let local = direction == Direction::Inbound || own.contains(&remote);
            let answer = explained(&rules, &case, local);
            prop_assert_eq!(&answer.rule, verdict.as_str(), "{:?}\n{}\n{:#?}", direction, rules.join("\n"), answer);
            prop_assert!(answer.doubts.is_empty() && answer.drift.is_empty(), "{:#?}", answer);
            let last = answer.steps.last().map(|step| step.matched);
            prop_assert_eq!(last, Some(verdict != Verdict::Capture), "{:#?}", answer);
        }
    }
}

#[test]
fn the_text_of_a_small_policy() {
    let outbound = CapturePolicy {
        exclude_ports: vec![
            PortRange {
                first: 22,
                last: 22,
            },
            PortRange {
                first: 8000,
                last: 8100,
            },
        ],
        exclude_cidrs: vec![
            "10.9.0.0/16".parse().expect("a network"),
            "fd00::/8".parse().expect("a network"),
        ],
        ..CapturePolicy::default()
    };
    let inbound = CapturePolicy::default();
    let own = [
        "10.1.0.5".parse().expect("an address"),
        "fd01::5".parse().expect("an address"),
    ];
    let text = rendered(Family::V4, &own, &outbound, &inbound).transaction(&[]);
    let want = "*nat
:SHUNT_OUTPUT - [0:0]
:SHUNT_OUT_ADDR - [0:0]
:SHUNT_TO_OUT - [0:0]
:SHUNT_PREROUTING - [0:0]
:SHUNT_IN_OPEN - [0:0]
:SHUNT_TO_IN - [0:0]
-I OUTPUT 1 -p tcp -m tcp --syn -j SHUNT_OUTPUT
-I PREROUTING 1 -p tcp -m tcp --syn -j SHUNT_PREROUTING
-A SHUNT_OUTPUT -m mark --mark 0x539 -j RETURN
-A SHUNT_OUTPUT -m mark --mark 0x53a -j RETURN
-A SHUNT_OUTPUT -d 127.0.0.0/8 -j RETURN
-A SHUNT_OUTPUT -d 0.0.0.0/8 -j RETURN
-A SHUNT_OUTPUT -d 224.0.0.0/4 -j RETURN
-A SHUNT_OUTPUT -d 255.255.255.255/32 -j RETURN
-A SHUNT_OUTPUT -m addrtype --dst-type LOCAL -j RETURN
-A SHUNT_OUTPUT -d 10.1.0.5/32 -j RETURN
-A SHUNT_OUTPUT -p tcp -m tcp --dport 22 -j RETURN
-A SHUNT_OUTPUT -p tcp -m tcp --dport 8000:8100 -j RETURN
-A SHUNT_OUTPUT -d 10.9.0.0/16 -j RETURN
-A SHUNT_OUTPUT -j SHUNT_OUT_ADDR
-A SHUNT_OUT_ADDR -j SHUNT_TO_OUT
-A SHUNT_TO_OUT -p tcp -m recent --rcheck --seconds 1 --name shunt4 --mask 0.0.0.0 --rdest -j REDIRECT --to-ports 15001
-A SHUNT_PREROUTING -m addrtype ! --dst-type LOCAL -j RETURN
-A SHUNT_PREROUTING -m mark --mark 0x539 -j RETURN
-A SHUNT_PREROUTING -m mark --mark 0x53a -j RETURN
-A SHUNT_PREROUTING -s 127.0.0.0/8 -j RETURN
-A SHUNT_PREROUTING -s 0.0.0.0/8 -j RETURN
-A SHUNT_PREROUTING -s 224.0.0.0/4 -j RETURN
-A SHUNT_PREROUTING -s 255.255.255.255/32 -j RETURN
-A SHUNT_PREROUTING -j SHUNT_IN_OPEN
-A SHUNT_IN_OPEN -p tcp -m socket --nowildcard -j SHUNT_TO_IN
-A SHUNT_TO_IN -p tcp -m recent --rcheck --seconds 1 --name shunt4 --mask 0.0.0.0 --rdest -j REDIRECT --to-ports 15006
COMMIT
";
    assert_eq!(text, want);
}

#[test]
fn queries_are_led_away_by_the_same_rules() {
    let inbound = CapturePolicy::default();
    let outbound = CapturePolicy {
        include_cidrs: vec!["10.0.0.0/8".parse().expect("a network")],
        exclude_cidrs: vec!["10.9.0.0/16".parse().expect("a network")],
        ..CapturePolicy::default()
    };
    let own = ["10.1.0.5".parse().expect("an address")];
    let with = |outbound| Rendered {
        dns_port: Some(40053),
        on_failure: OnFailure::Closed,
        ..rendered(Family::V4, &own, outbound, &inbound)
    };
    let text = with(&outbound).transaction(&["SHUNT_OUTPUT", "SHUNT_PREROUTING"]);
    let of_queries: Vec<&str> = text.lines().filter(|line| line.contains("DNS")).collect();
    let want = "\
:SHUNT_DNS - [0:0]
:SHUNT_TO_DNS - [0:0]
-I OUTPUT 1 -p udp -m udp --dport 53 -j SHUNT_DNS
-A SHUNT_DNS -m mark --mark 0x539 -j RETURN
-A SHUNT_DNS -m mark --mark 0x53a -j RETURN
-A SHUNT_DNS -d 127.0.0.0/8 -j RETURN
-A SHUNT_DNS -d 0.0.0.0/8 -j RETURN
-A SHUNT_DNS -d 224.0.0.0/4 -j RETURN
-A SHUNT_DNS -d 255.255.255.255/32 -j RETURN
-A SHUNT_DNS -m addrtype --dst-type LOCAL -j RETURN
-A SHUNT_DNS -d 10.1.0.5/32 -j RETURN
-A SHUNT_DNS -d 10.9.0.0/16 -j RETURN
-A SHUNT_DNS -d 10.0.0.0/8 -j SHUNT_TO_DNS
-A SHUNT_TO_DNS -p udp -m recent --rcheck --seconds 1 --name shunt4 --mask 0.0.0.0 --rdest -j REDIRECT --to-ports 40053
-A SHUNT_TO_DNS -p udp -j REDIRECT --to-ports 1";
    assert_eq!(of_queries.join("\n"), want);
    // What another agent has left is taken out where it is not wanted, and so where port 53 is left alone.
    let without = |ports| CapturePolicy {
        exclude_ports: vec![ports],
        ..CapturePolicy::default()
    };
    let excluded = without(PortRange {
        first: 50,
        last: 60,
    });
    let text = with(&excluded).transaction(&["SHUNT_DNS"]);
    let of_queries: Vec<&str> = text.lines().filter(|line| line.contains("DNS")).collect();
    assert_eq!(
        of_queries,
        ["-D OUTPUT -p udp -m udp --dport 53 -j SHUNT_DNS"]
    );
}

#[test]
fn closed_refuses_what_is_not_redirected_to_a_living_agent() {
    let policy = CapturePolicy::default();
    let rendered = Rendered {
        on_failure: OnFailure::Closed,
        ..rendered(Family::V6, &[], &policy, &policy)
    };
    let rules = rendered.rules();
    for chain in ["SHUNT_TO_OUT", "SHUNT_TO_IN"] {
        let mut of_chain = rules.iter().filter(|rule| rule.starts_with(chain));
        let last = of_chain.next_back().expect("a rule");
        assert_eq!(last, &format!("{chain} -p tcp -j REDIRECT --to-ports 1"));
    }
}

#[test]
fn removal_takes_only_what_is_ours() {
    let saved = "*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:FOREIGN - [0:0]
:SHUNT_OUTPUT - [0:0]
:SHUNT_TO_OUT - [0:0]
-A OUTPUT -p tcp -j SHUNT_OUTPUT
-A OUTPUT -j FOREIGN
-A SHUNT_OUTPUT -j SHUNT_TO_OUT
COMMIT
";
    let text = removal(saved).expect("something to remove");
    let want = "*nat
-D OUTPUT -p tcp -j SHUNT_OUTPUT
-F SHUNT_OUTPUT
-F SHUNT_TO_OUT
-X SHUNT_OUTPUT
-X SHUNT_TO_OUT
COMMIT
";
    assert_eq!(text, want);
    assert_eq!(removal("*nat\n:FOREIGN - [0:0]\nCOMMIT\n"), None);
    assert_eq!(jumps(saved), ["SHUNT_OUTPUT"]);
}

#[test]
fn the_ipset_takes_the_place_of_recent_and_closed_has_neither() {
    let policy = CapturePolicy::default();
    let last = |dead_man| {
        let rendered = Rendered {
            dead_man,
            ..rendered(Family::V6, &[], &policy, &policy)
        };
        rendered.rules().pop()
    };
    assert_eq!(
        last(Some(DeadMan::Set)).as_deref(),
        Some("SHUNT_TO_IN -p tcp -m set --match-set shunt6 dst -j REDIRECT --to-ports 15006")
    );
    assert_eq!(
        last(None).as_deref(),
        Some("SHUNT_TO_IN -p tcp -j REDIRECT --to-ports 15006")
    );
}

#[test]
fn going_back_restores_our_chains_and_jumps() {
    let before = "*nat
:OUTPUT ACCEPT [0:0]
:SHUNT_OUTPUT - [0:0]
-A OUTPUT -p tcp -j SHUNT_OUTPUT
-A OUTPUT -j FOREIGN
-A SHUNT_OUTPUT -j RETURN
COMMIT
";
    let now = "*nat
:OUTPUT ACCEPT [0:0]
:SHUNT_OUTPUT - [0:0]
-A OUTPUT -j FOREIGN
COMMIT
";
    let text = return_to(before, now).expect("something to do");
    assert!(
        text.contains("-I OUTPUT 1 -p tcp -j SHUNT_OUTPUT\n-A SHUNT_OUTPUT -j RETURN\nCOMMIT\n"),
        "{text}"
    );
    assert!(!text.contains("FOREIGN"), "{text}");
    assert_eq!(return_to("", before), removal(before));
}
