//! A DNS query as a line of text or JSON, without its end.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use shunt_core::dns::{QueryRecord, Rcode};

use crate::timestamp::rfc3339_millis;

/// The documented form; the order of fields is the order of keys.
#[derive(Serialize)]
struct JsonLine<'a> {
    time: String,
    kind: &'a str,
    workload: String,
    client: SocketAddr,
    resolver: Option<SocketAddr>,
    name: &'a str,
    #[serde(rename = "type")]
    query_type: &'a str,
    outcome: &'a str,
    rcode: Option<&'a str>,
    truncated: bool,
    bytes_received: u64,
    bytes_sent: u64,
    duration_ms: f64,
}

pub(super) fn json(record: &QueryRecord) -> String {
    let line = JsonLine {
        time: rfc3339_millis(record.started),
        kind: "dns",
        workload: record.workload.to_string(),
        client: record.client,
        resolver: record.resolver,
        name: &record.name,
        query_type: &record.kind,
        outcome: record.outcome.as_str(),
        rcode: record.rcode.map(Rcode::as_str),
        truncated: record.truncated,
        bytes_received: record.bytes_received,
        bytes_sent: record.bytes_sent,
        duration_ms: millis(record.duration),
    };
    // Numbers, addresses and strings always serialize.
    serde_json::to_string(&line).unwrap_or_default()
}

/// `TIME dns WORKLOAD CLIENT -> RESOLVER what was asked, and what came of it`.
pub(super) fn text(record: &QueryRecord) -> String {
    let mut line = format!(
        "{} dns {} {} -> ",
        rfc3339_millis(record.started),
        record.workload,
        record.client
    );
    // Writing to a String cannot fail.
    let _ = match record.resolver {
        Some(resolver) => write!(line, "{resolver}"),
        None => write!(line, "unknown"),
    };
    let _ = write!(
        line,
        " name={:?} type={} outcome={} rcode={} received={} sent={} duration={}ms",
        record.name,
        if record.kind.is_empty() {
            "-"
        } else {
            &record.kind
        },
        record.outcome.as_str(),
        record.rcode.map_or("-", Rcode::as_str),
        record.bytes_received,
        record.bytes_sent,
        millis(record.duration),
    );
    if record.truncated {
        line.push_str(" truncated");
    }
    line
}

/// With tenths: most answers take less than one.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use shunt_core::dns::QueryOutcome;
    use shunt_core::workload::WorkloadName;

    use super::*;

    #[test]
    fn a_query_is_one_line() {
        let record = QueryRecord {
            started: SystemTime::UNIX_EPOCH,
            workload: WorkloadName {
                namespace: "default".into(),
                name: "web".into(),
            },
            client: "127.0.0.1:4000".parse().expect("an address"),
            resolver: Some("10.0.0.1:53".parse().expect("an address")),
            name: "a.test.".into(),
            kind: "AAAA".into(),
            outcome: QueryOutcome::Answered,
            rcode: Some(Rcode::new(3)),
            truncated: true,
            bytes_received: 30,
            bytes_sent: 90,
            duration: Duration::from_micros(1_260),
        };
        assert_eq!(
            text(&record),
            "1970-01-01T00:00:00.000Z dns default/web 127.0.0.1:4000 -> 10.0.0.1:53 name=\"a.test.\" type=AAAA \
             outcome=answered rcode=NXDOMAIN received=30 sent=90 duration=1.3ms truncated"
        );
        let json: serde_json::Value = serde_json::from_str(&json(&record)).expect("JSON");
        assert_eq!(json["kind"], "dns");
        assert_eq!(json["type"], "AAAA");
        assert_eq!(json["duration_ms"], 1.3);
    }
}
