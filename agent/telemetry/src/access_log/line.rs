//! A finished connection as a line of text or JSON, without its end.

use std::fmt::Write;
use std::net::SocketAddr;

use serde::Serialize;
use shunt_core::flow::{Direction, FlowRecord, direction};
use shunt_core::status::BytesByPath;
use shunt_core::workload::WorkloadName;

use crate::timestamp::rfc3339_millis;

/// The documented form; the order of fields is the order of keys.
#[derive(Serialize)]
struct JsonLine<'a> {
    time: String,
    workload: String,
    peer_workload: Option<String>,
    direction: &'a str,
    client: SocketAddr,
    original_dst: Option<SocketAddr>,
    original_dst_source: Option<&'a str>,
    upstream: Option<SocketAddr>,
    path: &'a str,
    bytes_received: u64,
    bytes_sent: u64,
    /// Where none went past the TCP stack there is no number.
    #[serde(skip_serializing_if = "is_none")]
    messages_received: u64,
    #[serde(skip_serializing_if = "is_none")]
    messages_sent: u64,
    bytes_by_path: BytesByPath,
    duration_ms: u64,
    response_flags: &'a str,
    close_reason: &'a str,
    detail: Option<&'a str>,
}

pub(super) fn json(record: &FlowRecord) -> String {
    let line = JsonLine {
        time: rfc3339_millis(record.started),
        workload: record.workload.to_string(),
        peer_workload: record.peer_workload.as_ref().map(WorkloadName::to_string),
        direction: direction::as_str(record.direction),
        client: record.client.0,
        original_dst: record.original_dst.map(|dst| dst.addr),
        original_dst_source: record.original_dst.map(|dst| dst.source.as_str()),
        upstream: record.upstream.map(|upstream| upstream.0),
        path: record.path.as_str(),
        bytes_received: record.bytes_received,
        bytes_sent: record.bytes_sent,
        messages_received: record.messages_received,
        messages_sent: record.messages_sent,
        bytes_by_path: record.bytes_by_path,
        duration_ms: duration_ms(record),
        response_flags: record.close_reason.flag(),
        close_reason: record.close_reason.as_str(),
        detail: record.detail.as_deref(),
    };
    // Numbers, addresses and strings always serialize.
    serde_json::to_string(&line).unwrap_or_default()
}

/// `TIME DIRECTION CALLER CLIENT -> CALLEE DESTINATION how much and how it ended`: who called whom, from left to right.
/// The caller is the workload outbound, and its peer inbound; one that is not enrolled has an address only.
pub(super) fn text(record: &FlowRecord) -> String {
    let (caller, callee) = match record.direction {
        Direction::Outbound => (Some(&record.workload), record.peer_workload.as_ref()),
        Direction::Inbound => (record.peer_workload.as_ref(), Some(&record.workload)),
    };
    let named = |name: Option<&WorkloadName>| name.map(|n| format!("{n} ")).unwrap_or_default();
    let mut line = format!(
        "{} {} {}{} -> {}",
        rfc3339_millis(record.started),
        direction::as_str(record.direction),
        named(caller),
        record.client,
        named(callee),
    );
    // Writing to a String cannot fail.
    let _ = match record.original_dst {
        Some(dst) => write!(
            line,
            "{} original_dst_source={}",
            dst.addr,
            dst.source.as_str()
        ),
        None => write!(line, "unknown"),
    };
    let upstream = record.upstream.map(|upstream| upstream.0);
    if let Some(upstream) =
        upstream.filter(|addr| Some(*addr) != record.original_dst.map(|d| d.addr))
    {
        let _ = write!(line, " upstream={upstream}");
    }
    let _ = write!(
        line,
        " mode={} path={} received={} sent={} duration={}ms flags={} reason={}",
        record.mode.as_str(),
        record.path.as_str(),
        record.bytes_received,
        record.bytes_sent,
        duration_ms(record),
        record.close_reason.flag(),
        record.close_reason.as_str(),
    );
    if record.messages_received + record.messages_sent > 0 {
        let _ = write!(
            line,
            " messages={}/{}",
            record.messages_received, record.messages_sent
        );
    }
    if let Some(detail) = &record.detail {
        let _ = write!(line, " detail={detail:?}");
    }
    line
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_none(messages: &u64) -> bool {
    *messages == 0
}

fn duration_ms(record: &FlowRecord) -> u64 {
    u64::try_from(record.duration.as_millis()).unwrap_or(u64::MAX)
}
