//! What is dumped reads back, and no text makes the reader panic.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;

use super::read;
use crate::config::file::dump;
use crate::config::{AccessLog, Admin, Config, Limits, Log, LogFormat, Ports, Timeouts};
use crate::flow::Direction;
use crate::policy::{Action, Peer, PolicyRule, Selector};
use crate::service::{Balance, Service};
use crate::workload::{
    Acceleration, AccelerationPolicy, CapturePolicy, DnsPolicy, ModeSetting, OnFailure, PortRange,
    WorkloadName, WorkloadSpec,
};

prop_compose! {
    fn policy(cidrs: bool)(
        include in prop::collection::vec((1..=65535_u16, 0..100_u16), 0..3),
        exclude in prop::collection::vec((1..=65535_u16, 0..100_u16), 0..3),
        nets in prop::collection::vec((any::<std::net::IpAddr>(), 0..=32_u8), if cidrs { 0..3 } else { 0..1 }),
    ) -> CapturePolicy {
        let range = |(first, more): (u16, u16)| PortRange { first, last: first.saturating_add(more) };
        let net = |(address, prefix)| ipnet::IpNet::new(address, prefix).unwrap().trunc();
        CapturePolicy {
            include_ports: include.into_iter().map(range).collect(),
            exclude_ports: exclude.into_iter().map(range).collect(),
            include_cidrs: Vec::new(),
            exclude_cidrs: nets.into_iter().map(net).collect(),
        }
    }
}

prop_compose! {
    fn acceleration()(
        default in word(),
        (direct, handoff) in any::<(bool, bool)>(),
        (first, ruled) in (1..=60_000_u16, prop::collection::vec((1..100_u16, word()), 0..3)),
    ) -> AccelerationPolicy {
        let mut next = first;
        let range = |(length, word)| {
            let range = PortRange { first: next, last: next + length };
            next += length + 1;
            (range, word)
        };
        AccelerationPolicy { default, ports: ruled.into_iter().map(range).collect(), direct, handoff }
    }
}

fn word() -> impl Strategy<Value = Acceleration> {
    prop::sample::select(vec![
        Acceleration::Off,
        Acceleration::Auto,
        Acceleration::Always,
    ])
}

prop_compose! {
    fn workload()(
        (name, namespace) in ("[a-z0-9_][A-Za-z0-9._-]{0,20}", "[a-z0-9][a-z0-9-]{0,10}"),
        (netns, cgroup) in ("/[ -~\u{a0}-\u{2ff}]{0,20}", prop::option::of("/?[a-z#:'\" {}]{1,10}")),
        labels in prop::collection::btree_map(any::<String>(), any::<String>(), 0..4),
        (mode, acceleration, on_failure, capture) in (
            prop::sample::select(vec![ModeSetting::Auto, ModeSetting::Ebpf, ModeSetting::Iptables]),
            acceleration(),
            prop::sample::select(vec![OnFailure::Open, OnFailure::Closed]),
            any::<bool>(),
        ),
        (outbound, inbound) in (policy(true), policy(false)),
    ) -> WorkloadSpec {
        WorkloadSpec {
            name: WorkloadName { namespace, name },
            netns: netns.into(),
            cgroup: cgroup.map(Into::into),
            labels, mode, acceleration, on_failure, outbound, inbound,
            dns: DnsPolicy { capture },
        }
    }
}

prop_compose! {
    fn service()(
        name in "[a-z0-9_][A-Za-z0-9._-]{0,20}",
        (v4, v6) in (any::<[u8; 3]>(), any::<[u16; 3]>()),
        families in 1..=3_u8,
        endpoints in prop::collection::btree_set(10..=65535_u16, 0..4),
        balance in prop::sample::select(vec![Balance::RoundRobin, Balance::Random]),
    ) -> Service {
        let v4 = IpAddr::from([10, v4[0], v4[1], v4[2]]);
        let v6 = IpAddr::from([0xfd00, v6[0], v6[1], v6[2], 0, 0, 0, 1]);
        let ips = match families {
            1 => vec![v4],
            2 => vec![v6],
            _ => vec![v4, v6],
        };
        let addresses = ips.iter().map(|ip| SocketAddr::new(*ip, 1)).collect();
        let endpoints = endpoints.iter().flat_map(|port| ips.iter().map(|ip| SocketAddr::new(*ip, *port)));
        Service { name, addresses, endpoints: endpoints.collect(), balance }
    }
}

