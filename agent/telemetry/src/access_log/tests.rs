use std::sync::mpsc;
use std::time::{Duration, UNIX_EPOCH};

use shunt_core::address::{ClientAddr, OriginalDst, Provenance, UpstreamAddr};
use shunt_core::config::Config;
use shunt_core::flow::{CloseReason, DataPath, Direction};
use shunt_core::status::BytesByPath;
use shunt_core::workload::{Mode, WorkloadName};

use super::*;

fn name(name: &str) -> WorkloadName {
    WorkloadName {
        namespace: "default".into(),
        name: name.into(),
    }
}

/// A call from one enrolled workload to another.
fn call() -> FlowRecord {
    let web = "10.0.0.3:80".parse().unwrap();
    FlowRecord {
        started: UNIX_EPOCH + Duration::from_millis(1_767_323_045_678),
        workload: name("client"),
        peer_workload: Some(name("web")),
        direction: Direction::Outbound,
        mode: Mode::Ebpf,
        client: ClientAddr("10.0.0.2:41234".parse().unwrap()),
        original_dst: Some(OriginalDst {
            addr: web,
            source: Provenance::Handshake,
        }),
        upstream: Some(UpstreamAddr(web)),
        upstream_local: None,
        path: DataPath::Copy,
        bytes_received: 78,
        bytes_sent: 853,
        messages_received: 0,
        messages_sent: 0,
        bytes_by_path: BytesByPath {
            copy: 931,
            ..BytesByPath::default()
        },
        duration: Duration::from_micros(3999),
        close_reason: CloseReason::Finished,
        detail: None,
    }
}

/// A connection from outside whose destination could not be recovered.
fn refused() -> FlowRecord {
    FlowRecord {
        workload: name("web"),
        peer_workload: None,
        direction: Direction::Inbound,
        mode: Mode::Iptables,
        client: ClientAddr("[fd00::9]:5000".parse().unwrap()),
        original_dst: None,
        upstream: None,
        bytes_received: 0,
        bytes_sent: 0,
        bytes_by_path: BytesByPath::default(),
        close_reason: CloseReason::OriginalDstMissing,
        detail: Some("no \"entry\"\nin conntrack".into()),
        ..call()
    }
}

#[test]
fn json_form() {
    assert_eq!(
        line::json(&call()),
        concat!(
            r#"{"time":"2026-01-02T03:04:05.678Z","workload":"default/client","peer_workload":"default/web","#,
            r#""direction":"outbound","client":"10.0.0.2:41234","original_dst":"10.0.0.3:80","#,
            r#""original_dst_source":"handshake","upstream":"10.0.0.3:80","path":"copy","bytes_received":78,"#,
            r#""bytes_sent":853,"bytes_by_path":{"direct":0,"handoff":0,"sockmap":0,"splice":0,"copy":931},"#,
            r#""duration_ms":3,"response_flags":"-","close_reason":"finished","detail":null}"#
        )
    );
    assert_eq!(
        line::json(&refused()),
        concat!(
            r#"{"time":"2026-01-02T03:04:05.678Z","workload":"default/web","peer_workload":null,"#,
            r#""direction":"inbound","client":"[fd00::9]:5000","original_dst":null,"#,
            r#""original_dst_source":null,"upstream":null,"path":"copy","bytes_received":0,"#,
            r#""bytes_sent":0,"bytes_by_path":{"direct":0,"handoff":0,"sockmap":0,"splice":0,"copy":0},"#,
            r#""duration_ms":3,"response_flags":"NR","close_reason":"original_dst_missing","#,
            r#""detail":"no \"entry\"\nin conntrack"}"#
        )
    );
}

/// There are numbers only where something went past the TCP stack.
#[test]
fn messages_past_the_stack() {
    let record = FlowRecord {
        messages_received: 3,
        messages_sent: 2,
        ..call()
    };
    let json = line::json(&record);
    let numbers = r#""bytes_sent":853,"messages_received":3,"messages_sent":2,"bytes_by_path""#;
    assert!(json.contains(numbers), "{json}");
    let text = line::text(&record);
    assert!(text.ends_with("reason=finished messages=3/2"), "{text}");
}

