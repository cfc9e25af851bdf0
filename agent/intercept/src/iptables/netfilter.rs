//! Netfilter by netlink, where the programs cannot do it exactly: an ipset refreshed without a process, and a table
//! deleted only if nothing is in it at that instant.

use std::io;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use shunt_core::sockets::Family;

/// The kernel answers within the call that asks; this only bounds the impossible.
const PATIENCE: Duration = Duration::from_secs(1);

const ACK: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
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

const NFTABLES: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
const DELETE_TABLE: u16 = NFTABLES | libc::NFT_MSG_DELTABLE as u16;
const NEW_CHAIN: u16 = NFTABLES | libc::NFT_MSG_NEWCHAIN as u16;
const GET_CHAIN: u16 = NFTABLES | libc::NFT_MSG_GETCHAIN as u16;
const DELETE_CHAIN: u16 = NFTABLES | libc::NFT_MSG_DELCHAIN as u16;

/// The chains that iptables-nft makes in a nat table.
const BUILT_IN: [&str; 4] = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"];

const NESTED: u16 = libc::NLA_F_NESTED as u16;
const BIG_ENDIAN: u16 = libc::NLA_F_NET_BYTEORDER as u16;
const ATTRIBUTE_TYPE: u16 = !(NESTED | BIG_ENDIAN);

/// Speaks for the namespace in which it was opened, from wherever it is used.
#[derive(Debug)]
pub(super) struct Netfilter {
    socket: Socket,
}

impl Netfilter {
    /// In this thread's namespace.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// A set of networks whose members vanish after a second. One that exists already will do.
    pub(super) fn create_set(&self, family: Family, name: &str) -> io::Result<()> {
        let mut message = Message::new(IPSET_CREATE, ACK, family_number(family));
        message.set_name(name);
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
        message.set_name(name);
        self.ask(message).is_ok()
    }

    pub(super) fn destroy_set(&self, name: &str) -> io::Result<()> {
        let mut message = Message::new(IPSET_DESTROY, ACK, libc::AF_UNSPEC as u8);
        message.set_name(name);
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
        let last = messages.len() as u32;
        let mut batch = Message::batch(libc::NFNL_MSG_BATCH_BEGIN as u16).finish(0);
        for (mut message, sequence) in messages.into_iter().zip(1..) {
            if sequence == last {
                message.bytes[6..8].copy_from_slice(&(ACK | ONLY_EMPTY).to_ne_bytes());
            }
            batch.extend(message.finish(sequence));
        }
        batch.extend(Message::batch(libc::NFNL_MSG_BATCH_END as u16).finish(last + 1));
        self.socket.send(&batch, 0)?;
        match self.verdict(last) {
            Ok(()) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::EBUSY | libc::ENOENT) => Ok(false),
                _ => Err(error),
            },
        }
    }

    fn nat_chains(&self, family: Family) -> io::Result<Vec<Chain>> {
        let flags = REQUEST | libc::NLM_F_DUMP as u16;
        let message = Message::new(GET_CHAIN, flags, family_number(family));
        self.socket.send(&message.finish(1), 0)?;
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

    fn ask(&self, message: Message) -> io::Result<()> {
        self.socket.send(&message.finish(1), 0)?;
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
            self.socket.recv(&mut buffer, 0)?;
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
    message.set_name(name);
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

/// A message being built: header, nfgenmsg, attributes.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    const HEADER: usize = 16;

    fn new(kind: u16, flags: u16, family: u8) -> Self {
        let mut bytes = vec![0; Self::HEADER + 4];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[Self::HEADER] = family;
        Self { bytes }
    }

    fn batch(kind: u16) -> Self {
        let mut message = Self::new(kind, REQUEST, libc::AF_UNSPEC as u8);
        message.bytes[Self::HEADER + 2..].copy_from_slice(&(NFTABLES >> 8).to_be_bytes());
        message
    }

    fn set_name(&mut self, name: &str) {
        self.attribute(1, &[IPSET_PROTOCOL]);
        self.text(2, name);
    }

    fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, &[text.as_bytes(), b"\0"].concat());
    }

    fn nested(&mut self, kind: u16, build: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.attribute(kind | NESTED, &[]);
        build(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, data: &[u8]) {
        let length = (4 + data.len()) as u16;
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

struct Answer<'a> {
    kind: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl<'a> Answer<'a> {
    /// The first message of `bytes`, and what follows it.
    fn first(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let length = u32_at(bytes, 0)? as usize;
        let payload = bytes.get(Message::HEADER..length)?;
        let kind = bytes
            .get(4..)?
            .first_chunk()
            .map(|bytes| u16::from_ne_bytes(*bytes))?;
        let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((
            Self {
                kind,
                sequence: u32_at(bytes, 8)?,
                payload,
            },
            next,
        ))
    }

    fn error(&self) -> Option<io::Result<()>> {
        if self.kind != libc::NLMSG_ERROR as u16 {
            return None;
        }
        Some(match u32_at(self.payload, 0).map(|code| code as i32) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(-code)),
            None => Err(io::ErrorKind::InvalidData.into()),
        })
    }

    fn attributes(&self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.payload.get(4..).unwrap_or_default();
        std::iter::from_fn(move || {
            let (head, _) = rest.split_first_chunk::<4>()?;
            let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
            let kind = u16::from_ne_bytes([head[2], head[3]]) & ATTRIBUTE_TYPE;
            let data = rest.get(4..length)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, data))
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_ne_bytes(*bytes))
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}
