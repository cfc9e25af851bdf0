//! What an nft rule looks at and does, as the kernel takes it.

use std::net::IpAddr;

use crate::netlink::Message;

/// NFT_REG_1 and NFT_REG_2: 16 bytes each.
const FIRST: u32 = 1;
const SECOND: u32 = 2;

/// NFT_META_*.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(in crate::iptables) enum Meta {
    InputInterface = 4,
    OutputInterface = 5,
    /// NFPROTO_*, in chains of both families.
    Family = 15,
    Protocol = 16,
}

/// NFT_CT_*.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(in crate::iptables) enum Conntrack {
    State = 0,
    Status = 2,
}

/// NFT_PAYLOAD_*_HEADER.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(in crate::iptables) enum Header {
    Network = 1,
    Transport = 2,
}

const EQUAL: u32 = 0;
const SNAT: u32 = 0;
/// NF_NAT_RANGE_PROTO_RANDOM_FULLY.
const AT_RANDOM: u32 = 16;

/// The expressions of one rule, in order. What is loaded is compared next.
pub(in crate::iptables) struct Expressions<'m>(pub(in crate::iptables) &'m mut Message);

impl Expressions<'_> {
    pub(in crate::iptables) fn meta(&mut self, key: Meta, value: &[u8]) {
        self.expression("meta", |meta| {
            number(meta, 1, FIRST);
            number(meta, 2, key as u32);
        });
        self.equals(value);
    }

    /// Loads only: that a rule looks at it is all there is to it.
    pub(in crate::iptables) fn conntrack(&mut self, key: Conntrack) {
        self.expression("ct", |ct| {
            number(ct, 1, FIRST);
            number(ct, 2, key as u32);
        });
    }

    pub(in crate::iptables) fn bytes(&mut self, of: Header, offset: u32, value: &[u8]) {
        self.load(of, offset, value.len());
        self.equals(value);
    }

    /// Of the bits in `mask` those in `value` are set, and no others.
    pub(in crate::iptables) fn bits(&mut self, mask: &[u8], value: &[u8]) {
        self.expression("bitwise", |bitwise| {
            number(bitwise, 1, FIRST);
            number(bitwise, 2, FIRST);
            number(bitwise, 3, mask.len() as u32);
            bitwise.nested(4, |data| data.attribute(1, mask));
            bitwise.nested(5, |data| data.attribute(1, &vec![0; mask.len()]));
        });
        self.equals(value);
    }

    pub(in crate::iptables) fn load(&mut self, of: Header, offset: u32, length: usize) {
        self.expression("payload", |payload| {
            number(payload, 1, FIRST);
            number(payload, 2, of as u32);
            number(payload, 3, offset);
            number(payload, 4, length as u32);
        });
    }

    /// The source port becomes one of these, drawn at random; the address stays.
    pub(in crate::iptables) fn draw_source_port(&mut self, family: u8, first: u16, last: u16) {
        self.immediate(FIRST, &first.to_be_bytes());
        self.immediate(SECOND, &last.to_be_bytes());
        self.expression("nat", |nat| {
            number(nat, 1, SNAT);
            number(nat, 2, u32::from(family));
            number(nat, 5, FIRST);
            number(nat, 6, SECOND);
            number(nat, 7, AT_RANDOM);
        });
    }

    /// To a listener that is `IP_TRANSPARENT`; without one the packet goes on as if nothing had been said.
    pub(in crate::iptables) fn give_to(&mut self, family: u8, address: IpAddr, port: u16) {
        match address {
            IpAddr::V4(v4) => self.immediate(FIRST, &v4.octets()),
            IpAddr::V6(v6) => self.immediate(FIRST, &v6.octets()),
        }
        self.immediate(SECOND, &port.to_be_bytes());
        self.expression("tproxy", |tproxy| {
            number(tproxy, 1, u32::from(family));
            number(tproxy, 2, FIRST);
            number(tproxy, 3, SECOND);
        });
    }

    fn equals(&mut self, value: &[u8]) {
        self.expression("cmp", |compare| {
            number(compare, 1, FIRST);
            number(compare, 2, EQUAL);
            compare.nested(3, |data| data.attribute(1, value));
        });
    }

    fn immediate(&mut self, register: u32, value: &[u8]) {
        self.expression("immediate", |immediate| {
            number(immediate, 1, register);
            immediate.nested(2, |data| data.attribute(1, value));
        });
    }

    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Message)) {
        self.0.nested(1, |expression| {
            expression.text(1, name);
            expression.nested(2, data);
        });
    }
}

fn number(message: &mut Message, kind: u16, value: u32) {
    message.attribute(kind, &value.to_be_bytes());
}
