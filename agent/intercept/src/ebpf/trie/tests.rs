use proptest::prelude::*;
use shunt_core::workload::{CapturePolicy, PortRange};
use shunt_ebpf_common::decision::{Address, Question, Restricts, decide};

use super::*;

/// The entries as the hooks see them.
struct Trie<'a> {
    entries: &'a [RuleEntry],
    restricts: Restricts,
}

impl Trie<'_> {
    fn find(&self, key: RuleKey) -> Marks {
        Marks(longest(self.entries, &key).map_or(0, |(_, marks)| *marks))
    }
}

impl Rules for Trie<'_> {
    fn restricts(&self) -> Restricts {
        self.restricts
    }
    fn port(&self, port: u16) -> Marks {
        self.find(RuleKey::port(7, 0, port))
    }
    fn address(&self, address: &Address) -> Marks {
        self.find(RuleKey::address(7, 0, address))
    }
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![1_u16..40, 8000_u16..8010, Just(65535), 1_u16..]
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
    ]
}

fn net() -> impl Strategy<Value = IpNet> {
    (ip(), 0_u8..=128).prop_map(|(ip, bits)| {
        let most = if ip.is_ipv4() { 32 } else { 128 };
        IpNet::new(ip, bits.min(most)).expect("in range").trunc()
    })
}

fn policy() -> impl Strategy<Value = CapturePolicy> {
    let ranges = || proptest::collection::vec(range(), 0..4);
    let nets = || proptest::collection::vec(net(), 0..4);
    (ranges(), ranges(), nets(), nets()).prop_map(
        |(include_ports, exclude_ports, include_cidrs, exclude_cidrs)| CapturePolicy {
            include_ports,
            exclude_ports,
            include_cidrs,
            exclude_cidrs,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_trie_says_what_the_policy_says(
        policy in policy(),
        own in proptest::collection::vec(ip(), 0..3),
        questions in proptest::collection::vec((ip(), port()), 1..8),
    ) {
        let rules = PolicyRules { policy: &policy, own: &own };
        let entries = compile(7, Direction::Outbound, &rules);
        let trie = Trie { entries: &entries, restricts: rules.restricts() };
        for (ip, port) in questions {
            let question = Question {
                direction: Direction::Outbound,
                address: to_kernel(ip),
                port,
                bound_to_device: false,
            };
            prop_assert_eq!(decide(&question, &trie), decide(&question, &rules), "{} {}", ip, port);
        }
    }
}

#[test]
fn a_whole_range_is_one_entry() {
    assert_eq!(prefixes(0, 65536), [(0, 0)]);
    assert_eq!(prefixes(8000, 8001), [(8000, 16)]);
    assert_eq!(prefixes(1, 4), [(1, 16), (2, 15)]);
}
