//! Keeps flows translated while somebody has flushed the rules, see docs/adr/0010.
//!
//! A captured flow lives by connection tracking and NAT, and the kernel does both in a namespace only as long as some
//! rule there needs them. So one table says that it does, and belongs to our socket: nobody else can flush it, and it
//! ends with us.

use std::io;
use std::sync::Arc;

use super::netfilter::{DELETE_TABLE, Netfilter};
use crate::netlink::{Message, NFTABLES, REQUEST};
use crate::netns::Netns;

const NEW_TABLE: u16 = NFTABLES | libc::NFT_MSG_NEWTABLE as u16;
const NEW_CHAIN: u16 = NFTABLES | libc::NFT_MSG_NEWCHAIN as u16;
const NEW_RULE: u16 = NFTABLES | libc::NFT_MSG_NEWRULE as u16;
const CREATE: u16 = libc::NLM_F_CREATE as u16;

/// Of both families.
const INET: u8 = libc::NFPROTO_INET as u8;
const TABLE: &str = "shunt";
/// Registers NAT; empty.
const NAT: &str = "translation";
/// Nothing leads to it. Its rule looks at the state of a connection, so connections are tracked.
const TRACKING: &str = "tracking";

/// NFT_TABLE_F_OWNER (Linux 5.12): only the socket that made it may change it.
const OWNER: u32 = 2;
const POSTROUTING: u32 = 4;
/// After everybody's source NAT.
const PRIORITY: i32 = 200;
/// NFT_REG_1.
const REGISTER: u32 = 1;
/// NFT_CT_STATE.
const STATE: u32 = 0;

/// Dropping it lets go.
#[derive(Debug)]
pub(super) struct Tracking {
    owner: Netfilter,
}

impl Tracking {
    /// Its socket, for more in the same namespace.
    pub(super) fn let_go(self) -> Netfilter {
        let mut table = Message::new(DELETE_TABLE, REQUEST, INET);
        table.text(1, TABLE);
        // Else it goes with the socket.
        let _ = self.owner.transact(vec![table]);
        self.owner
    }

    /// `None`: this kernel cannot; then a flush may break flows under way.
    pub(super) fn keep(netns: &Arc<Netns>) -> Option<Self> {
        let kept = netns.enter(|| {
            let owner = Netfilter::open()?;
            owner.transact(messages())?;
            Ok::<_, io::Error>(Self { owner })
        });
        let kept = kept.and_then(|kept| kept);
        kept.inspect_err(|error| {
            let netns = netns.path().display();
            tracing::debug!(%netns, %error, "flows under way will not survive a flush of the rules");
        })
        .ok()
    }
}

fn messages() -> Vec<Message> {
    let mut table = Message::new(NEW_TABLE, REQUEST | CREATE, INET);
    table.text(1, TABLE);
    table.attribute(2, &OWNER.to_be_bytes());

    let mut nat = Message::new(NEW_CHAIN, REQUEST | CREATE, INET);
    nat.text(1, TABLE);
    nat.text(3, NAT);
    nat.nested(4, |hook| {
        hook.attribute(1, &POSTROUTING.to_be_bytes());
        hook.attribute(2, &PRIORITY.to_be_bytes());
    });
    nat.text(7, "nat");

    let mut chain = Message::new(NEW_CHAIN, REQUEST | CREATE, INET);
    chain.text(1, TABLE);
    chain.text(3, TRACKING);

    let mut rule = Message::new(NEW_RULE, REQUEST | CREATE, INET);
    rule.text(1, TABLE);
    rule.text(2, TRACKING);
    rule.nested(4, |expressions| {
        expressions.nested(1, |expression| {
            expression.text(1, "ct");
            expression.nested(2, |ct| {
                ct.attribute(1, &REGISTER.to_be_bytes());
                ct.attribute(2, &STATE.to_be_bytes());
            });
        });
    });
    vec![table, nat, chain, rule]
}
