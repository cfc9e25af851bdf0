//! Is the path still there?

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{FAMILIES, Netlink, SYSCTLS, TABLE, at, routes};
use crate::InterceptError;
use crate::drift::{Drift, Part};
use crate::netns::Netns;

/// Documentation addresses (RFC 5737, RFC 3849): nobody's, so nothing but the mark makes them local.
const NOBODY: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// A path that was put in place, and is looked at again and again.
#[derive(Debug)]
pub struct Watched {
    mark: u32,
    /// They know their namespace, and reading them takes no entering.
    sysctls: Vec<(&'static str, File)>,
}

impl Watched {
    /// # Errors
    /// The namespace cannot be entered.
    pub fn open(netns: &Netns, delivery_mark: u32) -> Result<Self, InterceptError> {
        let open = || {
            let files = SYSCTLS.map(|sysctl| Some((sysctl.path, File::open(sysctl.path).ok()?)));
            files.into_iter().flatten().collect()
        };
        let opened = netns.enter(open);
        let sysctls = opened.map_err(|error| {
            InterceptError::io("watch the return path of", netns.path().display(), error)
        })?;
        Ok(Self {
            mark: delivery_mark,
            sysctls,
        })
    }

    /// What nobody announces: the sysctls.
    pub fn glance(&self) -> Option<Drift> {
        let is_off = |file: &File| {
            let mut value = [0];
            file.read_at(&mut value, 0).is_ok() && value == *b"0"
        };
        let off = self.sysctls.iter().filter(|(_, file)| is_off(file));
        let off: Vec<&str> = off.map(|(sysctl, _)| *sysctl).collect();
        (!off.is_empty()).then(|| Drift::new(Part::ReturnPath, format!("{} is 0", off.join(", "))))
    }

    /// Rules and routes too, by asking where a marked packet would go.
    ///
    /// # Errors
    /// The namespace cannot be entered or asked.
    pub fn inspect(&self, netns: &Netns) -> Result<Option<Drift>, InterceptError> {
        if let Some(found) = self.glance() {
            return Ok(Some(found));
        }
        at(netns, "look for the return path in", |netlink| {
            for (family, address) in FAMILIES.into_iter().zip(NOBODY) {
                if routes(family) && !netlink.leads_home(family, address, self.mark)? {
                    let found =
                        format!("marked packets of {family:?} are not routed to table {TABLE}");
                    return Ok(Some(Drift::new(Part::ReturnPath, found)));
                }
            }
            Ok(None)
        })
    }
}

impl Netlink {
    fn leads_home(&mut self, family: AddressFamily, address: &str, mark: u32) -> io::Result<bool> {
        let address = match address.parse() {
            Ok(std::net::IpAddr::V4(v4)) => RouteAddress::Inet(v4),
            Ok(std::net::IpAddr::V6(v6)) => RouteAddress::Inet6(v6),
            Err(error) => return Err(io::Error::other(error)),
        };
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        question.header.flags = RouteFlags::LookupTable;
        question.header.destination_prefix_length = if family == AddressFamily::Inet6 {
            128
        } else {
            32
        };
        question.attributes = vec![
            RouteAttribute::Destination(address),
            RouteAttribute::Mark(mark),
        ];
        self.send(RouteNetlinkMessage::GetRoute(question), 0)?;
        let mut home = false;
        self.receive(|payload| {
            if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) = payload {
                let ours = route.attributes.contains(&RouteAttribute::Table(TABLE));
                home = ours && route.header.kind == RouteType::Local;
            }
            // One answer: a route, or the error that there is none.
            true
        })?;
        Ok(home)
    }
}
