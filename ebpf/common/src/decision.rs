//! Would this connection be captured, and if not, by which rule?
//!
//! One function answers for everybody: the connect hooks and `sk_lookup` call it in the kernel,
//! `shunt explain` and the tests call it in user space, and the iptables rules are rendered in its order.
//!
//! ```text
//!  never captured: bound to a device, loopback, unspecified, multicast, broadcast, own address
//!    -> excluded port -> excluded address -> port not included -> address not included -> CAPTURE
//! ```

/// An IPv4 (as `::ffff:a.b.c.d`) or IPv6 address: four words in network byte order, as the kernel keeps them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address(pub [u32; 4]);

impl Address {
    /// The third word of every IPv4-mapped address.
    pub const V4_MAPPED: u32 = 0x0000_ffff_u32.to_be();
    pub const UNSPECIFIED: Self = Self([0; 4]);

    #[inline(always)]
    pub const fn v4(network_order: u32) -> Self {
        Self([0, 0, Self::V4_MAPPED, network_order])
    }

    /// `octets` as in `Ipv6Addr::octets`; an IPv4 address must come in its mapped form.
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] = self.0[0].to_ne_bytes();
        let [e, f, g, h] = self.0[1].to_ne_bytes();
        let [i, j, k, l] = self.0[2].to_ne_bytes();
        let [m, n, o, p] = self.0[3].to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == Self::V4_MAPPED
    }

    /// `::1`, and anything in 127.0.0.0/8.
    #[inline(always)]
    pub fn is_loopback(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.0[3]) >> 24 == 127
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be()
        }
    }

    /// `::`, and anything in 0.0.0.0/8 ("this network").
    #[inline(always)]
    pub fn is_unspecified(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.0[3]) >> 24 == 0
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 0
        }
    }

    /// 224.0.0.0/4 and ff00::/8.
    #[inline(always)]
    pub fn is_multicast(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.0[3]) >> 28 == 0xe
        } else {
            u32::from_be(self.0[0]) >> 24 == 0xff
        }
    }

    /// 255.255.255.255. A subnet's own broadcast address is not known here.
    #[inline(always)]
    pub fn is_broadcast(&self) -> bool {
        self.is_v4() && self.0[3] == u32::MAX
    }
}

/// Which way a connection goes, seen from the workload.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Outbound = 0,
    Inbound = 1,
}

/// What the rules say of one port or one address; the union over every rule that covers it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks(pub u32);

impl Marks {
    pub const INCLUDED: u32 = 1;
    pub const EXCLUDED: u32 = 2;
    /// The address is one of the workload's own.
    pub const OWN: u32 = 4;

    #[inline(always)]
    pub fn has(self, mark: u32) -> bool {
        self.0 & mark != 0
    }
}

/// What a direction's policy holds besides exceptions; a bit set, in [`maps::Workload::restricts`](crate::maps::Workload).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restricts(pub u32);

impl Restricts {
    /// There are include rules for ports: other ports are left alone.
    pub const INCLUDE_PORTS: u32 = 1;
    /// There are include rules for addresses: other addresses are left alone.
    pub const INCLUDE_ADDRESSES: u32 = 2;
    /// There are any rules for ports at all: without, no look-up is needed.
    pub const ANY_PORTS: u32 = 4;

    #[inline(always)]
    pub fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }
}

/// A workload's rules for one direction, wherever they are kept.
pub trait Rules {
    fn restricts(&self) -> Restricts;
    fn port(&self, port: u16) -> Marks;
    fn address(&self, address: &Address) -> Marks;
}

/// A connection about to be made.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub direction: Direction,
    /// The address rules look at: outbound the destination, inbound the client.
    pub address: Address,
    /// The destination port, host order.
    pub port: u16,
    /// The socket is bound to a device (`SO_BINDTODEVICE`); outbound only.
    pub bound_to_device: bool,
}

/// The answer, and the rule that gave it.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Capture = 0,
    BoundToDevice,
    Loopback,
    Unspecified,
    Multicast,
    Broadcast,
    OwnAddress,
    ExcludedPort,
    ExcludedAddress,
    PortNotIncluded,
    AddressNotIncluded,
}

impl Verdict {
    /// The rule's name, for people and scripts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::BoundToDevice => "bound_to_device",
            Self::Loopback => "loopback",
            Self::Unspecified => "unspecified",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::OwnAddress => "own_address",
            Self::ExcludedPort => "excluded_port",
            Self::ExcludedAddress => "excluded_address",
            Self::PortNotIncluded => "port_not_included",
            Self::AddressNotIncluded => "address_not_included",
        }
    }
}

/// Whoever wants to know how the answer was found.
pub trait Witness {
    /// The function looked whether the rule `rule` holds, in its order. Nothing comes after one that does.
    fn saw(&mut self, rule: Verdict, holds: bool);
}

/// Nobody looks: costs nothing.
impl Witness for () {
    #[inline(always)]
    fn saw(&mut self, _: Verdict, _: bool) {}
}

/// See the picture at the head of this module.
#[inline(always)]
pub fn decide(question: &Question, rules: &impl Rules) -> Verdict {
    decide_before(question, rules, &mut ())
}

/// [`decide`], with a witness of every step.
#[inline(always)]
pub fn decide_before(
    question: &Question,
    rules: &impl Rules,
    witness: &mut impl Witness,
) -> Verdict {
    macro_rules! leave {
        ($rule:ident if $holds:expr) => {
            let holds = $holds;
            witness.saw(Verdict::$rule, holds);
            if holds {
                return Verdict::$rule;
            }
        };
    }
    let address = &question.address;
    leave!(BoundToDevice if question.bound_to_device);
    leave!(Loopback if address.is_loopback());
    leave!(Unspecified if address.is_unspecified());
    leave!(Multicast if address.is_multicast());
    leave!(Broadcast if address.is_broadcast());
    let restricts = rules.restricts();
    let by_address = rules.address(address);
    leave!(OwnAddress if by_address.has(Marks::OWN));
    let by_port = if restricts.has(Restricts::ANY_PORTS) {
        rules.port(question.port)
    } else {
        Marks(0)
    };
    leave!(ExcludedPort if by_port.has(Marks::EXCLUDED));
    leave!(ExcludedAddress if by_address.has(Marks::EXCLUDED));
    leave!(PortNotIncluded if restricts.has(Restricts::INCLUDE_PORTS) && !by_port.has(Marks::INCLUDED));
    leave!(AddressNotIncluded if restricts.has(Restricts::INCLUDE_ADDRESSES) && !by_address.has(Marks::INCLUDED));
    Verdict::Capture
}

#[cfg(test)]
mod tests;
