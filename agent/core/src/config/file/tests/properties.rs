//! What is dumped reads back, and no text makes the reader panic.

use std::time::Duration;

use proptest::prelude::*;

use super::read;
use crate::config::file::dump;
use crate::config::{AccessLog, Admin, Config, Limits, Log, LogFormat, Ports, Timeouts};
use crate::workload::{
    Acceleration, AccelerationPolicy, CapturePolicy, ModeSetting, OnFailure, PortRange,
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
        direct in any::<bool>(),
        (first, ruled) in (1..=60_000_u16, prop::collection::vec((1..100_u16, word()), 0..3)),
    ) -> AccelerationPolicy {
        let mut next = first;
        let range = |(length, word)| {
            let range = PortRange { first: next, last: next + length };
            next += length + 1;
            (range, word)
        };
        AccelerationPolicy { default, ports: ruled.into_iter().map(range).collect(), direct }
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
        (mode, acceleration, on_failure) in (
            prop::sample::select(vec![ModeSetting::Auto, ModeSetting::Ebpf, ModeSetting::Iptables]),
            acceleration(),
            prop::sample::select(vec![OnFailure::Open, OnFailure::Closed]),
        ),
        (outbound, inbound) in (policy(true), policy(false)),
    ) -> WorkloadSpec {
        WorkloadSpec {
            name: WorkloadName { namespace, name },
            netns: netns.into(),
            cgroup: cgroup.map(Into::into),
            labels, mode, acceleration, on_failure, outbound, inbound,
        }
    }
}

prop_compose! {
    fn config()(
        (concurrency, mark, outbound) in (1..=64_usize, 1..u32::MAX, 0..=65535_u16),
        (format, access) in (
            prop::sample::select(vec![LogFormat::Text, LogFormat::Json]),
            prop::sample::select(vec![AccessLog::Off, AccessLog::Stdout, AccessLog::File("/a b#\"'c".into())]),
        ),
        millis in prop::array::uniform4(1..4_000_000_u64),
        splice_after in prop::option::of(0..=1_u64 << 40),
        address in prop::option::of(Just("[::1]:15000".parse().unwrap())),
        mut workloads in prop::collection::vec(workload(), 0..4),
    ) -> Config {
        for (index, workload) in workloads.iter_mut().enumerate() {
            workload.name.name.push_str(&index.to_string());
            workload.netns = workload.netns.join(index.to_string());
        }
        let [connect, idle, half_close, drain] = millis.map(Duration::from_millis);
        Config {
            services: Vec::new(),
            policy: Vec::new(),
            mode: ModeSetting::Auto,
            concurrency,
            ports: Ports { outbound, inbound: if outbound == 1 { 2 } else { 1 } },
            mark,
            log: Log { level: "info,shunt_proxy=debug".into(), format, access },
            admin: Admin { socket: "/run/a, b: c".into(), address },
            state_dir: "/run/{x}".into(),
            bpffs: "/sys/fs/bpf".into(),
            timeouts: Timeouts { connect, idle, half_close, drain },
            limits: Limits { connections: 7, connections_per_workload: 100_000_000 },
            splice_after,
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
