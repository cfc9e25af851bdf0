//! A message as the TCP segment that it might have been.

use std::net::{IpAddr, SocketAddr};

use etherparse::PacketBuilder;

/// As an ordinary host sends.
const TIME_TO_LIVE: u8 = 64;
const WINDOW: u16 = u16::MAX;
/// Of the first byte of a direction.
const FIRST: u32 = 1;

/// An IP packet. `offset` is how many bytes of this direction came before, `answered` how many of the other one. `None`:
/// the addresses are of two families, or `bytes` are more than a packet may have.
pub(super) fn segment(
    source: SocketAddr,
    destination: SocketAddr,
    offset: u64,
    answered: u64,
    bytes: &[u8],
) -> Option<Vec<u8>> {
    let ip = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            PacketBuilder::ipv4(from.octets(), to.octets(), TIME_TO_LIVE)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            PacketBuilder::ipv6(from.octets(), to.octets(), TIME_TO_LIVE)
        }
        _ => return None,
    };
    let tcp = ip
        .tcp(source.port(), destination.port(), number(offset), WINDOW)
        .ack(number(answered));
    let tcp = if bytes.is_empty() { tcp } else { tcp.psh() };
    let mut packet = Vec::with_capacity(tcp.size(bytes.len()));
    tcp.write(&mut packet, bytes).ok()?;
    Some(packet)
}

/// Sequence numbers begin again after 4 GiB.
fn number(offset: u64) -> u32 {
    FIRST.wrapping_add(offset as u32)
}
