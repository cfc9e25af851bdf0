use std::sync::{Arc, Mutex};

use shunt_core::flow::DataPath;
use shunt_core::tap::{BytesSeen, LeftQueue, Leg};
use shunt_core::workload::Mode;

use super::*;

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("not poisoned").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn leg(source: &str, destination: &str, offset: u64) -> Leg {
    Leg {
        time_ns: 1_700_000_000_123_456_789,
        source: source.parse().expect("an address"),
        destination: destination.parse().expect("an address"),
        offset,
        from: Some("default/client".into()),
        to: None,
    }
}

/// Block by block: kind and body. Each says its length at both ends.
fn blocks(mut file: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let word = |at: &[u8]| u32::from_ne_bytes(at[..4].try_into().expect("a word"));
    let mut blocks = Vec::new();
    while !file.is_empty() {
        let length = word(&file[4..]) as usize;
        assert_eq!(length % 4, 0);
        assert_eq!(word(&file[length - 4..]) as usize, length);
        blocks.push((word(file), file[8..length - 4].to_vec()));
        file = &file[length..];
    }
    blocks
}

#[test]
fn a_file_is_written_block_by_block() {
    let file = Shared::default();
    let mut capture = Capture::begin(Box::new(file.clone()), "client", 9).expect("begun");
    let (client, server) = ("10.0.0.1:4000", "10.0.0.2:80");
    let events = [
        TapEvent::Bytes(BytesSeen::new(leg(client, server, 0), b"hello")),
        TapEvent::Bytes(BytesSeen::new(leg(server, client, 0), b"hi")),
        TapEvent::Bytes(BytesSeen::new(leg(client, server, 5), b"you!")),
        TapEvent::ByTcp(LeftQueue {
            leg: leg("[fd00::1]:4000", "[fd00::2]:80", 0),
            reason: "bulk".into(),
        }),
        TapEvent::Lost {
            lines: 1,
            messages: 2,
        },
    ];
    let packets = events
        .iter()
        .map(|event| capture.take(event).expect("written"));
    assert_eq!(packets.filter(|packet| *packet).count(), 4);
    assert_eq!(
        capture.summary(),
        "4 packets with 11 bytes; 1 directions changed to TCP; 1 events lost, this reader was too slow; \
         2 messages not copied, there were too many"
    );
    let file = file.0.lock().expect("not poisoned").clone();
    let blocks = blocks(&file);
    let kinds: Vec<u32> = blocks.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [0x0a0d_0d0a, 1, 6, 6, 6, 6]);
    // Behind the packet's head, IP and TCP: sequence and acknowledgment.
    let numbers = |at: usize| {
        let tcp = &blocks[at].1[20 + 20..];
        let number = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().expect("a word"));
        (number(4), number(8))
    };
    assert_eq!(
        [numbers(2), numbers(3), numbers(4)],
        [(1, 1), (1, 6), (6, 3)]
    );
    for (block, comment) in [
        (2, "default/client to not enrolled"),
        (4, "the first 9 bytes end here"),
        (5, "from here on by TCP (bulk): not in this file"),
    ] {
        let body = &blocks[block].1;
        let mut places = body.windows(comment.len());
        assert!(places.any(|place| place == comment.as_bytes()), "{comment}");
    }
}

#[test]
fn rows_are_for_people() {
    let mut flow = FlowSeen {
        time: "2026-01-31T23:59:59.999Z".into(),
        workload: "default/client".into(),
        peer_workload: Some("default/web".into()),
        direction: Direction::Outbound,
        mode: Mode::Ebpf,
        client: "10.0.0.1:4000".parse().expect("an address"),
        original_dst: Some("10.96.0.1:80".parse().expect("an address")),
        upstream: Some("10.0.0.2:8080".parse().expect("an address")),
        path: DataPath::Direct,
        bytes_received: 1536,
        bytes_sent: 7,
        duration_ms: 12,
        close_reason: None,
        detail: None,
    };
    assert_eq!(
        row("open", &flow),
        "23:59:59.999  open   direct           -          -          -  \
         default/client 10.0.0.1:4000 -> default/web 10.96.0.1:80 at 10.0.0.2:8080"
    );
    (flow.direction, flow.peer_workload, flow.upstream) = (Direction::Inbound, None, None);
    flow.close_reason = Some("finished".into());
    assert_eq!(
        row("close", &flow),
        "23:59:59.999  close  direct     1.5 KiB        7 B      12 ms  \
         10.0.0.1:4000 -> default/client 10.96.0.1:80  finished"
    );
}
