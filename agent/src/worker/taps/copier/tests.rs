use super::*;

const CLIENT: &str = "10.0.0.1:4000";
const SERVER: &str = "10.0.0.2:80";

fn place(text: &str) -> Destination {
    let address: SocketAddr = text.parse().expect("an address");
    Destination {
        address: shunt_core::address::to_kernel(address.ip()),
        port: address.port(),
        reserved: [0; 3],
    }
}

/// From one socket to another, after `offset` bytes of the same sender's.
fn message(from: u64, to: u64, offset: u64, bytes: &[u8]) -> Message {
    Message {
        head: Copied {
            at: 0,
            from,
            to,
            offset,
            source: place(CLIENT),
            destination: place(SERVER),
            workload: 0,
            peer: 0,
            kind: Copied::BYTES,
            value: u32::try_from(bytes.len()).expect("few"),
            number: 1,
            reserved: 0,
        },
        bytes: bytes.to_vec(),
    }
}

/// Where it is in its direction, and how much of it is told.
fn told(directions: &mut Directions, message: &Message) -> Option<(u64, usize)> {
    match directions.event(message, &Snapshot::default())? {
        TapEvent::Bytes(seen) => Some((seen.leg.offset, seen.data.len() / 2)),
        TapEvent::ByTcp(left) => Some((left.leg.offset, 0)),
        _ => None,
    }
}

fn first(most: u64) -> Directions {
    Directions {
        most,
        ..Directions::default()
    }
}

#[test]
fn the_agent_and_then_the_application_send_one_direction() {
    let (agent, application, server) = (7, 8, 9);
    let mut directions = first(1000);
    let mut told = |message: Message| told(&mut directions, &message);
    assert_eq!(told(message(agent, server, 0, b"hello ")), Some((0, 6)));
    assert_eq!(told(message(application, server, 0, b"you ")), Some((6, 4)));
    assert_eq!(
        told(message(application, server, 4, b"out ")),
        Some((10, 4))
    );
    // It fell back, and the agent brings the rest.
    assert_eq!(told(message(agent, server, 6, b"there")), Some((14, 5)));
    // What was not copied leaves its room.
    assert_eq!(told(message(agent, server, 100, b"!")), Some((108, 1)));
}

#[test]
fn a_later_connection_of_the_same_ports_begins_anew() {
    let mut directions = first(1000);
    assert_eq!(
        told(&mut directions, &message(1, 2, 0, b"one")),
        Some((0, 3))
    );
    assert_eq!(
        told(&mut directions, &message(3, 4, 0, b"two")),
        Some((0, 3))
    );
}

#[test]
fn of_each_direction_the_first_bytes_are_told() {
    let (agent, application, server) = (7, 8, 9);
    let mut directions = first(8);
    let mut told = |message: Message| told(&mut directions, &message);
    assert_eq!(told(message(agent, server, 0, b"hello ")), Some((0, 6)));
    assert_eq!(told(message(application, server, 0, b"you ")), Some((6, 2)));
    assert_eq!(told(message(application, server, 4, b"more")), None);
    let mut back = message(server, application, 0, b"and back");
    (back.head.source, back.head.destination) = (back.head.destination, back.head.source);
    assert_eq!(told(back), Some((0, 8)));
}

#[test]
fn where_a_direction_leaves_the_queue_is_told() {
    let mut directions = first(1000);
    assert_eq!(
        told(&mut directions, &message(1, 2, 0, b"by queue")),
        Some((0, 8))
    );
    let mut left = message(1, 2, 8, b"");
    (left.head.kind, left.head.value) = (Copied::BY_TCP, Event::Bulk as u32);
    let event = directions.event(&left, &Snapshot::default());
    let Some(TapEvent::ByTcp(left)) = event else {
        panic!("{event:?}")
    };
    assert_eq!((left.leg.offset, left.reason.as_str()), (8, "bulk"));
}

#[test]
fn a_later_process_begins_at_another_number() {
    let at = |seconds, nanoseconds| number(Duration::new(seconds, nanoseconds));
    assert_eq!(at(0, 0), 1);
    let nanoseconds: u64 = 1_800_000_000 * 1_000_000_000 + 7;
    assert_eq!(u64::from(at(1_800_000_000, 7)), nanoseconds % (1 << 32));
    assert_ne!(at(1_800_000_000, 7), at(1_800_000_001, 7));
}
