//! Lets answers to a borrowed source address come back to the agent.
//!
//! A delivery socket speaks with the client's address. The application's answers to it would leave the namespace; so
//! the accepted socket inherits the delivery mark from the SYN (`tcp_fwmark_accept`), a refusal carries it back
//! (`fwmark_reflect`), and marked packets are routed to a table whose only route says that everything is local. See
//! docs/adr/0004.

use std::fs;
use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::InterceptError;
use crate::netns::Netns;

/// The routing table, and what an observer recognises us by.
const TABLE: u32 = 15006;
/// The rule's priority keeps what must be restored: this plus the bits of the sysctls that we switched on.
const PRIORITY: u32 = 15000;
/// Each with its bit.
const SYSCTLS: [(u32, &str); 3] = [
    (1, "/proc/sys/net/ipv4/tcp_fwmark_accept"),
    (2, "/proc/sys/net/ipv4/fwmark_reflect"),
    (4, "/proc/sys/net/ipv6/fwmark_reflect"),
];
const ALL_BITS: u32 = 7;
/// lo is the first interface of every namespace.
const LO: u32 = 1;
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// Puts the path in place. Doing it twice is doing it once.
///
/// # Errors
/// The kernel lacks policy routing, or the sysctl cannot be written.
pub fn ensure(netns: &Netns, delivery_mark: u32) -> Result<(), InterceptError> {
    at(netns, "make the return path in", |netlink| {
        let before = our_rules(netlink)?;
        let mut switched = before
            .iter()
            .map(|rule| switched_by(priority_of(rule)))
            .fold(0, |all, bits| all | bits);
        for (bit, sysctl) in SYSCTLS {
            match fs::read_to_string(sysctl) {
                Ok(value) if value.trim() == "0" => {
                    fs::write(sysctl, "1")?;
                    switched |= bit;
                }
                Ok(_) => {}
                // A kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let priority = PRIORITY + switched;
        for stale in before
            .into_iter()
            .filter(|rule| priority_of(rule) != priority)
        {
            netlink.change(RouteNetlinkMessage::DelRule(stale), 0)?;
        }
        for family in FAMILIES {
            if family == AddressFamily::Inet6 && !fs::exists("/proc/sys/net/ipv6").unwrap_or(false)
            {
                continue;
            }
            let flags = NLM_F_CREATE | NLM_F_REPLACE;
            netlink.change(RouteNetlinkMessage::NewRoute(local_route(family)), flags)?;
            let added = netlink.change(
                RouteNetlinkMessage::NewRule(rule(family, delivery_mark, priority)),
                NLM_F_CREATE | NLM_F_EXCL,
            );
            match added {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
        }
        Ok(())
    })
}

/// Takes the path away again, whichever mark it was made for.
///
/// # Errors
/// Something of it may still be there.
pub fn remove(netns: &Netns, _delivery_mark: u32) -> Result<(), InterceptError> {
    remove_any(netns).map(|_| ())
}

/// As [`remove`], and says what was there.
///
/// # Errors
/// As [`remove`].
pub fn remove_any(netns: &Netns) -> Result<Vec<String>, InterceptError> {
    at(netns, "remove the return path in", |netlink| {
        let rules = our_rules(netlink)?;
        let mut removed = Vec::new();
        for rule in &rules {
            netlink.change(RouteNetlinkMessage::DelRule(rule.clone()), 0)?;
            let mut route = local_route(rule.header.family);
            route.header.scope = RouteScope::NoWhere;
            match netlink.change(RouteNetlinkMessage::DelRoute(route), 0) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other?,
            }
            removed.push(format!(
                "rule and route of table {TABLE} ({:?})",
                rule.header.family
            ));
        }
        let switched = rules
            .iter()
            .map(|rule| switched_by(priority_of(rule)))
            .fold(0, |all, bits| all | bits);
        for (_, sysctl) in SYSCTLS.iter().filter(|(bit, _)| switched & bit != 0) {
            fs::write(sysctl, "0")?;
            removed.push(format!("sysctl {sysctl}"));
        }
        Ok(removed)
    })
}

/// What is there of it. Looks only.
pub fn leftovers(netns: &Netns) -> Vec<String> {
    let rules = at(netns, "look for the return path in", our_rules).unwrap_or_default();
    rules
        .iter()
        .map(|rule| format!("rule and route of table {TABLE} ({:?})", rule.header.family))
        .collect()
}

fn at<T>(
    netns: &Netns,
    what: &'static str,
    work: impl FnOnce(&mut Netlink) -> io::Result<T>,
) -> Result<T, InterceptError> {
    netns
        .enter(|| work(&mut Netlink::open()?))
        .and_then(|done| done)
        .map_err(|error| InterceptError::io(what, netns.path().display(), error))
}

fn our_rules(netlink: &mut Netlink) -> io::Result<Vec<RuleMessage>> {
    let mut rules = netlink.rules()?;
    rules.retain(|rule| {
        let table = rule.attributes.contains(&RuleAttribute::Table(TABLE));
        table && (PRIORITY..=PRIORITY + ALL_BITS).contains(&priority_of(rule))
    });
    Ok(rules)
}

/// The sysctls that a rule of this priority says are ours to restore.
fn switched_by(priority: u32) -> u32 {
    priority.wrapping_sub(PRIORITY) & ALL_BITS
}

fn priority_of(rule: &RuleMessage) -> u32 {
    let mut priorities = rule
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            RuleAttribute::Priority(priority) => Some(*priority),
            _ => None,
        });
    priorities.next().unwrap_or(0)
}

