//! The three blocks of a pcapng file that a tap needs, as in draft-ietf-opsawg-pcapng.

use std::io::{self, Write};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
/// Raw IP, version 4 or 6: no link layer.
const LINKTYPE_RAW: u16 = 101;
/// Options, by block.
const COMMENT: u16 = 1;
const SECTION_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_RESOLUTION: u16 = 9;
const NANOSECONDS: u8 = 9;

/// A file with one section and one interface: libpcap refuses several of raw IP.
pub(super) struct File<W>(W);

impl<W: Write> File<W> {
    pub(super) fn begin(mut out: W, interface: &str) -> io::Result<Self> {
        let mut body = Body::default();
        body.word(BYTE_ORDER_MAGIC);
        body.half(1);
        body.half(0);
        // Its length is not known yet.
        body.word(u32::MAX);
        body.word(u32::MAX);
        let application = concat!("shunt ", env!("CARGO_PKG_VERSION"));
        body.option(SECTION_APPLICATION, application.as_bytes());
        body.write(SECTION_HEADER, &mut out)?;
        let mut body = Body::default();
        body.half(LINKTYPE_RAW);
        body.half(0);
        // No limit.
        body.word(0);
        body.option(INTERFACE_NAME, interface.as_bytes());
        body.option(INTERFACE_RESOLUTION, &[NANOSECONDS]);
        body.write(INTERFACE, &mut out)?;
        out.flush()?;
        Ok(Self(out))
    }

    /// `nanoseconds` since 1970. The file is whole after it.
    pub(super) fn packet(
        &mut self,
        nanoseconds: u64,
        packet: &[u8],
        comment: Option<&str>,
    ) -> io::Result<()> {
        let mut body = Body::default();
        let length = u32::try_from(packet.len()).map_err(io::Error::other)?;
        // The interface.
        body.word(0);
        body.word((nanoseconds >> 32) as u32);
        body.word(nanoseconds as u32);
        body.word(length);
        body.word(length);
        body.padded(packet);
        if let Some(comment) = comment {
            body.option(COMMENT, comment.as_bytes());
        }
        body.write(PACKET, &mut self.0)?;
        self.0.flush()
    }
}

/// A block in the making. All blocks of ours have options, hence their end.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn half(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    fn word(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Of a text that is too long, what fits.
    fn option(&mut self, code: u16, value: &[u8]) {
        let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
        self.half(code);
        self.half(length);
        self.padded(&value[..usize::from(length)]);
    }

    fn write(mut self, kind: u32, out: &mut impl Write) -> io::Result<()> {
        const END_OF_OPTIONS: u32 = 0;
        const FRAME: usize = 12;
        self.word(END_OF_OPTIONS);
        let length = u32::try_from(self.0.len() + FRAME).map_err(io::Error::other)?;
        let mut block = Vec::with_capacity(self.0.len() + FRAME);
        for word in [kind, length] {
            block.extend_from_slice(&word.to_ne_bytes());
        }
        block.extend_from_slice(&self.0);
        block.extend_from_slice(&length.to_ne_bytes());
        // In one call: whoever reads along sees whole blocks.
        out.write_all(&block)
    }
}