prop_compose! {
    fn selector()(
        name in prop::option::of("[a-z0-9_][A-Za-z0-9._-]{0,20}"),
        namespace in prop::option::of("[a-z0-9][a-z0-9-]{0,10}"),
        labels in prop::collection::btree_map(any::<String>(), any::<String>(), 0..3),
    ) -> Selector {
        Selector { name, namespace, labels }
    }
}

prop_compose! {
    fn rule()(
        action in prop::sample::select(vec![Action::Allow, Action::Deny]),
        direction in prop::sample::select(vec![Direction::Outbound, Direction::Inbound]),
        workload in prop::option::of(selector()),
        peer in prop::option::of(prop_oneof![
            selector().prop_map(Peer::Workload),
            (any::<Ipv4Addr>(), 0..=32_u8).prop_map(|(ip, length)| Peer::Cidr(
                IpNet::new(ip.into(), length).unwrap().trunc()
            )),
        ]),
        ports in prop::collection::vec((1..=65535_u16, 0..100_u16), 0..3),
    ) -> PolicyRule {
        let range = |(first, more): (u16, u16)| PortRange { first, last: first.saturating_add(more) };
        PolicyRule { action, direction, workload, peer, ports: ports.into_iter().map(range).collect() }
    }
}

prop_compose! {
    fn config()(
        (concurrency, mark, outbound) in (1..=64_usize, 1..u32::MAX, 0..=65535_u16),
        (format, access) in (
            prop::sample::select(vec![LogFormat::Text, LogFormat::Json]),
            prop::sample::select(vec![AccessLog::Off, AccessLog::Stdout, AccessLog::File("/a b#\"'c".into())]),
        ),
        millis in prop::array::uniform5(1..4_000_000_u64),
        splice_after in prop::option::of(0..=1_u64 << 40),
        address in prop::option::of(Just("[::1]:15000".parse().unwrap())),
        (mut services, policy) in (
            prop::collection::vec(service(), 0..4),
            prop::collection::vec(rule(), 0..4),
        ),
        mut workloads in prop::collection::vec(workload(), 0..4),
    ) -> Config {
        for (index, workload) in workloads.iter_mut().enumerate() {
            workload.name.name.push_str(&index.to_string());
            workload.netns = workload.netns.join(index.to_string());
        }
        for (index, service) in services.iter_mut().enumerate() {
            service.name.push_str(&index.to_string());
            // Unique: the port is the service's own, and endpoints' ports are others.
            let port = u16::try_from(index + 1).unwrap();
            service.addresses.iter_mut().for_each(|address| address.set_port(port));
        }
        let [connect, idle, half_close, drain, upgrade] = millis.map(Duration::from_millis);
        Config {
            services,
            policy,
            mode: ModeSetting::Auto,
            concurrency,
            ports: Ports { outbound, inbound: if outbound == 1 { 2 } else { 1 } },
            mark,
            log: Log { level: "info,shunt_proxy=debug".into(), format, access },
            admin: Admin { socket: "/run/a, b: c".into(), address },
            state_dir: "/run/{x}".into(),
            bpffs: "/sys/fs/bpf".into(),
            timeouts: Timeouts { connect, idle, half_close, drain, upgrade },
            limits: Limits { connections: 7, connections_per_workload: 100_000_000 },
            splice_after,
            bootstrap: splice_after.map(|_| "/etc/a: b.yaml".into()),
            kubernetes: splice_after.map(|bytes| crate::config::Kubernetes {
                node_name: (bytes % 2 == 0).then(|| "node-1.example".into()),
                kubeconfig: (bytes % 3 == 0).then(|| "/etc/kube: config".into()),
                default_on: bytes % 5 == 0,
                exempt_namespaces: if bytes % 7 == 0 { Vec::new() } else { vec!["kube-system".into()] },
                ..crate::config::Kubernetes::default()
            }),
            workloads,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_dump_reads_back_as_the_same(config in config()) {
        let text = dump(&config);
        prop_assert_eq!(read(&text).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?, config);
    }

    #[test]
    fn no_text_panics(text in "[a-z:\\-\\[\\]{},\"'&*!|>?%@`# \n\t]{0,200}") {
        let _ = read(&text);
    }
}

#[test]
fn the_default_dumps() {
    assert_eq!(read(&dump(&Config::default())), Ok(Config::default()));
}
