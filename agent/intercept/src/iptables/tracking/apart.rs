//! REDIRECT gives all connections of a namespace one destination, so that two from one source port are one tuple: of two
//! SYNs at the same moment connection tracking drops one, and its program waits a second (envoy#15305). So the source
//! port is drawn at random.
//!
//! A port that comes back meets the agent's end of its last connection in TIME_WAIT, where a SYN is taken only if its
//! timestamp is younger; the others are asked to wait, up to a second. So SYNs are given to the listener itself: there
//! the kernel ends what is in TIME_WAIT for them. See docs/adr/0013.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{NAT, base_chain, emptied, rule};
use crate::iptables::netfilter::expressions::{Conntrack, Expressions, Header, Meta};
use crate::netlink::Message;

/// Where REDIRECT leads to, and the agent listens.
pub(super) const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

const RENEWAL: &str = "renewal";
const PREROUTING: u32 = 0;
/// Where mangle tables are: after connection tracking, before anybody looks for a socket.
const MANGLE: i32 = -150;

/// Not those that only root may listen on: others than TCP's two ends may look at them.
const PORTS: (u16, u16) = (1024, u16::MAX);
/// lo is the first interface of every namespace.
const LO: [u8; 4] = 1_u32.to_ne_bytes();
/// IPS_DST_NAT.
const REDIRECTED: [u8; 4] = (1_u32 << 5).to_ne_bytes();
/// Where in a TCP header the destination port is, and the flags.
const TO_PORT: u32 = 2;
const FLAGS: u32 = 13;
/// FIN, SYN, RST and ACK, and a SYN alone.
const ALL_FLAGS: [u8; 1] = [0x17];
const SYN: [u8; 1] = [0x02];

/// In place of what was there, for these listeners.
pub(super) fn messages(listeners: &[SocketAddr]) -> Vec<Message> {
    let renewal = base_chain(RENEWAL, "filter", PREROUTING, MANGLE);
    let mut messages = vec![renewal, emptied(NAT), emptied(RENEWAL)];
    for listener in listeners {
        messages.push(rule(NAT, |rule| {
            rule.meta(Meta::OutputInterface, &LO);
            to_listener(rule, *listener);
            rule.conntrack(Conntrack::Status);
            rule.bits(&REDIRECTED, &REDIRECTED);
            rule.draw_source_port(number(*listener), PORTS.0, PORTS.1);
        }));
        messages.push(rule(RENEWAL, |rule| {
            // Every packet that arrives comes by here: what is seldom true is asked first.
            rule.meta(Meta::InputInterface, &LO);
            to_listener(rule, *listener);
            rule.load(Header::Transport, FLAGS, 1);
            rule.bits(&ALL_FLAGS, &SYN);
            rule.give_to(number(*listener), listener.ip(), listener.port());
        }));
    }
    messages
}

fn to_listener(rule: &mut Expressions<'_>, listener: SocketAddr) {
    rule.meta(Meta::Family, &[number(listener)]);
    rule.meta(Meta::Protocol, &[libc::IPPROTO_TCP as u8]);
    rule.bytes(Header::Transport, TO_PORT, &listener.port().to_be_bytes());
    match listener.ip() {
        IpAddr::V4(v4) => rule.bytes(Header::Network, 16, &v4.octets()),
        IpAddr::V6(v6) => rule.bytes(Header::Network, 24, &v6.octets()),
    }
}

/// NFPROTO_*.
fn number(listener: SocketAddr) -> u8 {
    if listener.is_ipv4() {
        libc::NFPROTO_IPV4 as u8
    } else {
        libc::NFPROTO_IPV6 as u8
    }
}