fn rule(family: AddressFamily, mark: u32, priority: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::FwMark(mark),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::Table(TABLE),
    ];
    rule
}

fn local_route(family: AddressFamily) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: family,
        protocol: RouteProtocol::Boot,
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    route.attributes = vec![RouteAttribute::Table(TABLE), RouteAttribute::Oif(LO)];
    route
}

/// A netlink socket of the namespace in which it was opened.
struct Netlink {
    socket: Socket,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    fn send(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(|_| ())
    }

    /// Sends a change and waits for the kernel's word.
    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_ACK | flags)?;
        let mut failure = None;
        self.receive(|payload| match payload {
            NetlinkPayload::Error(error) => {
                failure = error.code.map(|_| error.to_io());
                true
            }
            _ => false,
        })?;
        failure.map_or(Ok(()), Err)
    }

    fn rules(&mut self) -> io::Result<Vec<RuleMessage>> {
        let mut rules = Vec::new();
        for family in FAMILIES {
            let mut request = RuleMessage::default();
            request.header.family = family;
            self.send(RouteNetlinkMessage::GetRule(request), NLM_F_DUMP)?;
            let mut failure = None;
            self.receive(|payload| match payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRule(rule)) => {
                    rules.push(rule);
                    false
                }
                NetlinkPayload::Error(error) => {
                    failure = Some(error.to_io());
                    true
                }
                NetlinkPayload::Done(_) => true,
                _ => false,
            })?;
            match failure {
                // A family that the kernel was built without.
                Some(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
                Some(error) => return Err(error),
                None => {}
            }
        }
        Ok(rules)
    }

    /// Reads messages until `last` says that one was the last.
    fn receive(
        &self,
        mut last: impl FnMut(NetlinkPayload<RouteNetlinkMessage>) -> bool,
    ) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(32 << 10);
        loop {
            buffer.clear();
            self.socket.recv(&mut buffer, 0)?;
            let mut rest = buffer.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::deserialize(rest).map_err(|error| {
                    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
                })?;
                let length = message.header.length as usize;
                if last(message.payload) {
                    return Ok(());
                }
                rest = rest
                    .get(length.next_multiple_of(4).max(4)..)
                    .unwrap_or_default();
            }
        }
    }
}
