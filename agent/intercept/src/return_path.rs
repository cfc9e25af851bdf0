//! Lets answers to a borrowed source address come back to the agent.
//!
//! A delivery socket speaks with the client's address. The application's answers to it would leave the namespace; so
//! the accepted socket inherits the delivery mark from the SYN (`tcp_fwmark_accept`), a refusal carries it back
//! (`fwmark_reflect`), and marked packets are routed to a table whose only route says that everything is local. See
//! docs/adr/0004.

mod inspection;

use std::fs;
use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

pub use self::inspection::Watched;
use shunt_core::workload::Mode;

use crate::InterceptError;
use crate::netns::Netns;

/// The routing table, and what an observer recognises us by.
const TABLE: u32 = 15006;
/// The rule's priority keeps what must be restored: this plus the bits of the sysctls that we switched on.
const PRIORITY: u32 = 15000;

/// A setting of the namespace that is changed while it is served.
#[derive(Clone, Copy, Debug)]
struct Sysctl {
    /// In the rule's priority: it was us who changed it.
    bit: u32,
    path: &'static str,
    /// Only this, the kernel's default, is changed.
    default: &'static str,
    ours: &'static str,
}

/// What the path itself needs. The first carries answers back, the others refusals.
const SYSCTLS: [Sysctl; 3] = [
    switch(1, "/proc/sys/net/ipv4/tcp_fwmark_accept"),
    switch(2, "/proc/sys/net/ipv4/fwmark_reflect"),
    switch(4, "/proc/sys/net/ipv6/fwmark_reflect"),
];
/// What connection tracking remembers of connections that are over, in iptables mode. REDIRECT gives all connections of a namespace one destination, so each ephemeral port is taken until connection
/// tracking forgets it. With its two minutes there is room for 540 connections a second (seen: timeouts at 1,400);
/// two seconds are enough for whatever comes late on loopback.
const FORGETTING: [Sysctl; 2] = [
    Sysctl {
        bit: 8,
        path: "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait",
        default: "120",
        ours: "2",
    },
    // What ended in a reset is over at once: a later connection from the same port would be led where that one went,
    // to a listener that has gone since.
    Sysctl {
        bit: 16,
        path: "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close",
        default: "10",
        ours: "0",
    },
];
const ALL_BITS: u32 = 31;

