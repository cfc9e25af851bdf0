use core::mem::size_of;

use super::*;

#[test]
fn no_map_type_has_padding() {
    assert_eq!(size_of::<Workload>(), 4 + 4 + 8 + 8 + 8 + 4 + 16 + 4 + 8);
    assert_eq!(size_of::<RuleKey>(), 4 + 4 + 16);
    assert_eq!(size_of::<Handshake>(), 8 + 16 + 2 + 2 + 4);
    assert_eq!(size_of::<Destination>(), 16 + 2 + 6);
    assert_eq!(size_of::<OwnFlow>(), 16 + 16 + 2 + 2);
    assert_eq!(size_of::<FlowOwner>(), 8 + 4 + 4);
    assert_eq!(size_of::<ListeningPort>(), 8);
    assert_eq!(size_of::<Meeting>(), 4 + 4 + 2 + 2 + 4);
    assert_eq!(size_of::<End>(), 8 + 8 + 8 + 4 + 4);
    assert_eq!(size_of::<Handoff>(), 8 + 8 + 8 + 8 + 4 + 4);
}

#[test]
fn neighbours_are_spread_over_all_listeners() {
    let mut counts = [0; Workload::OUTBOUND_PORTS];
    for host in 0..16_u8 {
        for port in 8000..8016 {
            let address = Address::v4(u32::from_ne_bytes([10, 0, 0, host]));
            counts[Workload::spread(&address, port)] += 1;
        }
    }
    let even = 256 / Workload::OUTBOUND_PORTS;
    let close = counts
        .iter()
        .all(|count| (even / 2..=even * 2).contains(count));
    assert!(close, "{counts:?}");
}

#[test]
fn a_port_is_keyed_by_its_big_endian_bytes() {
    let key = RuleKey::port(1, 0, 0x1234);
    assert_eq!(key.data[0].to_ne_bytes(), [0x12, 0x34, 0, 0]);
}
