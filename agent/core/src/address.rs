//! Addresses, with their side in the type.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use shunt_ebpf_common::decision::Address;

/// The address a connection came from, as the workload's namespace sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClientAddr(pub SocketAddr);

/// Where the client wanted to go, and how that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OriginalDst {
    pub addr: SocketAddr,
    pub source: Provenance,
}

/// The address the agent connected to on the client's behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UpstreamAddr(pub SocketAddr);

/// How an original destination was recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provenance {
    SkStorage,
    Handshake,
    Conntrack,
    LocalAddr,
}

impl Provenance {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SkStorage => "sk_storage",
            Self::Handshake => "handshake",
            Self::Conntrack => "conntrack",
            Self::LocalAddr => "local_addr",
        }
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for UpstreamAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `::ffff:a.b.c.d` becomes `a.b.c.d`; everything else stays. Every address that leaves a system call goes through here.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// The form of an address that the kernel programs and the decision function use.
pub fn to_kernel(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => Address::from_octets(v4.to_ipv6_mapped().octets()),
        IpAddr::V6(v6) => Address::from_octets(v6.octets()),
    }
}

/// The inverse of [`to_kernel`].
pub fn from_kernel(address: Address) -> IpAddr {
    IpAddr::from(address.octets()).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_form_survives_the_round_trip() {
        for text in ["10.1.2.3", "0.0.0.0", "::1", "fd00::1:2"] {
            let ip: IpAddr = text.parse().expect("an address");
            assert_eq!(from_kernel(to_kernel(ip)), ip);
        }
    }
}
