//! Netfilter by netlink, where the programs cannot do it exactly: an ipset refreshed without a process, and a table
//! deleted only if nothing is in it at that instant.
#![expect(
    unsafe_code,
    reason = "netlink-sys gives and takes its sockets by number"
)]

pub(super) mod expressions;
mod reading;
mod removing;
mod translation;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::thread::Builder;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use shunt_core::sockets::Family;

use crate::netlink::{Answer, BIG_ENDIAN, Message, NFTABLES, REQUEST};

/// The kernel answers within the call that asks; this only bounds the impossible.
const PATIENCE: Duration = Duration::from_secs(1);

const ACK: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
/// "Only if nothing depends on it."
const ONLY_EMPTY: u16 = 0x100;

const IPSET: u16 = (libc::NFNL_SUBSYS_IPSET as u16) << 8;
const IPSET_CREATE: u16 = IPSET | 2;
const IPSET_DESTROY: u16 = IPSET | 3;
const IPSET_ADD: u16 = IPSET | 9;
const IPSET_TEST: u16 = IPSET | 11;
const IPSET_HEADER: u16 = IPSET | 12;
/// The first octets of the two halves of the address space.
const HALVES: [u8; 2] = [0x00, 0x80];
/// IPSET_ERR_EXIST, which answers a test with no.
const NOT_A_MEMBER: i32 = 4103;
/// The oldest version of the protocol that kernels still take.
const IPSET_PROTOCOL: u8 = 6;

pub(super) const DELETE_TABLE: u16 = NFTABLES | libc::NFT_MSG_DELTABLE as u16;
const NEW_CHAIN: u16 = NFTABLES | libc::NFT_MSG_NEWCHAIN as u16;
const GET_CHAIN: u16 = NFTABLES | libc::NFT_MSG_GETCHAIN as u16;
const DELETE_CHAIN: u16 = NFTABLES | libc::NFT_MSG_DELCHAIN as u16;

/// The chains that iptables-nft makes in a nat table.
const BUILT_IN: [&str; 4] = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"];

/// Speaks for the namespace in which it was opened, from wherever it is used.
#[derive(Debug)]
pub(super) struct Netfilter {
    /// Always there, until it is dropped.
    socket: Option<Socket>,
}

impl Drop for Netfilter {
    fn drop(&mut self) {
        // After a change closing takes some 10 ms, until no core can see what was there before, and holds up whoever changes
        // the namespace's tables. Where there is no thread to be had, this one waits.
        let socket = self.socket.take();
        let closing = Builder::new().name("closing".into());
        let _ = closing.spawn(|| drop(socket));
    }
}

impl Netfilter {
    /// One that was opened elsewhere.
    pub(super) fn of(socket: OwnedFd) -> Self {
        // SAFETY: it is a socket of this protocol, and ours alone.
        let socket = unsafe { Socket::from_raw_fd(socket.into_raw_fd()) };
        Self {
            socket: Some(socket),
        }
    }

