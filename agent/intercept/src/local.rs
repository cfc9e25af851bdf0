//! Is an address the namespace's own? The routing table is asked, as netfilter's `addrtype` does.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::InterceptError;
use crate::netns::Netns;
use crate::return_path::Netlink;

pub(crate) fn is_local(netns: &Netns, ip: IpAddr) -> Result<bool, InterceptError> {
    let mut question = RouteMessage::default();
    let (family, address, bits) = match ip {
        IpAddr::V4(v4) => (AddressFamily::Inet, RouteAddress::Inet(v4), 32),
        IpAddr::V6(v6) => (AddressFamily::Inet6, RouteAddress::Inet6(v6), 128),
    };
    question.header.address_family = family;
    question.header.destination_prefix_length = bits;
    question
        .attributes
        .push(RouteAttribute::Destination(address));
    let ask = || -> io::Result<bool> {
        let netlink = Netlink::open()?;
        netlink.send(RouteNetlinkMessage::GetRoute(question), 0)?;
        let mut local = false;
        netlink.receive(|payload| {
            if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) = payload {
                local = route.header.kind == RouteType::Local;
            }
            // One answer: a route, or that there is none.
            true
        })?;
        Ok(local)
    };
    let asked = netns.enter(ask).and_then(|local| local);
    asked.map_err(|error| InterceptError::io("ask for the route in", netns.path().display(), error))
}