#[test]
fn text_form_says_who_called_whom() {
    assert_eq!(
        line::text(&call()),
        "2026-01-02T03:04:05.678Z outbound default/client 10.0.0.2:41234 -> default/web 10.0.0.3:80 \
         original_dst_source=handshake mode=ebpf path=copy received=78 sent=853 duration=3ms flags=- reason=finished"
    );
    let upstream = Some(UpstreamAddr("10.0.0.4:8080".parse().unwrap()));
    let rerouted = FlowRecord {
        upstream,
        peer_workload: None,
        ..call()
    };
    assert_eq!(
        line::text(&rerouted),
        "2026-01-02T03:04:05.678Z outbound default/client 10.0.0.2:41234 -> 10.0.0.3:80 \
         original_dst_source=handshake upstream=10.0.0.4:8080 mode=ebpf path=copy received=78 sent=853 duration=3ms \
         flags=- reason=finished"
    );
    let inbound = FlowRecord {
        workload: name("web"),
        peer_workload: Some(name("client")),
        ..call()
    };
    let inbound = line::text(&FlowRecord {
        direction: Direction::Inbound,
        ..inbound
    });
    assert!(
        inbound.contains(" inbound default/client 10.0.0.2:41234 -> default/web 10.0.0.3:80 "),
        "{inbound}"
    );
    assert_eq!(
        line::text(&refused()),
        "2026-01-02T03:04:05.678Z inbound [fd00::9]:5000 -> default/web unknown mode=iptables path=copy received=0 \
         sent=0 duration=3ms flags=NR reason=original_dst_missing detail=\"no \\\"entry\\\"\\nin conntrack\""
    );
}

fn log(access: AccessLog, format: LogFormat) -> Log {
    Log {
        access,
        format,
        ..Config::default().log
    }
}

#[test]
fn a_file_is_appended_to_and_complete_when_the_last_logger_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    std::fs::write(&path, "earlier\n").unwrap();
    let counters = Arc::new(AgentCounters::default());
    let log = log(AccessLog::File(path.clone()), LogFormat::Json);
    let logger = AccessLogger::open(&log, counters.clone()).unwrap();
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let logger = logger.clone();
            std::thread::spawn(move || (0..500).for_each(|_| logger.write(&call())))
        })
        .collect();
    workers
        .into_iter()
        .for_each(|worker| worker.join().unwrap());
    drop(logger);
    let text = std::fs::read_to_string(&path).unwrap();
    let expected = line::json(&call());
    assert_eq!(text.lines().next(), Some("earlier"));
    assert_eq!(text.lines().filter(|line| *line == expected).count(), 2000);
    assert_eq!(text.lines().count(), 2001);
    assert_eq!(counters.access_log_dropped.load(Relaxed), 0);
}

#[test]
fn off_writes_nothing_and_a_wrong_place_is_an_error() {
    let counters = Arc::new(AgentCounters::default());
    AccessLogger::open(&log(AccessLog::Off, LogFormat::Text), counters.clone())
        .unwrap()
        .write(&call());
    let nowhere = log(
        AccessLog::File("/nonexistent/access.log".into()),
        LogFormat::Text,
    );
    AccessLogger::open(&nowhere, counters).expect_err("no such directory");
}

/// Waits in its first write until it is let go.
struct Stuck(mpsc::Sender<()>, mpsc::Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = self.0.send(());
        let _ = self.1.recv();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stuck_reader_drops_lines_and_no_worker_waits() {
    let counters = Arc::new(AgentCounters::default());
    let (entered, has_entered) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let out = Stuck(entered, released);
    let logger = AccessLogger::with_queue(out, LogFormat::Text, counters.clone(), 8);
    logger.write(&call());
    has_entered
        .recv_timeout(Duration::from_secs(10))
        .expect("the first line is being written");
    (0..108).for_each(|_| logger.write(&call()));
    assert_eq!(counters.access_log_dropped.load(Relaxed), 100);
    drop(release);
}

struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn lines_that_cannot_be_written_are_counted() {
    let counters = Arc::new(AgentCounters::default());
    let logger = AccessLogger::to(Full, LogFormat::Text, counters.clone());
    (0..10).for_each(|_| logger.write(&call()));
    drop(logger);
    assert_eq!(counters.access_log_dropped.load(Relaxed), 10);
}
