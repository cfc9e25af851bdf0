//! Taking out what is ours of the nft nat tables: of both families in one transaction, and without a program.

use std::io;

use shunt_core::sockets::Family;

use super::reading::jump_target;
use super::{DELETE_CHAIN, Netfilter, family_number};
use crate::iptables::FAMILIES;
use crate::iptables::render::OURS;
use crate::netlink::{Message, NFTABLES, REQUEST};

const DELETE_RULE: u16 = NFTABLES | libc::NFT_MSG_DELRULE as u16;

/// Others may change rules between the look and the transaction.
const ATTEMPTS: usize = 5;

impl Netfilter {
    /// Takes out the jumps to our chains, which stay.
    pub(in crate::iptables) fn unhook(&self) -> io::Result<()> {
        repeatedly(|| {
            let mut messages = Vec::new();
            for family in FAMILIES {
                messages.extend(self.jumps_away(family)?);
            }
            self.all_or_nothing(messages)
        })
    }

    /// Takes out our chains, those of other versions too, and what leads to them. The families that had any.
    pub(in crate::iptables) fn remove_ours(&self) -> io::Result<Vec<Family>> {
        repeatedly(|| {
            let (mut messages, mut had) = (Vec::new(), Vec::new());
            for family in FAMILIES {
                let chains = self.nat_chains(family)?.into_iter();
                let names = chains.map(|chain| chain.name);
                let ours: Vec<String> = names.filter(|name| name.starts_with(OURS)).collect();
                let before = messages.len();
                messages.extend(self.jumps_away(family)?);
                // Without a handle: all rules of the chain.
                let empty = |name: &String| about_rules(family, name, None);
                messages.extend(ours.iter().map(empty));
                messages.extend(ours.iter().map(|name| {
                    let mut message = Message::new(DELETE_CHAIN, REQUEST, family_number(family));
                    message.text(1, "nat");
                    message.text(3, name);
                    message
                }));
                if messages.len() > before {
                    had.push(family);
                }
            }
            self.all_or_nothing(messages).map(|()| had)
        })
    }

    /// Each jump from a chain of others to one of ours.
    fn jumps_away(&self, family: Family) -> io::Result<Vec<Message>> {
        let mut found = Vec::new();
        self.nat_rules(family, |chain, handle, expressions| {
            let target = jump_target(expressions);
            if !chain.starts_with(OURS) && target.is_some_and(|name| name.starts_with(OURS)) {
                found.push(about_rules(family, chain, Some(handle)));
            }
        })?;
        Ok(found)
    }

    fn all_or_nothing(&self, messages: Vec<Message>) -> io::Result<()> {
        if messages.is_empty() {
            return Ok(());
        }
        self.transact(messages)
    }
}

fn about_rules(family: Family, chain: &str, handle: Option<&[u8]>) -> Message {
    let mut message = Message::new(DELETE_RULE, REQUEST, family_number(family));
    message.text(1, "nat");
    message.text(2, chain);
    if let Some(handle) = handle {
        message.attribute(3, handle);
    }
    message
}

fn repeatedly<T>(mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let changed = |error: &io::Error| {
        [io::ErrorKind::Interrupted, io::ErrorKind::NotFound].contains(&error.kind())
    };
    let mut attempts = 1;
    loop {
        match work() {
            Err(error) if changed(&error) && attempts < ATTEMPTS => attempts += 1,
            done => return done,
        }
    }
}