    /// The same socket once more.
    pub(super) fn share(&self) -> io::Result<Option<OwnedFd>> {
        let share = |socket: &Socket| {
            // SAFETY: open as long as `socket` lives, which is longer than this call.
            unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }.try_clone_to_owned()
        };
        self.socket.as_ref().map(share).transpose()
    }

    /// In this thread's namespace.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self {
            socket: Some(socket),
        })
    }

    /// A set of networks whose members vanish after a second. One that exists already will do.
    pub(super) fn create_set(&self, family: Family, name: &str) -> io::Result<()> {
        let mut message = Message::new(IPSET_CREATE, ACK, family_number(family));
        set_name(&mut message, name);
        message.text(3, "hash:net");
        message.attribute(4, &[0]);
        message.attribute(5, &[family_number(family)]);
        message.nested(7, |data| {
            data.attribute(6 | BIG_ENDIAN, &1_u32.to_be_bytes())
        });
        self.ask(message)
    }

    /// Everything is in the set for a second from now on: two halves, because a set takes no /0.
    pub(super) fn refresh_set(&self, family: Family, name: &str) -> io::Result<()> {
        HALVES
            .into_iter()
            .try_for_each(|first| self.ask(half(IPSET_ADD, family, name, first)))
    }

    /// Is everything in the set?
    pub(super) fn is_open(&self, family: Family, name: &str) -> io::Result<bool> {
        for first in HALVES {
            match self.ask(half(IPSET_TEST, family, name, first)) {
                Err(error) if error.raw_os_error() == Some(NOT_A_MEMBER) => return Ok(false),
                answer => answer?,
            }
        }
        Ok(true)
    }

    pub(super) fn has_set(&self, name: &str) -> bool {
        let mut message = Message::new(IPSET_HEADER, ACK, libc::AF_UNSPEC as u8);
        set_name(&mut message, name);
        self.ask(message).is_ok()
    }

    pub(super) fn destroy_set(&self, name: &str) -> io::Result<()> {
        let mut message = Message::new(IPSET_DESTROY, ACK, libc::AF_UNSPEC as u8);
        set_name(&mut message, name);
        self.ask(message)
    }

    /// Deletes the nat table and its built-in chains as far as they are empty and not to be kept. The kernel judges
    /// emptiness in the same transaction, so what somebody adds meanwhile is safe.
    pub(super) fn delete_empty_nat(&self, family: Family, keep: &Kept) -> io::Result<()> {
        let chains = self.nat_chains(family)?;
        let empty = chains.iter().all(|chain| !chain.touched);
        if empty && !keep.table && self.delete(family, &chains, true)? {
            return Ok(());
        }
        for chain in chains {
            let ours =
                BUILT_IN.contains(&chain.name.as_str()) && !keep.chains.contains(&chain.name);
            if ours && !chain.touched {
                self.delete(family, &[chain], false)?;
            }
        }
        Ok(())
    }

    /// What of the nat table is there, for [`Netfilter::delete_empty_nat`] to keep. `table`: it is there.
    pub(super) fn nat_as_it_is(&self, family: Family, table: bool) -> io::Result<Kept> {
        let chains = self.nat_chains(family)?;
        Ok(Kept {
            table,
            chains: chains.into_iter().map(|chain| chain.name).collect(),
        })
    }

    /// Chains, and the table with them, or nothing at all. False: something was in them, or they were gone.
    fn delete(&self, family: Family, chains: &[Chain], table: bool) -> io::Result<bool> {
        let mut messages: Vec<Message> = Vec::new();
        for chain in chains {
            let mut message =
                Message::new(DELETE_CHAIN, REQUEST | ONLY_EMPTY, family_number(family));
            message.text(1, "nat");
            message.text(3, &chain.name);
            messages.push(message);
        }
        if table {
            let mut message =
                Message::new(DELETE_TABLE, REQUEST | ONLY_EMPTY, family_number(family));
            message.text(1, "nat");
            messages.push(message);
        }
        match self.transact(messages) {
            Ok(()) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::EBUSY | libc::ENOENT) => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// All of it or nothing.
    pub(super) fn transact(&self, messages: Vec<Message>) -> io::Result<()> {
        let last = messages.len() as u32;
        let mut batch = Message::batch(libc::NFNL_MSG_BATCH_BEGIN as u16).finish(0);
        for (mut message, sequence) in messages.into_iter().zip(1..) {
            if sequence == last {
                message.acknowledge();
            }
            batch.extend(message.finish(sequence));
        }
        batch.extend(Message::batch(libc::NFNL_MSG_BATCH_END as u16).finish(last + 1));
        self.send(&batch)?;
        self.verdict(last)
    }

    fn nat_chains(&self, family: Family) -> io::Result<Vec<Chain>> {
        let flags = REQUEST | libc::NLM_F_DUMP as u16;
        let message = Message::new(GET_CHAIN, flags, family_number(family));
        self.send(&message.finish(1))?;
        let mut chains = Vec::new();
        self.receive(|answer| match answer.kind {
            NEW_CHAIN => {
                chains.extend(Chain::in_nat(answer.attributes()));
                None
            }
            _ if answer.kind == libc::NLMSG_DONE as u16 => Some(Ok(())),
            _ => answer.error(),
        })?;
        Ok(chains)
    }

    fn socket(&self) -> io::Result<&Socket> {
        self.socket
            .as_ref()
            .ok_or(io::ErrorKind::NotConnected.into())
    }

    /// Of a transaction that failed the kernel says several things, of which only the first was listened to.
    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut late = Vec::with_capacity(32 << 10);
        while self.socket()?.recv(&mut late, libc::MSG_DONTWAIT).is_ok() {
            late.clear();
        }
        self.socket()?.send(bytes, 0).map(|_| ())
    }

    fn ask(&self, message: Message) -> io::Result<()> {
        self.send(&message.finish(1))?;
        self.verdict(1)
    }

    /// The first error of any message sent, or the acknowledgement of message number `last`.
    fn verdict(&self, last: u32) -> io::Result<()> {
        self.receive(|answer| match answer.error() {
            Some(Ok(())) if answer.sequence != last => None,
            verdict => verdict,
        })
    }

    fn receive(
        &self,
        mut judge: impl FnMut(&Answer<'_>) -> Option<io::Result<()>>,
    ) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut verdict = None;
        while verdict.is_none() {
            buffer.clear();
            self.socket()?.recv(&mut buffer, 0)?;
            let mut rest = buffer.as_slice();
            // To the end of what came, so that nothing of it is left for the next question.
            while let Some((answer, next)) = Answer::first(rest) {
                verdict = verdict.or_else(|| judge(&answer));
                rest = next;
            }
        }
        verdict.unwrap_or(Ok(()))
    }
}

