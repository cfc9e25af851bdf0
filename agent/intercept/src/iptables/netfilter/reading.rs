//! Netfilter's rules and chains as they are.

use std::io;

use shunt_core::sockets::Family;

use super::{GET_CHAIN, NEW_CHAIN, Netfilter, family_number};
use crate::netlink::{Answer, Message, NFTABLES, REQUEST};

const NEW_RULE: u16 = NFTABLES | libc::NFT_MSG_NEWRULE as u16;
const GET_RULE: u16 = NFTABLES | libc::NFT_MSG_GETRULE as u16;

/// The first attributes of a chain, and of a rule.
const TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;

impl Netfilter {
    /// Chain and expressions of every rule in the nat table.
    ///
    /// # Errors
    /// `Interrupted`: somebody changed rules meanwhile.
    pub(in crate::iptables) fn nat_rules(
        &self,
        family: Family,
        mut each: impl FnMut(&str, &[u8]),
    ) -> io::Result<()> {
        let mut message = Message::new(GET_RULE, REQUEST | DUMP, family_number(family));
        message.text(TABLE, "nat");
        self.dump(message, NEW_RULE, |rule| {
            if part(rule, TABLE) == Some(b"nat\0") {
                each(
                    &text(rule, RULE_CHAIN),
                    part(rule, RULE_EXPRESSIONS).unwrap_or_default(),
                );
            }
        })
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
        self.socket.send(&question.finish(1), 0)?;
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

const DUMP: u16 = libc::NLM_F_DUMP as u16;

fn part<'a>(answer: &Answer<'a>, wanted: u16) -> Option<&'a [u8]> {
    let mut all = answer.attributes();
    all.find_map(|(kind, data)| (kind == wanted).then_some(data))
}

fn text(answer: &Answer<'_>, wanted: u16) -> String {
    let name = part(answer, wanted).and_then(|name| name.strip_suffix(b"\0"));
    String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
}
