use proptest::prelude::*;

use super::*;

fn labels(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(key, value): &(&str, &str)| (key.to_string(), value.to_string());
    of.iter().map(owned).collect()
}

fn named(name: &str) -> WorkloadName {
    WorkloadName {
        namespace: "default".into(),
        name: name.into(),
    }
}

fn rule(action: Action, name: &str, peer: Option<Peer>, ports: &[&str]) -> PolicyRule {
    PolicyRule {
        action,
        direction: Direction::Inbound,
        workload: Some(Selector {
            name: Some(name.into()),
            ..Selector::default()
        }),
        peer,
        ports: ports
            .iter()
            .map(|text| text.parse().expect("ports"))
            .collect(),
    }
}

#[test]
fn the_first_rule_decides_and_without_one_it_is_allowed() {
    let web = Peer::Workload(Selector {
        labels: labels(&[("app", "web")]),
        ..Selector::default()
    });
    let everybody = Peer::Cidr("0.0.0.0/0".parse().expect("a network"));
    let policy = Policy::new(vec![
        rule(Action::Allow, "db", Some(web), &["5432"]),
        rule(Action::Deny, "db", Some(everybody), &[]),
    ]);
    let (db, web, none) = (named("db"), labels(&[("app", "web")]), labels(&[]));
    let ask = |peer: Option<&BTreeMap<_, _>>, from: &str, port| {
        let name = named("client");
        let peer = peer.map(|labels| Identity {
            name: &name,
            labels,
        });
        let subject = Identity {
            name: &db,
            labels: &none,
        };
        let from = from.parse().expect("an address");
        let decision = policy.decide(Direction::Inbound, subject, peer, from, port);
        (decision.action, decision.rule)
    };
    assert_eq!(ask(Some(&web), "10.0.0.1", 5432), (Action::Allow, Some(0)));
    assert_eq!(ask(Some(&web), "10.0.0.1", 5433), (Action::Deny, Some(1)));
    assert_eq!(ask(Some(&none), "10.0.0.1", 5432), (Action::Deny, Some(1)));
    assert_eq!(ask(None, "10.0.0.1", 5432), (Action::Deny, Some(1)));
    // The second rule is about IPv4 only.
    assert_eq!(ask(None, "fd00::1", 5432), (Action::Allow, None));
    let other = Identity {
        name: &named("other"),
        labels: &none,
    };
    let from = "10.0.0.1".parse().expect("an address");
    let decision = policy.decide(Direction::Inbound, other, None, from, 1);
    assert_eq!(decision.rule_name(), None);
}

#[test]
fn a_peer_of_several_addresses_is_allowed_only_if_each_is() {
    let net = |text: &str| Some(Peer::Cidr(text.parse().expect("a network")));
    let policy = Policy::new(vec![
        rule(Action::Allow, "db", net("10.0.0.1/32"), &[]),
        rule(Action::Deny, "db", net("10.0.0.0/24"), &["80"]),
        rule(Action::Deny, "db", net("::/0"), &[]),
    ]);
    let (db, none) = (named("db"), labels(&[]));
    let subject = Identity {
        name: &db,
        labels: &none,
    };
    let ask = |addresses: &[&str], server: &str| {
        let addresses: Vec<IpAddr> = addresses
            .iter()
            .map(|a| a.parse().expect("an address"))
            .collect();
        let server = server.parse().expect("an address");
        policy.decide_each(subject, None, &addresses, server).rule
    };
    assert_eq!(ask(&["10.0.0.1"], "10.1.1.1:80"), Some(0));
    assert_eq!(ask(&["10.0.0.1", "10.0.0.2"], "10.1.1.1:80"), Some(1));
    assert_eq!(ask(&["10.0.0.1", "10.0.0.2"], "10.1.1.1:81"), Some(0));
    // Those of the other family play no part, and without any a rule about all of them still holds.
    assert_eq!(ask(&["fd00::1", "10.0.1.1"], "10.1.1.1:80"), None);
    assert_eq!(ask(&["10.0.0.1"], "[fd00::9]:80"), Some(2));
}

#[test]
fn both_ends_are_asked_the_client_first() {
    let to = |name: &str, direction, action| PolicyRule {
        direction,
        ..rule(action, name, None, &[])
    };
    let policy = Policy::new(vec![
        to("db", Direction::Inbound, Action::Deny),
        to("web", Direction::Outbound, Action::Allow),
        to("evil", Direction::Outbound, Action::Deny),
    ]);
    let none = labels(&[]);
    let server = "10.0.0.9:80".parse().expect("an address");
    let judge = |client: &str, owner: Option<&str>| {
        let (client, owner) = (named(client), owner.map(named));
        let of = |name| Identity {
            name,
            labels: &none,
        };
        let judgement = policy.judge(of(&client), &[], server, owner.as_ref().map(of));
        judgement
            .denied()
            .map(|(way, decision)| (way, decision.rule))
    };
    assert_eq!(
        judge("web", Some("db")),
        Some((Direction::Inbound, Some(0)))
    );
    assert_eq!(
        judge("evil", Some("db")),
        Some((Direction::Outbound, Some(2)))
    );
    assert_eq!(judge("web", Some("other")), None);
    assert_eq!(judge("web", None), None);
}

