//! A request as a line of text or JSON, without its end.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use shunt_core::http::record::RequestRecord;

use crate::timestamp::rfc3339_millis;

/// The documented form; the order of fields is the order of keys.
#[derive(Serialize)]
struct JsonLine<'a> {
    time: String,
    kind: &'a str,
    workload: String,
    client: SocketAddr,
    listener: SocketAddr,
    method: &'a str,
    path: &'a str,
    authority: &'a str,
    protocol: &'a str,
    response_code: u16,
    response_flags: &'a str,
    response_code_details: &'a str,
    bytes_received: u64,
    bytes_sent: u64,
    duration_ms: u64,
    upstream_service_time_ms: Option<u64>,
    upstream: Option<SocketAddr>,
    upstream_cluster: Option<&'a str>,
    route_name: Option<&'a str>,
    request_id: Option<&'a str>,
    user_agent: Option<&'a str>,
    x_forwarded_for: Option<&'a str>,
}

pub(super) fn json(record: &RequestRecord) -> String {
    let line = JsonLine {
        time: rfc3339_millis(record.started),
        kind: "request",
        workload: record.workload.to_string(),
        client: record.client,
        listener: record.listener,
        method: &record.method,
        path: &record.path,
        authority: &record.authority,
        protocol: record.protocol,
        response_code: record.status.unwrap_or_default(),
        response_flags: flags(record),
        response_code_details: record.details,
        bytes_received: record.bytes_received,
        bytes_sent: record.bytes_sent,
        duration_ms: millis(record.duration),
        upstream_service_time_ms: record.upstream_time.map(millis),
        upstream: record.upstream,
        upstream_cluster: record.cluster.as_deref(),
        route_name: said(&record.route),
        request_id: said(&record.request_id),
        user_agent: said(&record.user_agent),
        x_forwarded_for: said(&record.forwarded_for),
    };
    // Numbers, addresses and strings always serialize.
    serde_json::to_string(&line).unwrap_or_default()
}

/// `TIME request CLIENT -> LISTENER "METHOD PATH PROTOCOL" STATUS and how`. What a client chose is quoted, and stays on
/// its line.
pub(super) fn text(record: &RequestRecord) -> String {
    let mut line = format!(
        "{} request {} -> {} {} {:?} {} flags={} details={} received={} sent={} duration={}ms",
        rfc3339_millis(record.started),
        record.client,
        record.workload,
        record.listener,
        format_args!("{} {} {}", record.method, record.path, record.protocol).to_string(),
        record.status.unwrap_or_default(),
        flags(record),
        record.details,
        record.bytes_received,
        record.bytes_sent,
        millis(record.duration),
    );
    // Writing to a String cannot fail.
    if let Some(time) = record.upstream_time {
        let _ = write!(line, " upstream_service_time={}ms", millis(time));
    }
    if let Some(upstream) = record.upstream {
        let _ = write!(line, " upstream={upstream}");
    }
    for (name, value) in [
        ("cluster", record.cluster.as_deref().unwrap_or_default()),
        ("route", &record.route),
        ("authority", &record.authority),
        ("request_id", &record.request_id),
        ("user_agent", &record.user_agent),
        ("x_forwarded_for", &record.forwarded_for),
    ] {
        if let Some(value) = said(value) {
            let _ = write!(line, " {name}={value:?}");
        }
    }
    line
}

fn flags(record: &RequestRecord) -> &str {
    said(record.flags).unwrap_or("-")
}

fn said(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use shunt_core::workload::WorkloadName;

    use super::*;

    fn record() -> RequestRecord {
        RequestRecord {
            started: SystemTime::UNIX_EPOCH,
            workload: WorkloadName {
                namespace: "node".into(),
                name: "web".into(),
            },
            client: "10.0.0.9:4000".parse().expect("an address"),
            listener: "10.0.0.1:80".parse().expect("an address"),
            method: "GET".into(),
            path: "/a?b\n\"c\"".into(),
            authority: "a.test".into(),
            protocol: "HTTP/1.1",
            status: Some(503),
            flags: "UF",
            details: "upstream_reset_before_response_started{connection_timeout}",
            bytes_received: 1,
            bytes_sent: 2,
            duration: Duration::from_millis(3),
            upstream_time: None,
            upstream: Some("10.0.0.2:8080".parse().expect("an address")),
            cluster: Some("one".into()),
            route: String::new(),
            request_id: "r".into(),
            user_agent: String::new(),
            forwarded_for: "1.2.3.4".into(),
        }
    }

    #[test]
    fn a_request_is_one_line() {
        let text = text(&record());
        assert_eq!(
            text,
            "1970-01-01T00:00:00.000Z request 10.0.0.9:4000 -> node/web 10.0.0.1:80 \"GET /a?b\\n\\\"c\\\" HTTP/1.1\" \
             503 flags=UF details=upstream_reset_before_response_started{connection_timeout} received=1 sent=2 \
             duration=3ms upstream=10.0.0.2:8080 cluster=\"one\" authority=\"a.test\" request_id=\"r\" \
             x_forwarded_for=\"1.2.3.4\""
        );
        let json: serde_json::Value = serde_json::from_str(&json(&record())).expect("JSON");
        assert_eq!(json["path"], "/a?b\n\"c\"");
        assert_eq!(json["response_code"], 503);
        assert_eq!(json["route_name"], serde_json::Value::Null);
        assert_eq!(json["upstream"], "10.0.0.2:8080");
    }
}
