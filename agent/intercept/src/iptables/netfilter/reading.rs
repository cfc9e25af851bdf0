//! Netfilter's rules and chains as they are.

use std::io;

use shunt_core::sockets::Family;

use super::{GET_CHAIN, NEW_CHAIN, Netfilter, family_number};
use crate::netlink::{Answer, Message, NFTABLES, REQUEST, attributes};

const NEW_RULE: u16 = NFTABLES | libc::NFT_MSG_NEWRULE as u16;
const NEW_TABLE: u16 = NFTABLES | libc::NFT_MSG_NEWTABLE as u16;
const GET_TABLE: u16 = NFTABLES | libc::NFT_MSG_GETTABLE as u16;
const GET_RULE: u16 = NFTABLES | libc::NFT_MSG_GETRULE as u16;

/// The first attributes of a chain, and of a rule.
const TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
/// Of an expression, and the way from one to the name of the chain that its verdict leads to: data of the expression,
/// of the immediate, verdict, chain.
const EXPRESSION_NAME: u16 = 1;
const TO_VERDICT: [u16; 4] = [2, 2, 2, 2];

impl Netfilter {
    /// Chain, handle and expressions of every rule in the nat table.
    ///
    /// # Errors
    /// `Interrupted`: somebody changed rules meanwhile.
    pub(in crate::iptables) fn nat_rules(
        &self,
        family: Family,
        mut each: impl FnMut(&str, &[u8], &[u8]),
    ) -> io::Result<()> {
        let mut message = Message::new(GET_RULE, REQUEST | DUMP, family_number(family));
        message.text(TABLE, "nat");
        self.dump(message, NEW_RULE, |rule| {
            if part(rule, TABLE) == Some(b"nat\0") {
                each(
                    &text(rule, RULE_CHAIN),
                    part(rule, RULE_HANDLE).unwrap_or_default(),
                    part(rule, RULE_EXPRESSIONS).unwrap_or_default(),
                );
            }
        })
    }

    /// Is there a nat table?
    pub(in crate::iptables) fn has_nat(&self, family: Family) -> io::Result<bool> {
        let mut message = Message::new(GET_TABLE, REQUEST, family_number(family));
        message.text(TABLE, "nat");
        self.send(&message.finish(1))?;
        let found = self.receive(|answer| {
            let there = answer.kind == NEW_TABLE;
            if there { Some(Ok(())) } else { answer.error() }
        });
        match found {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            found => found.map(|()| true),
        }
    }

    /// Table and name of every chain of every family.
    pub(in crate::iptables) fn chains(&self, mut each: impl FnMut(&str, &str)) -> io::Result<()> {
        let message = Message::new(GET_CHAIN, REQUEST | DUMP, libc::AF_UNSPEC as u8);
        self.dump(message, NEW_CHAIN, |chain| {
            each(&text(chain, TABLE), &text(chain, CHAIN_NAME));
        })
    }

    fn dump(
        &self,
        question: Message,
        kind: u16,
        mut each: impl FnMut(&Answer<'_>),
    ) -> io::Result<()> {
        self.send(&question.finish(1))?;
        let mut torn = false;
        self.receive(|answer| {
            torn |= answer.is_torn();
            if answer.kind == kind {
                each(answer);
            }
            let done = answer.kind == libc::NLMSG_DONE as u16;
            if done { Some(Ok(())) } else { answer.error() }
        })?;
        if torn {
            Err(io::ErrorKind::Interrupted.into())
        } else {
            Ok(())
        }
    }
}

/// The chain to which a rule with these expressions jumps or goes.
pub(super) fn jump_target(expressions: &[u8]) -> Option<&str> {
    let within = |data, wanted| {
        let mut all = attributes(data);
        all.find_map(|(kind, data)| (kind == wanted).then_some(data))
    };
    let target = attributes(expressions).find_map(|(_, expression)| {
        let name = within(expression, EXPRESSION_NAME)?;
        let verdict = TO_VERDICT.into_iter().try_fold(expression, within)?;
        (name == b"immediate\0").then_some(verdict)
    })?;
    std::str::from_utf8(target.strip_suffix(b"\0")?).ok()
}

const DUMP: u16 = libc::NLM_F_DUMP as u16;

fn part<'a>(answer: &Answer<'a>, wanted: u16) -> Option<&'a [u8]> {
    let mut all = answer.attributes();
    all.find_map(|(kind, data)| (kind == wanted).then_some(data))
}

fn text(answer: &Answer<'_>, wanted: u16) -> String {
    let name = part(answer, wanted).and_then(|name| name.strip_suffix(b"\0"));
    String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
}