const fn switch(bit: u32, path: &'static str) -> Sysctl {
    Sysctl {
        bit,
        path,
        default: "0",
        ours: "1",
    }
}
/// lo is the first interface of every namespace.
const LO: u32 = 1;
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// Puts the path in place, and in iptables mode what many short connections need. Doing it twice is doing it once. A namespace where IPv6 is switched off has it for IPv4.
///
/// # Errors
/// The kernel lacks policy routing, or a sysctl cannot be written. Nothing stays.
pub fn ensure(netns: &Netns, delivery_mark: u32, mode: Mode) -> Result<(), InterceptError> {
    let tracked = mode == Mode::Iptables;
    at(netns, "make the return path in", |netlink| {
        put(netlink, delivery_mark, tracked).inspect_err(|_| {
            let _ = take(netlink);
        })
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
    at(netns, "remove the return path in", take)
}

/// Makes a path in this thread's namespace, a new one, to see whether it can be made.
pub(crate) fn attempt() -> Result<(), InterceptError> {
    let try_it = || {
        let mut netlink = Netlink::open()?;
        let mut lo = LinkMessage::default();
        lo.header.index = LO;
        lo.header.flags = LinkFlags::Up;
        lo.header.change_mask = LinkFlags::Up;
        netlink.change(RouteNetlinkMessage::SetLink(lo), 0)?;
        put(&mut netlink, 1, false)
    };
    try_it().map_err(|error| InterceptError::io("make", "a return path", error))
}

/// The rules go first: from then on they tell what must be undone, also to whoever comes after a crash right here.
fn put(netlink: &mut Netlink, mark: u32, tracked: bool) -> io::Result<()> {
    let before = our_rules(netlink)?;
    let wanted = SYSCTLS
        .into_iter()
        .chain(FORGETTING.into_iter().filter(|_| tracked));
    let unset: Vec<Sysctl> = wanted
        .filter(|sysctl| is(sysctl.path, sysctl.default))
        .collect();
    let switched = unset
        .iter()
        .fold(switched_by_any(&before), |all, sysctl| all | sysctl.bit);
    let priority = PRIORITY + switched;
    for family in FAMILIES.into_iter().filter(|family| routes(*family)) {
        let added = netlink.change(
            RouteNetlinkMessage::NewRule(rule(family, mark, priority)),
            NLM_F_CREATE | NLM_F_EXCL,
        );
        match added {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        netlink.change(RouteNetlinkMessage::NewRoute(local_route(family)), flags)?;
    }
    let current = |rule: &RuleMessage| {
        priority_of(rule) == priority && rule.attributes.contains(&RuleAttribute::FwMark(mark))
    };
    for stale in before.into_iter().filter(|rule| !current(rule)) {
        gone(netlink.change(RouteNetlinkMessage::DelRule(stale), 0))?;
    }
    unset
        .iter()
        .try_for_each(|sysctl| fs::write(sysctl.path, sysctl.ours))
}

/// The rules go last, for the same reason.
fn take(netlink: &mut Netlink) -> io::Result<Vec<String>> {
    let rules = our_rules(netlink)?;
    let switched = switched_by_any(&rules);
    let mut removed = Vec::new();
    let all = SYSCTLS.into_iter().chain(FORGETTING);
    for sysctl in all.filter(|sysctl| switched & sysctl.bit != 0) {
        if is(sysctl.path, sysctl.ours) {
            fs::write(sysctl.path, sysctl.default)?;
            removed.push(format!("sysctl {}", sysctl.path));
        }
    }
    for family in FAMILIES {
        let mut route = local_route(family);
        route.header.scope = RouteScope::NoWhere;
        if gone(netlink.change(RouteNetlinkMessage::DelRoute(route), 0))? {
            removed.push(format!("route of table {TABLE} ({family:?})"));
        }
    }
    for rule in rules {
        let family = rule.header.family;
        if gone(netlink.change(RouteNetlinkMessage::DelRule(rule), 0))? {
            removed.push(format!("rule to table {TABLE} ({family:?})"));
        }
    }
    Ok(removed)
}

/// True: it was there until now. What is not there need not be removed.
fn gone(result: io::Result<()>) -> io::Result<bool> {
    const ABSENT: [i32; 4] = [
        libc::ENOENT,
        libc::ESRCH,
        libc::EAFNOSUPPORT,
        libc::EOPNOTSUPP,
    ];
    match result {
        Ok(()) => Ok(true),
        Err(error)
            if error
                .raw_os_error()
                .is_some_and(|code| ABSENT.contains(&code)) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Can this thread's namespace have routes of that family?
fn routes(family: AddressFamily) -> bool {
    const V6: &str = "/proc/sys/net/ipv6";
    family != AddressFamily::Inet6
        || fs::exists(V6).unwrap_or(false) && !is(&format!("{V6}/conf/lo/disable_ipv6"), "1")
}

/// A sysctl that does not exist is nothing.
fn is(sysctl: &str, value: &str) -> bool {
    fs::read_to_string(sysctl).is_ok_and(|now| now.trim() == value)
}

/// What is there of it. Looks only.
pub fn leftovers(netns: &Netns) -> Vec<String> {
    let rules = at(netns, "look for the return path in", our_rules).unwrap_or_default();
    rules
        .iter()
        .map(|rule| format!("rule to table {TABLE} ({:?})", rule.header.family))
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

/// The sysctls that these rules say are ours to restore.
fn switched_by_any(rules: &[RuleMessage]) -> u32 {
    rules
        .iter()
        .map(|rule| priority_of(rule).wrapping_sub(PRIORITY) & ALL_BITS)
        .fold(0, |all, bits| all | bits)
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
pub(crate) struct Netlink {
    socket: Socket,
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    pub(crate) fn send(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
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
    pub(crate) fn receive(
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
