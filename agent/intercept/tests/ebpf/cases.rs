//! Random policies and questions, most of them at the edges: ends of ranges and prefixes, own addresses, the kinds of
//! address that are never captured.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use shunt_core::workload::{CapturePolicy, PortRange};

/// Where kinds of address begin and end, and the addresses beside.
const V4_EDGES: [[u8; 4]; 16] = [
    [0, 0, 0, 0],
    [0, 255, 255, 255],
    [1, 0, 0, 0],
    [126, 255, 255, 255],
    [127, 0, 0, 1],
    [127, 255, 255, 255],
    [128, 0, 0, 0],
    [223, 255, 255, 255],
    [224, 0, 0, 0],
    [239, 255, 255, 255],
    [240, 0, 0, 0],
    [255, 255, 255, 254],
    [255, 255, 255, 255],
    [10, 77, 0, 1],
    [10, 77, 0, 2],
    [169, 254, 1, 1],
];
const V6_EDGES: [&str; 12] = [
    "::",
    "::1",
    "::2",
    "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "ff00::",
    "ff02::1",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "fe80::1",
    "::fffe:ffff:ffff",
    "::1:0:0:0",
    "fd77::1",
    "fd77::2",
];

/// SplitMix64. A run can be repeated with `SHUNT_SEED`.
#[derive(Debug)]
pub struct Chance(u64);

impl Chance {
    pub fn new() -> Self {
        let given = std::env::var("SHUNT_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let now = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(1, |now| now.as_secs())
        };
        Self(given.unwrap_or_else(now))
    }

    pub fn seed(&self) -> u64 {
        self.0
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// Ports at which ranges like to end.
    pub fn port(&mut self, edges: &[u16]) -> u16 {
        self.of(edges)
    }

    pub fn ip(&mut self) -> IpAddr {
        match self.below(7) {
            0 => IpAddr::from([10, 0, self.below(3) as u8, self.below(3) as u8]),
            1 => IpAddr::from([
                0xfd00,
                0,
                0,
                0,
                0,
                0,
                self.below(3) as u16,
                self.below(3) as u16,
            ]),
            2 => IpAddr::from(self.of(&V4_EDGES)),
            3 => self.of(&V6_EDGES).parse().expect("an address"),
            4 | 5 => Ipv4Addr::from_bits(self.next() as u32).into(),
            _ => {
                let bits = u128::from(self.next()) << 64 | u128::from(self.next());
                Ipv6Addr::from_bits(bits).to_canonical()
            }
        }
    }

    fn net(&mut self) -> IpNet {
        // An IPv6 prefix in the mapped range means no IPv4 address.
        if self.one_in(12) {
            let mapped = Ipv4Addr::from_bits(self.next() as u32).to_ipv6_mapped();
            let bits = 90 + self.below(39) as u8;
            return IpNet::new(mapped.into(), bits).expect("in range").trunc();
        }
        let ip = self.ip();
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let bits = match self.below(3) {
            0 => most - self.below(9) as u8,
            _ => self.below(usize::from(most) + 1) as u8,
        };
        IpNet::new(ip, bits).expect("in range").trunc()
    }

    fn range(&mut self, edges: &[u16]) -> PortRange {
        let (a, b) = (self.port(edges), self.port(edges));
        PortRange {
            first: a.min(b),
            last: if self.one_in(2) { a.min(b) } else { a.max(b) },
        }
    }

    pub fn policy(&mut self, edges: &[u16]) -> CapturePolicy {
        let mut policy = CapturePolicy::default();
        for ranges in [&mut policy.include_ports, &mut policy.exclude_ports] {
            let count = self.below(5).saturating_sub(1);
            ranges.extend((0..count).map(|_| self.range(edges)));
        }
        for nets in [&mut policy.include_cidrs, &mut policy.exclude_cidrs] {
            let count = self.below(6).saturating_sub(2);
            nets.extend((0..count).map(|_| self.net()));
        }
        policy
    }

    /// An address that is likely to be a border of `policy`.
    pub fn address(&mut self, policy: &CapturePolicy, own: &[IpAddr]) -> IpAddr {
        let nets: Vec<IpNet> = [
            policy.include_cidrs.as_slice(),
            policy.exclude_cidrs.as_slice(),
        ]
        .concat();
        match self.below(8) {
            0 if !own.is_empty() => self.of(own),
            1..=4 if !nets.is_empty() => {
                let net = self.of(&nets);
                let border = if self.one_in(2) {
                    net.network()
                } else {
                    net.broadcast()
                };
                beside(border, self.below(3)).to_canonical()
            }
            _ => self.ip(),
        }
    }

    /// A port that is likely to be an end of a range of `policy`.
    pub fn question_port(&mut self, policy: &CapturePolicy, edges: &[u16]) -> u16 {
        let ranges: Vec<PortRange> = [
            policy.include_ports.as_slice(),
            policy.exclude_ports.as_slice(),
        ]
        .concat();
        if ranges.is_empty() || self.one_in(4) {
            return if self.one_in(3) {
                self.next() as u16
            } else {
                self.port(edges)
            };
        }
        let range = self.of(&ranges);
        let end = if self.one_in(2) {
            range.first
        } else {
            range.last
        };
        match self.below(3) {
            0 => end.wrapping_sub(1),
            1 => end,
            _ => end.wrapping_add(1),
        }
    }
}

/// The address before, this one, or the next.
fn beside(ip: IpAddr, which: usize) -> IpAddr {
    match (ip, which) {
        (IpAddr::V4(v4), 0) => Ipv4Addr::from_bits(v4.to_bits().wrapping_sub(1)).into(),
        (IpAddr::V4(v4), 1) => Ipv4Addr::from_bits(v4.to_bits().wrapping_add(1)).into(),
        (IpAddr::V6(v6), 0) => Ipv6Addr::from_bits(v6.to_bits().wrapping_sub(1)).into(),
        (IpAddr::V6(v6), 1) => Ipv6Addr::from_bits(v6.to_bits().wrapping_add(1)).into(),
        _ => ip,
    }
}

/// Powers of two and their neighbours, and a few in a row.
pub fn port_edges() -> Vec<u16> {
    let mut edges: Vec<u16> = (0..16)
        .flat_map(|bit| {
            let power = 1_u16 << bit;
            [power - 1, power, power + 1]
        })
        .chain(8000..8016)
        .chain([22, 80, 443, 65534, 65535])
        .filter(|port| *port != 0)
        .collect();
    edges.sort_unstable();
    edges.dedup();
    edges
}
