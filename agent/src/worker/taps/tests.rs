use std::net::SocketAddr;
use std::time::SystemTime;

use shunt_core::address::ClientAddr;
use shunt_core::flow::{CloseReason, DataPath, Direction};
use shunt_core::status::BytesByPath;
use shunt_core::workload::Mode;

use super::*;

fn name(of: &str) -> WorkloadName {
    WorkloadName {
        namespace: "default".into(),
        name: of.into(),
    }
}

fn record(workload: &str) -> FlowRecord {
    let client: SocketAddr = "10.0.0.1:4000".parse().expect("an address");
    FlowRecord {
        started: SystemTime::now(),
        workload: name(workload),
        peer_workload: Some(name("server")),
        direction: Direction::Outbound,
        mode: Mode::Ebpf,
        client: ClientAddr(client),
        original_dst: None,
        upstream: None,
        upstream_local: None,
        path: DataPath::Copy,
        bytes_received: 0,
        bytes_sent: 0,
        messages_received: 0,
        messages_sent: 0,
        bytes_by_path: BytesByPath::default(),
        duration: Duration::ZERO,
        close_reason: CloseReason::Finished,
        detail: None,
    }
}

fn tap(taps: &Taps, whose: Option<&str>) -> (Arc<Tap>, mpsc::Receiver<Bytes>) {
    let (lines, receiver) = mpsc::channel(2);
    let tap = Arc::new(Tap {
        whose: whose.map(name),
        lines,
        lost: AtomicU64::new(0),
    });
    taps.add(&tap).expect("room");
    (tap, receiver)
}

fn next(lines: &mut mpsc::Receiver<Bytes>) -> TapEvent {
    let line = lines.try_recv().expect("a line");
    serde_json::from_slice(&line).expect("an event")
}

#[test]
fn a_tap_is_told_of_its_own_workload_at_either_end() {
    let taps = Taps::default();
    let (_client, mut of_client) = tap(&taps, Some("client"));
    let (_server, mut of_server) = tap(&taps, Some("server"));
    taps.tell(&record("client"), TapEvent::Open, false);
    taps.tell(&record("other"), TapEvent::Close, true);
    assert!(matches!(next(&mut of_client), TapEvent::Open(flow) if flow.close_reason.is_none()));
    assert!(of_client.try_recv().is_err());
    assert!(matches!(next(&mut of_server), TapEvent::Open(_)));
    let closed = next(&mut of_server);
    let reason = Some("finished".to_owned());
    assert!(matches!(closed, TapEvent::Close(flow) if flow.close_reason == reason));
}

#[test]
fn a_slow_reader_loses_lines_and_is_told_how_many() {
    let taps = Taps::default();
    let (tap, mut lines) = tap(&taps, None);
    for _ in 0..7 {
        taps.tell(&record("client"), TapEvent::Open, false);
    }
    assert!(!tap.tell_lost());
    next(&mut lines);
    next(&mut lines);
    let lost = TapEvent::Lost {
        lines: 5,
        messages: 0,
    };
    assert!(tap.tell_lost());
    assert_eq!(next(&mut lines), lost);
    taps.tell(&record("client"), TapEvent::Open, false);
    assert!(matches!(next(&mut lines), TapEvent::Open(_)));
}

#[test]
fn taps_are_few_and_nobody_is_attentive_without() {
    let taps = Arc::new(Taps::default());
    let attentive = || taps.any.load(Relaxed);
    assert!(!attentive());
    let all: Vec<_> = (0..MOST).map(|_| tap(&taps, None)).collect();
    assert!(attentive());
    assert!(matches!(taps.add(&all[0].0), Err(Refusal::Taken(_))));
    for (tap, _) in &all {
        taps.remove(tap);
    }
    assert!(!attentive());
}