/// A message about half the address space, as a member of a set.
fn half(kind: u16, family: Family, name: &str, first: u8) -> Message {
    let mut message = Message::new(kind, ACK, family_number(family));
    set_name(&mut message, name);
    message.nested(7, |data| {
        data.nested(1, |ip| match family {
            Family::V4 => ip.attribute(1 | BIG_ENDIAN, &[first, 0, 0, 0]),
            Family::V6 => {
                let mut half = [0; 16];
                half[0] = first;
                ip.attribute(2 | BIG_ENDIAN, &half);
            }
        });
        data.attribute(3, &[1]);
    });
    message
}

/// What of a family's nft nat table is somebody else's, though empty.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    pub(super) table: bool,
    pub(super) chains: Vec<String>,
}

impl Kept {
    /// For whoever has not seen the table before the rules: the chains that our rules never use.
    pub(super) fn unseen() -> Self {
        Self {
            table: false,
            chains: vec!["INPUT".into(), "POSTROUTING".into()],
        }
    }
}

struct Chain {
    name: String,
    /// Not built in, or its policy is not to accept. Rules in it are for the kernel to see.
    touched: bool,
}

impl Chain {
    fn in_nat<'a>(attributes: impl Iterator<Item = (u16, &'a [u8])>) -> Option<Self> {
        let (mut in_nat, mut name, mut built_in, mut accepts) = (false, None, false, true);
        for (kind, data) in attributes {
            match kind {
                1 => in_nat = data == b"nat\0",
                3 => {
                    name = data
                        .strip_suffix(b"\0")
                        .map(|name| String::from_utf8_lossy(name).into())
                }
                4 => built_in = true,
                5 => accepts = data == 1_u32.to_be_bytes(),
                _ => {}
            }
        }
        let name = name.filter(|_| in_nat)?;
        Some(Self {
            name,
            touched: !built_in || !accepts,
        })
    }
}

fn set_name(message: &mut Message, name: &str) {
    message.attribute(1, &[IPSET_PROTOCOL]);
    message.text(2, name);
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}