const NAMES: [&str; 3] = ["a", "b", "c"];

prop_compose! {
    fn selector()(
        name in prop::option::of(prop::sample::select(&NAMES[..])),
        namespace in prop::option::of(prop::sample::select(vec!["x", "y"])),
        labels in some_labels(),
    ) -> Selector {
        Selector { name: name.map(Into::into), namespace: namespace.map(Into::into), labels }
    }
}

fn some_labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map("[kl]", "[12]", 0..3)
}

fn direction() -> impl Strategy<Value = Direction> {
    prop::sample::select(vec![Direction::Outbound, Direction::Inbound])
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..4_u8).prop_map(|last| IpAddr::from([10, 0, 0, last])),
        (0..4_u16).prop_map(|last| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last])),
    ]
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        selector().prop_map(Peer::Workload),
        (address(), 0..=32_u8).prop_map(|(address, length)| Peer::Cidr(
            IpNet::new(address, length).expect("a prefix").trunc()
        )),
    ]
}

prop_compose! {
    fn a_rule()(
        action in prop::sample::select(vec![Action::Allow, Action::Deny]),
        direction in direction(),
        workload in prop::option::of(selector()),
        peer in prop::option::of(peer()),
        ports in prop::collection::vec((1..6_u16, 0..3_u16), 0..3),
    ) -> PolicyRule {
        let range = |(first, more)| PortRange { first, last: first + more };
        PolicyRule { action, direction, workload, peer, ports: ports.into_iter().map(range).collect() }
    }
}

prop_compose! {
    fn identity()(
        name in prop::sample::select(&NAMES[..]),
        namespace in prop::sample::select(vec!["x", "y"]),
        labels in some_labels(),
    ) -> (WorkloadName, BTreeMap<String, String>) {
        (WorkloadName { namespace: namespace.into(), name: name.into() }, labels)
    }
}

/// The documented sentence, word by word.
fn naive(
    rules: &[PolicyRule],
    way: Direction,
    subject: &(WorkloadName, BTreeMap<String, String>),
    peer: Option<&(WorkloadName, BTreeMap<String, String>)>,
    address: IpAddr,
    port: u16,
) -> Option<usize> {
    let is = |selector: &Selector, (name, labels): &(WorkloadName, BTreeMap<String, String>)| {
        if selector
            .name
            .as_ref()
            .is_some_and(|wanted| *wanted != name.name)
        {
            return false;
        }
        if selector
            .namespace
            .as_ref()
            .is_some_and(|wanted| *wanted != name.namespace)
        {
            return false;
        }
        selector
            .labels
            .iter()
            .all(|label| labels.iter().any(|has| has == label))
    };
    for (at, rule) in rules.iter().enumerate() {
        let peer_fits = match (&rule.peer, peer) {
            (None, _) => true,
            (Some(Peer::Workload(_)), None) => false,
            (Some(Peer::Workload(selector)), Some(peer)) => is(selector, peer),
            (Some(Peer::Cidr(net)), _) => net.network() <= address && address <= net.broadcast(),
        };
        let subject_fits = match &rule.workload {
            None => true,
            Some(selector) => is(selector, subject),
        };
        let mut port_fits = rule.ports.is_empty();
        for range in &rule.ports {
            port_fits |= range.first <= port && port <= range.last;
        }
        if rule.direction == way && subject_fits && peer_fits && port_fits {
            return Some(at);
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decides_as_the_sentence_says(
        rules in prop::collection::vec(a_rule(), 0..12),
        way in direction(),
        subject in identity(),
        peer in prop::option::of(identity()),
        (address, port) in (address(), 1..8_u16),
    ) {
        let expected = naive(&rules, way, &subject, peer.as_ref(), address, port);
        let policy = Policy::new(rules.clone());
        let decision = policy.decide(
            way,
            Identity { name: &subject.0, labels: &subject.1 },
            peer.as_ref().map(|(name, labels)| Identity { name, labels }),
            address,
            port,
        );
        prop_assert_eq!(decision.rule, expected);
        prop_assert_eq!(decision.action, expected.map_or(Action::Allow, |at| rules[at].action));
    }
}
