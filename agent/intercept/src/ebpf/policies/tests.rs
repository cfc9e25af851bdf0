//! What the hooks go through says the same as the policy itself.

use proptest::prelude::*;
use shunt_core::policy::Selector;
use shunt_core::workload::{
    Acceleration, CapturePolicy, ModeSetting, OnFailure, WorkloadName, WorkloadSpec,
};
use shunt_ebpf_common::policy::Peer as KernelPeer;

use super::*;

fn spec(number: u32) -> WorkloadSpec {
    WorkloadSpec {
        name: WorkloadName {
            namespace: "default".into(),
            name: format!("w{number}"),
        },
        netns: "/run/netns/x".into(),
        cgroup: None,
        labels: [("group".to_owned(), (number % 2).to_string())].into(),
        mode: ModeSetting::Ebpf,
        acceleration: Acceleration::Auto.into(),
        on_failure: OnFailure::Open,
        dns: shunt_core::workload::DnsPolicy::default(),
        outbound: CapturePolicy::default(),
        inbound: CapturePolicy::default(),
    }
}

fn selector() -> impl Strategy<Value = Selector> {
    prop_oneof![
        (1..4_u32).prop_map(|number| Selector {
            name: Some(format!("w{number}")),
            ..Selector::default()
        }),
        (0..2_u32).prop_map(|group| Selector {
            labels: [("group".to_owned(), group.to_string())].into(),
            ..Selector::default()
        }),
        Just(Selector::default()),
    ]
}

fn peer() -> impl Strategy<Value = Option<Peer>> {
    let nets = prop::sample::select(vec![
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.1.0.0/31",
        "10.1.0.1/32",
        "::/0",
        "::/1",
        "::ffff:0:0/96",
        "fd00::/8",
        "fd00::1/128",
    ]);
    prop_oneof![
        Just(None),
        selector().prop_map(|selector| Some(Peer::Workload(selector))),
        nets.prop_map(|net| Some(Peer::Cidr(net.parse().expect("a net")))),
    ]
}

fn rule() -> impl Strategy<Value = PolicyRule> {
    let ports = prop::collection::vec((79..83_u16, 0..3_u16), 0..3);
    (
        any::<bool>(),
        any::<bool>(),
        prop::option::of(selector()),
        peer(),
        ports,
    )
        .prop_map(|(denies, inbound, workload, peer, ports)| PolicyRule {
            action: if denies { Action::Deny } else { Action::Allow },
            direction: if inbound {
                Direction::Inbound
            } else {
                Direction::Outbound
            },
            workload,
            peer,
            ports: ports
                .into_iter()
                .map(|(first, more)| PortRange {
                    first,
                    last: first + more,
                })
                .collect(),
        })
}

proptest! {
    #[test]
    fn hooks_and_policy_agree(
        rules in prop::collection::vec(rule(), 0..8),
        (subject, other, port) in (1..4_u32, 0..4_u32, 78..86_u16),
        address in prop::sample::select(vec!["10.1.0.1", "10.1.0.2", "192.0.2.1", "fd00::1", "2001:db8::1"]),
    ) {
        let policy = Policy::new(rules);
        let selectors: Vec<u32> = (1..).take(policy.rules().len()).collect();
        let address: IpAddr = address.parse().expect("an address");
        let (about_whom, peer) = (spec(subject), (other > 0).then(|| spec(other)));
        for direction in [Direction::Outbound, Direction::Inbound] {
            let wanted =
                policy.decide(direction, about_whom.identity(), peer.as_ref().map(WorkloadSpec::identity), address, port);
            // As `set` numbers them: a rule without a selector has none.
            let numbered: Vec<u32> = policy.rules().iter().zip(&selectors)
                .map(|(rule, number)| if matches!(rule.peer, Some(Peer::Workload(_))) { *number } else { 0 })
                .collect();
            let values = about(&policy, &numbered, &about_whom, direction).expect("they are few");
            let kernel_peer = KernelPeer { workload: other, address: to_kernel(address) };
            let is_selected = |key: &Selected| {
                let rule = &policy.rules()[key.selector as usize - 1];
                matches!((&rule.peer, &peer), (Some(Peer::Workload(chosen)), Some(peer)) if chosen.fits(peer.identity()))
            };
            let found = values.iter().find(|value| value.matches(&kernel_peer, port, is_selected));
            prop_assert_eq!(found.map(|value| value.index as usize), wanted.rule);
            let denied = found.is_some_and(|value| value.denies != 0);
            prop_assert_eq!(denied, wanted.is_denied());
        }
    }
}
