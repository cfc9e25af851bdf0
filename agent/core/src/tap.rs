//! What `shunt tap` is told of live flows: lines of JSON, a [`TapEvent`] each.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::flow::{DataPath, Direction, FlowRecord};
use crate::workload::{Mode, WorkloadName};

/// What is to be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TapRequest {
    /// `NAME` or `NAMESPACE/NAME` of one end; `None`: everybody's flows.
    pub workload: Option<String>,
    /// How many bytes of each direction are copied that go past the TCP stack; `None`: only flows are told.
    pub bytes: Option<u32>,
}

impl TapRequest {
    pub const MOST_BYTES: u32 = shunt_ebpf_common::tap::Tap::MOST_BYTES;
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TapEvent {
    /// A connection was made; a direct one: its SYN was sent. One that is refused has a [`TapEvent::Close`] only.
    Open(FlowSeen),
    /// It takes a faster path from now on.
    Path(FlowSeen),
    Close(FlowSeen),
    /// Somebody sent these past the TCP stack.
    Bytes(BytesSeen),
    /// From here on a direction goes by TCP.
    ByTcp(LeftQueue),
    /// The reader was too slow for this many lines; the kernel did not copy this many messages.
    Lost {
        lines: u64,
        messages: u64,
    },
}

/// A flow as the access log shows it at its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowSeen {
    /// RFC 3339, UTC: of the event.
    pub time: String,
    pub workload: String,
    pub peer_workload: Option<String>,
    #[serde(with = "crate::flow::direction")]
    pub direction: Direction,
    pub mode: Mode,
    pub client: SocketAddr,
    pub original_dst: Option<SocketAddr>,
    pub upstream: Option<SocketAddr>,
    pub path: DataPath,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub duration_ms: u64,
    /// [`CloseReason`](crate::flow::CloseReason), of a [`TapEvent::Close`].
    pub close_reason: Option<String>,
    pub detail: Option<String>,
}

impl FlowSeen {
    /// `ended`: the record is whole.
    pub fn new(record: &FlowRecord, time: String, ended: bool) -> Self {
        Self {
            time,
            workload: record.workload.to_string(),
            peer_workload: record.peer_workload.as_ref().map(WorkloadName::to_string),
            direction: record.direction,
            mode: record.mode,
            client: record.client.0,
            original_dst: record.original_dst.map(|original| original.addr),
            upstream: record.upstream.map(|upstream| upstream.0),
            path: record.path,
            bytes_received: record.bytes_received,
            bytes_sent: record.bytes_sent,
            duration_ms: u64::try_from(record.duration.as_millis()).unwrap_or(u64::MAX),
            close_reason: ended.then(|| record.close_reason.as_str().to_owned()),
            detail: record.detail.clone(),
        }
    }
}

/// Where a message went, as the server knows its connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leg {
    /// Nanoseconds since 1970, UTC.
    pub time_ns: u64,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// Bytes of this direction before it, since the tap began.
    pub offset: u64,
    /// The workloads that sent and got it; `None`: not enrolled, or gone.
    pub from: Option<String>,
    pub to: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BytesSeen {
    #[serde(flatten)]
    pub leg: Leg,
    /// Two hexadecimal digits a byte.
    pub data: String,
}

impl BytesSeen {
    pub fn new(leg: Leg, bytes: &[u8]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
        let data = bytes
            .iter()
            .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
        Self {
            leg,
            data: data.collect(),
        }
    }

    /// `None`: somebody else has written them.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let pairs = self.data.as_bytes().chunks(2);
        let value = |digit: &u8| char::from(*digit).to_digit(16);
        pairs
            .map(|pair| match pair {
                [high, low] => u8::try_from(value(high)? << 4 | value(low)?).ok(),
                _ => None,
            })
            .collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftQueue {
    #[serde(flatten)]
    pub leg: Leg,
    /// As the kernel's counters call it: `queue_full`, `receiver_gone`, `bulk`, `unpaired`.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_from_their_line() {
        let leg = Leg {
            time_ns: 1,
            source: "10.0.0.1:4000".parse().expect("an address"),
            destination: "[fd00::1]:80".parse().expect("an address"),
            offset: 7,
            from: Some("default/web".into()),
            to: None,
        };
        let all: Vec<u8> = (0..=255).collect();
        let event = TapEvent::Bytes(BytesSeen::new(leg, &all));
        let line = serde_json::to_string(&event).expect("JSON");
        assert!(
            line.starts_with(r#"{"event":"bytes","time_ns":1,"#),
            "{line}"
        );
        let TapEvent::Bytes(read) = serde_json::from_str(&line).expect("the same") else {
            panic!("{line}")
        };
        assert_eq!(read.bytes(), Some(all));
        for faulty in ["0", "0g"] {
            let data = faulty.to_owned();
            assert_eq!(
                BytesSeen {
                    data,
                    ..read.clone()
                }
                .bytes(),
                None
            );
        }
    }
}
