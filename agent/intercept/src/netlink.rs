//! Netlink messages of nfnetlink's shape: header, nfgenmsg, attributes. What the crates at hand do not build or read.

use std::io;

pub(crate) const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
pub(crate) const NFTABLES: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
pub(crate) const BIG_ENDIAN: u16 = libc::NLA_F_NET_BYTEORDER as u16;
const NESTED: u16 = libc::NLA_F_NESTED as u16;
const ATTRIBUTE_TYPE: u16 = !(NESTED | BIG_ENDIAN);

/// A message being built: header, nfgenmsg, attributes.
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    const HEADER: usize = 16;

    pub(crate) fn new(kind: u16, flags: u16, family: u8) -> Self {
        let mut bytes = vec![0; Self::HEADER + 4];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[Self::HEADER] = family;
        Self { bytes }
    }

    pub(crate) fn batch(kind: u16) -> Self {
        let mut message = Self::new(kind, REQUEST, libc::AF_UNSPEC as u8);
        message.bytes[Self::HEADER + 2..].copy_from_slice(&(NFTABLES >> 8).to_be_bytes());
        message
    }

    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, &[text.as_bytes(), b"\0"].concat());
    }

    pub(crate) fn nested(&mut self, kind: u16, build: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.attribute(kind | NESTED, &[]);
        build(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    pub(crate) fn attribute(&mut self, kind: u16, data: &[u8]) {
        let length = (4 + data.len()) as u16;
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The kernel shall say that it is done.
    pub(crate) fn acknowledge(&mut self) {
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | libc::NLM_F_ACK as u16;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    }

    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

pub(crate) struct Answer<'a> {
    pub(crate) kind: u16,
    flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

impl<'a> Answer<'a> {
    /// The first message of `bytes`, and what follows it.
    pub(crate) fn first(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let length = u32_at(bytes, 0)? as usize;
        let payload = bytes.get(Message::HEADER..length)?;
        let half = |at: usize| {
            let two = bytes.get(at..)?.first_chunk()?;
            Some(u16::from_ne_bytes(*two))
        };
        let (kind, flags) = (half(4)?, half(6)?);
        let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((
            Self {
                kind,
                flags,
                sequence: u32_at(bytes, 8)?,
                payload,
            },
            next,
        ))
    }

    /// Something changed while the kernel answered: what came may be neither old nor new.
    pub(crate) fn is_torn(&self) -> bool {
        self.flags & libc::NLM_F_DUMP_INTR as u16 != 0
    }

    pub(crate) fn error(&self) -> Option<io::Result<()>> {
        if self.kind != libc::NLMSG_ERROR as u16 {
            return None;
        }
        Some(match u32_at(self.payload, 0).map(|code| code as i32) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(-code)),
            None => Err(io::ErrorKind::InvalidData.into()),
        })
    }

    pub(crate) fn attributes(&self) -> impl Iterator<Item = (u16, &'a [u8])> {
        attributes(self.payload.get(4..).unwrap_or_default())
    }
}

/// Kind and data of each.
pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (head, _) = rest.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & ATTRIBUTE_TYPE;
        let data = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, data))
    })
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_ne_bytes(*bytes))
}
