//! A table of our own, which belongs to our socket: nobody else can flush it, and it ends with us.
//!
//! It keeps flows translated while somebody has flushed the rules, see docs/adr/0010: a captured flow lives by
//! connection tracking and NAT, and the kernel does both in a namespace only as long as some rule there needs them.
//! And it keeps connections from one source port apart, see [`apart`].

mod apart;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use shunt_core::flow::Direction;

use super::FAMILIES;
use super::netfilter::expressions::{Conntrack, Expressions};
use super::netfilter::{DELETE_TABLE, Netfilter};
use crate::netlink::{Message, NFTABLES, REQUEST};
use crate::netns::make_transparent;
use crate::{Enrolment, InterceptError};

const NEW_TABLE: u16 = NFTABLES | libc::NFT_MSG_NEWTABLE as u16;
const NEW_CHAIN: u16 = NFTABLES | libc::NFT_MSG_NEWCHAIN as u16;
const NEW_RULE: u16 = NFTABLES | libc::NFT_MSG_NEWRULE as u16;
const DELETE_RULE: u16 = NFTABLES | libc::NFT_MSG_DELRULE as u16;
const CREATE: u16 = libc::NLM_F_CREATE as u16;
const APPEND: u16 = libc::NLM_F_APPEND as u16;

/// Of both families.
const INET: u8 = libc::NFPROTO_INET as u8;
const TABLE: &str = "shunt";
/// Registers NAT, and draws source ports.
const NAT: &str = "translation";
/// Nothing leads to it. Its rule looks at the state of a connection, so connections are tracked.
const TRACKING: &str = "tracking";

/// NFT_TABLE_F_OWNER (Linux 5.12): only the socket that made it may change it.
const OWNER: u32 = 2;
const POSTROUTING: u32 = 4;
/// After everybody's source NAT.
const AFTER_SNAT: i32 = 200;

/// Dropping it lets go.
#[derive(Debug)]
pub(super) struct Tracking {
    owner: Netfilter,
    /// Connections to these listeners are kept apart.
    apart: Vec<SocketAddr>,
    /// Why they are not.
    refusal: Option<String>,
}

impl Tracking {
    /// # Errors
    /// This kernel cannot, or another agent's flows still go through the namespace and its table is there: then a
    /// flush may break flows under way, and connections are not kept apart.
    pub(super) fn keep(enrolment: &Enrolment) -> Result<Self, InterceptError> {
        let netns = &enrolment.netns;
        // Another agent's table may give them SYNs already. That they cannot be had is told below.
        let _ = take_syns(enrolment);
        let make = || {
            let owner = Netfilter::open()?;
            owner.transact(messages())?;
            Ok::<_, io::Error>(owner)
        };
        let failed = |error| InterceptError::io("keep a table in", netns.path().display(), error);
        let owner = netns.enter(make).and_then(|made| made).map_err(failed)?;
        let mut tracking = Self {
            owner,
            apart: Vec::new(),
            refusal: None,
        };
        tracking.serve(enrolment);
        Ok(tracking)
    }

    /// The table of the supervisor before this one, of whom these listeners are too: it is its socket.
    pub(super) fn take_over(socket: OwnedFd, enrolment: &Enrolment) -> Self {
        let mut tracking = Self {
            owner: Netfilter::of(socket),
            apart: listeners(enrolment),
            refusal: None,
        };
        tracking.serve(enrolment);
        tracking
    }

    /// Its socket: the table is there as long as that is open.
    pub(super) fn share(&self) -> io::Result<Option<OwnedFd>> {
        self.owner.share()
    }

    /// Keeps connections to these listeners apart from now on.
    pub(super) fn serve(&mut self, enrolment: &Enrolment) {
        let wanted = listeners(enrolment);
        let done = take_syns(enrolment).and_then(|()| {
            if wanted == self.apart {
                return Ok(());
            }
            self.owner.transact(apart::messages(&wanted))
        });
        let lacks = |error| format!("nftables has no snat or tproxy here: {error}");
        self.refusal = done.as_ref().err().map(lacks);
        if done.is_ok() {
            self.apart = wanted;
        }
    }

    /// Why connections from one source port are not kept apart.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Its socket, for more in the same namespace.
    pub(super) fn let_go(self) -> Netfilter {
        let mut table = Message::new(DELETE_TABLE, REQUEST, INET);
        table.text(1, TABLE);
        // Else it goes with the socket.
        let _ = self.owner.transact(vec![table]);
        self.owner
    }
}

fn listeners(enrolment: &Enrolment) -> Vec<SocketAddr> {
    let listeners = FAMILIES.map(|family| enrolment.listener(Direction::Outbound, family));
    let listeners = listeners.into_iter().flatten();
    listeners.map(|listener| listener.spec.addr).collect()
}

/// Makes such a table in this thread's namespace, a new one, to see whether it can be made.
pub(super) fn attempt() -> Result<(), InterceptError> {
    let listeners = apart::LOOPBACK.map(|address| SocketAddr::new(address, 1));
    let make = || {
        let owner = Netfilter::open()?;
        owner.transact(messages())?;
        owner.transact(apart::messages(&listeners))
    };
    make().map_err(|error| InterceptError::io("make", "a table of our own", error))
}

/// The rules give SYNs to no other listeners.
fn take_syns(enrolment: &Enrolment) -> io::Result<()> {
    for family in FAMILIES {
        let listener = enrolment.listener(Direction::Outbound, family);
        for socket in listener.iter().flat_map(|listener| &listener.sockets) {
            make_transparent(socket, family)?;
        }
    }
    Ok(())
}

fn messages() -> Vec<Message> {
    let mut table = Message::new(NEW_TABLE, REQUEST | CREATE, INET);
    table.text(1, TABLE);
    table.attribute(2, &OWNER.to_be_bytes());

    let mut chain = Message::new(NEW_CHAIN, REQUEST | CREATE, INET);
    chain.text(1, TABLE);
    chain.text(3, TRACKING);

    let nat = base_chain(NAT, "nat", POSTROUTING, AFTER_SNAT);
    let looks = rule(TRACKING, |rule| rule.conntrack(Conntrack::State));
    vec![table, nat, chain, looks]
}

fn base_chain(name: &str, kind: &str, hook: u32, priority: i32) -> Message {
    let mut chain = Message::new(NEW_CHAIN, REQUEST | CREATE, INET);
    chain.text(1, TABLE);
    chain.text(3, name);
    chain.nested(4, |place| {
        place.attribute(1, &hook.to_be_bytes());
        place.attribute(2, &priority.to_be_bytes());
    });
    chain.text(7, kind);
    chain
}

/// The last of its chain.
fn rule(chain: &str, build: impl FnOnce(&mut Expressions<'_>)) -> Message {
    let mut rule = Message::new(NEW_RULE, REQUEST | CREATE | APPEND, INET);
    rule.text(1, TABLE);
    rule.text(2, chain);
    rule.nested(4, |list| build(&mut Expressions(list)));
    rule
}

/// Takes all rules out of a chain.
fn emptied(chain: &str) -> Message {
    let mut rules = Message::new(DELETE_RULE, REQUEST, INET);
    rules.text(1, TABLE);
    rules.text(2, chain);
    rules
}
