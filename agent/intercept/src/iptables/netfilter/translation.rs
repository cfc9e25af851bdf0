//! Where a datagram was going before rules led it elsewhere: connection tracking knows.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::Netfilter;
use crate::netlink::{Message, REQUEST, attributes};

const CONNTRACK: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8;
/// IPCTNL_MSG_CT_NEW is what answers IPCTNL_MSG_CT_GET.
const NEW: u16 = CONNTRACK;
const GET: u16 = CONNTRACK | 1;

/// Of an entry: its tuples, as it was meant and as answers to it look.
const MEANT: u16 = 1;
const ANSWERS: u16 = 2;
/// Of a tuple, of its addresses (IPv4, IPv6), of its protocol.
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;
const FROM: [u16; 2] = [1, 3];
const TO: [u16; 2] = [2, 4];
const NUMBER: u16 = 1;
const FROM_PORT: u16 = 2;
const TO_PORT: u16 = 3;

impl Netfilter {
    /// Of the datagram that came from `client` to `listener`.
    ///
    /// # Errors
    /// `NotFound`: it was led there by nobody.
    pub(in crate::iptables) fn original_destination(
        &self,
        listener: SocketAddr,
        client: SocketAddr,
    ) -> io::Result<SocketAddr> {
        let (family, at) = match listener {
            SocketAddr::V4(_) => (libc::AF_INET, 0),
            SocketAddr::V6(_) => (libc::AF_INET6, 1),
        };
        let mut question = Message::new(GET, REQUEST, family as u8);
        question.nested(ANSWERS, |tuple| {
            tuple.nested(ADDRESSES, |ip| {
                ip.attribute(FROM[at], &octets(listener.ip()));
                ip.attribute(TO[at], &octets(client.ip()));
            });
            tuple.nested(PROTOCOL, |protocol| {
                protocol.attribute(NUMBER, &[libc::IPPROTO_UDP as u8]);
                protocol.attribute(FROM_PORT, &listener.port().to_be_bytes());
                protocol.attribute(TO_PORT, &client.port().to_be_bytes());
            });
        });
        self.send(&question.finish(1))?;
        let mut found = None;
        self.receive(|answer| {
            if answer.kind != NEW {
                return answer.error();
            }
            let meant = answer.attributes().find(|(kind, _)| *kind == MEANT);
            found = meant.and_then(|(_, tuple)| destination(tuple));
            Some(Ok(()))
        })?;
        // An entry that nobody has translated was sent to the listener itself.
        found
            .filter(|to| *to != listener)
            .ok_or(io::ErrorKind::NotFound.into())
    }
}

fn destination(tuple: &[u8]) -> Option<SocketAddr> {
    let within = |data, wanted: &[u16]| {
        let mut all = attributes(data);
        all.find_map(|(kind, data)| wanted.contains(&kind).then_some(data))
    };
    let address = within(within(tuple, &[ADDRESSES])?, &TO)?;
    let port = within(within(tuple, &[PROTOCOL])?, &[TO_PORT])?;
    let address = match address.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
    };
    let port = u16::from_be_bytes(port.try_into().ok()?);
    Some(SocketAddr::new(address, port))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}
