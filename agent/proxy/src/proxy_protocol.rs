//! The PROXY protocol's header, versions 1 and 2: who the client of whoever connects is. Pure.
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::sniff::Sniffed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes.
    pub(crate) length: usize,
    /// `None`: the connection is of whoever makes it.
    pub(crate) addresses: Option<Addresses>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

const SIGNATURE_1: &[u8] = b"PROXY ";
/// The longest line of version 1, bytes.
const LONGEST_1: usize = 107;
const SIGNATURE_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Of version 2, before the addresses.
const FIXED_2: usize = 16;

/// [`Sniffed::Other`]: the bytes begin with no header.
///
/// # Errors
/// They begin with a wrong one.
pub(crate) fn header(bytes: &[u8]) -> Result<Sniffed<Header>, &'static str> {
    let begins = |signature: &[u8]| match bytes.len() < signature.len() {
        true => signature.starts_with(bytes),
        false => bytes.starts_with(signature),
    };
    if begins(SIGNATURE_2) {
        return version_2(bytes);
    }
    if begins(SIGNATURE_1) {
        return version_1(bytes);
    }
    Ok(Sniffed::Other)
}

fn version_1(bytes: &[u8]) -> Result<Sniffed<Header>, &'static str> {
    let within = &bytes[..bytes.len().min(LONGEST_1)];
    let Some(end) = within.windows(2).position(|pair| pair == b"\r\n") else {
        return match bytes.len() < LONGEST_1 {
            true => Ok(Sniffed::More),
            false => Err("the PROXY header does not end"),
        };
    };
    let wrong = "the PROXY header is wrong";
    let line = std::str::from_utf8(&bytes[..end]).map_err(|_| wrong)?;
    let length = end + 2;
    let words: Vec<&str> = line.split(' ').collect();
    let addresses = match words[1..] {
        ["UNKNOWN", ..] => None,
        [family @ ("TCP4" | "TCP6"), from, to, from_port, to_port] => {
            let addr = |ip: &str, port: &str| {
                let ip = IpAddr::from_str(ip).ok()?;
                let is_right = ip.is_ipv4() == (family == "TCP4");
                let port = port
                    .bytes()
                    .all(|byte| byte.is_ascii_digit())
                    .then_some(port)?;
                is_right.then_some(SocketAddr::new(ip, port.parse().ok()?))
            };
            Some(Addresses {
                source: addr(from, from_port).ok_or(wrong)?,
                destination: addr(to, to_port).ok_or(wrong)?,
            })
        }
        _ => return Err(wrong),
    };
    Ok(Sniffed::Found(Header { length, addresses }))
}

fn version_2(bytes: &[u8]) -> Result<Sniffed<Header>, &'static str> {
    let Some((fixed, rest)) = bytes.split_at_checked(FIXED_2) else {
        return Ok(Sniffed::More);
    };
    let (command, family) = (fixed[12], fixed[13]);
    let size = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err("the PROXY header has a version or command that nobody knows"),
    };
    let least = match family {
        _ if is_local => 0,
        0x00 => 0,
        0x11 => 12,
        0x21 => 36,
        _ => return Err("the PROXY header is not about TCP"),
    };
    if size < least {
        return Err("the PROXY header is too short");
    }
    let Some(rest) = rest.get(..size) else {
        return Ok(Sniffed::More);
    };
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    let v4 = |at: usize| {
        let octets: [u8; 4] = std::array::from_fn(|index| rest[at + index]);
        IpAddr::from(Ipv4Addr::from(octets))
    };
    let v6 = |at: usize| {
        let octets: [u8; 16] = std::array::from_fn(|index| rest[at + index]);
        IpAddr::from(Ipv6Addr::from(octets))
    };
    let addresses = match least {
        12 => Some((v4(0), port(8), v4(4), port(10))),
        36 => Some((v6(0), port(32), v6(16), port(34))),
        _ => None,
    };
    let addresses = addresses.map(|(from, from_port, to, to_port)| Addresses {
        source: SocketAddr::new(from, from_port),
        destination: SocketAddr::new(to, to_port),
    });
    Ok(Sniffed::Found(Header {
        length: FIXED_2 + size,
        addresses,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(source: &str, destination: &str) -> Option<Addresses> {
        Some(Addresses {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
        })
    }

    /// Every beginning of it says `More`, and what follows plays no part.
    #[track_caller]
    fn is(bytes: &[u8], addresses: Option<Addresses>) {
        let length = bytes.len();
        for end in 0..length {
            assert_eq!(header(&bytes[..end]), Ok(Sniffed::More), "{end}");
        }
        let found = Ok(Sniffed::Found(Header { length, addresses }));
        assert_eq!(header(bytes), found);
        assert_eq!(header(&[bytes, b"GET / HTTP/1.1\r\n\r\n"].concat()), found);
    }

    fn second(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let size = u16::try_from(body.len()).expect("short").to_be_bytes();
        [SIGNATURE_2, &[command, family], &size, body].concat()
    }

    #[test]
    fn version_1_is_a_line() {
        is(
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4000 80\r\n",
            addresses("192.0.2.1:4000", "10.0.0.1:80"),
        );
        is(
            b"PROXY TCP6 2001:db8::1 fd00::1 4000 80\r\n",
            addresses("[2001:db8::1]:4000", "[fd00::1]:80"),
        );
        is(b"PROXY UNKNOWN\r\n", None);
        for wrong in [
            "PROXY TCP4 2001:db8::1 fd00::1 1 2\r\n",
            "PROXY TCP4 192.0.2.1 10.0.0.1 +1 80\r\n",
            "PROXY TCP4 192.0.2.1 10.0.0.1 1\r\n",
            "PROXY TCP4 192.0.2.1 10.0.0.1 1 65536\r\n",
            "PROXY \r\n",
        ] {
            assert!(header(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let endless = [SIGNATURE_1, &[b' '; LONGEST_1]].concat();
        assert!(header(&endless).is_err());
    }

    #[test]
    fn version_2_is_binary() {
        let v4 = [192, 0, 2, 1, 10, 0, 0, 1, 0x0f, 0xa0, 0, 80];
        is(
            &second(0x21, 0x11, &v4),
            addresses("192.0.2.1:4000", "10.0.0.1:80"),
        );
        // With what may follow the addresses.
        let more = [&v4[..], &[4, 0, 1, 7]].concat();
        is(
            &second(0x21, 0x11, &more),
            addresses("192.0.2.1:4000", "10.0.0.1:80"),
        );
        let mut v6 = [0; 36];
        (v6[15], v6[31], v6[33], v6[35]) = (1, 2, 3, 4);
        is(&second(0x21, 0x21, &v6), addresses("[::1]:3", "[::2]:4"));
        is(&second(0x20, 0x11, &v4), None);
        is(&second(0x21, 0x00, &[]), None);
        assert!(header(&second(0x31, 0x11, &v4)).is_err());
        assert!(header(&second(0x21, 0x12, &v4)).is_err());
        assert!(header(&second(0x21, 0x11, &v4[1..])).is_err());
    }

    #[test]
    fn anything_else_is_none() {
        for other in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PRI * HTTP/2.0",
            b"\x16\x03\x01",
            b"\r\n\r\r",
        ] {
            assert_eq!(header(other), Ok(Sniffed::Other));
        }
    }
}
