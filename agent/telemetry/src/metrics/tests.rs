use std::sync::Arc;

use shunt_core::config::{Limits, Timeouts};
use shunt_core::counters::WorkloadCounters;
use shunt_core::status::{BytesByPath, Connections};
use shunt_core::workload::{CapturePolicy, Mode, WorkloadId, WorkloadName};

use super::*;

fn web() -> Enrolled {
    let counters = WorkloadCounters::default();
    counters.outbound.total.store(7, Relaxed);
    counters.outbound.ended.store(5, Relaxed);
    let copied = counters.outbound.on(DataPath::Copy);
    copied.active.store(2, Relaxed);
    copied.received.store(1000, Relaxed);
    copied.sent.store(2000, Relaxed);
    let spliced = counters.outbound.on(DataPath::Splice);
    spliced.sent.store(5000, Relaxed);
    Enrolled {
        id: WorkloadId(1),
        name: WorkloadName {
            namespace: "default".into(),
            name: "web".into(),
        },
        labels: [].into(),
        mode: Mode::Ebpf,
        owns_addresses: true,
        addresses: Vec::new(),
        inbound: CapturePolicy::default(),
        transparent: true,
        handoff: true,
        proxy: None,
        counters: Arc::new(counters),
        withdrawn: Arc::default(),
    }
}

fn status(mode: StatusMode, state: WorkloadState) -> WorkloadStatus {
    WorkloadStatus {
        name: "web".into(),
        namespace: "default".into(),
        netns: "/run/netns/web".into(),
        labels: Default::default(),
        mode,
        mode_reason: String::new(),
        state,
        state_reason: String::new(),
        notes: Vec::new(),
        listeners: Vec::new(),
        acceleration: Default::default(),
        connections: Connections::default(),
        bytes: BytesByPath::default(),
    }
}

fn rendered() -> String {
    let workloads = [(WorkloadId(1), Arc::new(web()))].into();
    let agent = AgentCounters::default();
    agent.loops_refused.store(3, Relaxed);
    agent
        .closed(CloseReason::HalfCloseTimeout)
        .store(5, Relaxed);
    agent.splice_begun.store(6, Relaxed);
    let ready = status(StatusMode::Ebpf, WorkloadState::Ready);
    render(&Sources {
        snapshot: &Snapshot::new(1, Timeouts::default(), Limits::default(), None, workloads),
        agent: &agent,
        workloads: &[
            ready.clone(),
            ready,
            status(StatusMode::Off, WorkloadState::Pending),
        ],
        repairs: &[("iptables".to_owned(), 2)],
        upgrades: &[("done".to_owned(), 3)],
        retired: 1,
        kernel_events: &[
            ("own_flows_full".to_owned(), 4),
            ("verdict_proven".to_owned(), 7),
            ("verdict_learning".to_owned(), 8),
        ],
        version: "0.1.0",
    })
}

#[test]
fn every_metric_has_its_documented_name() {
    let text = rendered();
    let labels =
        r#"workload="web",namespace="default",direction="outbound",mode="ebpf",path="copy""#;
    let samples = [
        format!("shunt_connections_total{{{labels}}} 7"),
        format!("shunt_connections_active{{{labels}}} 2"),
        format!("shunt_bytes_total{{{labels},flow=\"received\"}} 1000"),
        format!("shunt_bytes_total{{{labels},flow=\"sent\"}} 2000"),
        format!(
            "shunt_bytes_total{{{},flow=\"sent\"}} 5000",
            labels.replace("copy", "splice")
        ),
        "shunt_connections_closed_total{reason=\"half_close_timeout\"} 5".to_owned(),
        "shunt_acceleration_total{path=\"splice\",reason=\"bulk\"} 6".to_owned(),
        "shunt_acceleration_total{path=\"handoff\",reason=\"proven\"} 7".to_owned(),
        "shunt_acceleration_total{path=\"copy\",reason=\"learning\"} 8".to_owned(),
        "shunt_original_dst_misses_total 0".to_owned(),
        "shunt_loops_refused_total 3".to_owned(),
        "shunt_interception_repairs_total{what=\"iptables\"} 2".to_owned(),
        "shunt_upgrades_total{result=\"done\"} 3".to_owned(),
        "shunt_data_planes_retired 1".to_owned(),
        "shunt_connections_refused_total 0".to_owned(),
        "shunt_accept_errors_total 0".to_owned(),
        "shunt_access_log_dropped_total 0".to_owned(),
        "shunt_workloads{mode=\"ebpf\",state=\"ready\"} 2".to_owned(),
        "shunt_workloads{mode=\"off\",state=\"pending\"} 1".to_owned(),
        "shunt_kernel_events_total{event=\"own_flows_full\"} 4".to_owned(),
        "shunt_build_info{version=\"0.1.0\"} 1".to_owned(),
    ];
    for sample in samples {
        assert!(
            text.lines().any(|line| line == sample),
            "{sample} is missing in\n{text}"
        );
    }
}

#[test]
fn the_text_is_openmetrics() {
    let text = rendered();
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(!text.contains("_total_total"), "{text}");
    let mut family = ("", "");
    let mut seen = std::collections::BTreeSet::new();
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split_once(' ').expect(line);
            assert!(seen.insert(family.0), "{} is told twice", family.0);
        } else if !line.starts_with('#') {
            let suffix = if family.1 == "counter" { "_total" } else { "" };
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            assert_eq!(name, format!("{}{suffix}", family.0));
        }
    }
    assert_eq!(seen.len(), 18);
}

/// A workload that is withdrawn and one of the same name that replaces it share their labels while both are there.
#[test]
fn a_replaced_workload_is_summed() {
    let second = Enrolled {
        id: WorkloadId(2),
        ..web()
    };
    let workloads = [
        (WorkloadId(1), Arc::new(web())),
        (WorkloadId(2), Arc::new(second)),
    ]
    .into();
    let text = render(&Sources {
        snapshot: &Snapshot::new(1, Timeouts::default(), Limits::default(), None, workloads),
        agent: &AgentCounters::default(),
        workloads: &[],
        repairs: &[],
        upgrades: &[],
        retired: 0,
        kernel_events: &[],
        version: "0.1.0",
    });
    let samples: Vec<_> = text
        .lines()
        .filter(|line| {
            line.starts_with("shunt_connections_")
                && line.contains("outbound")
                && line.contains("copy")
        })
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(_, value)| value)
        .collect();
    assert_eq!(samples, ["14", "4"], "{text}");
}
