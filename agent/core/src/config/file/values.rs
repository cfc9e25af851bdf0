//! Single values: text in, value or message out. A message says what is wrong and, in brackets, what is allowed.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use crate::address::canonical;
use crate::config::AccessLog;
use crate::workload::PortRange;

/// Longest name of a workload or namespace; DNS-1123's.
const MAX_NAME: usize = 253;
/// `sun_path` of a unix socket holds 108 bytes, the last of which is zero.
const MAX_SOCKET_PATH: usize = 107;
/// Bytes. Larger ones are typing errors: `off` says never.
const MAX_SIZE: u64 = 1 << 40;
/// A year. Longer ones are typing errors, and may not fit a timer.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

type Parsed<T> = Result<T, String>;

/// One word of a few.
pub(super) fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Parsed<T> {
    choices
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
            format!("`{text}` is not known here ({})", words.join(" | "))
        })
}

/// `250ms`, `10s`, `10m`, `1h`.
///
/// # Errors
/// It is not one, for people.
pub fn duration(text: &str) -> Parsed<Duration> {
    let wrong =
        || format!("`{text}` is not a duration (a number with ms, s, m or h, at most 8760h)");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let millis_per_unit = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 3600 * 1000,
        _ => return Err(wrong()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(millis_per_unit))
        .map(Duration::from_millis)
        .filter(|duration| *duration <= MAX_DURATION)
        .ok_or_else(wrong)
}

/// A duration that may not be zero.
pub(super) fn positive_duration(text: &str) -> Parsed<Duration> {
    match duration(text)? {
        Duration::ZERO => Err(format!("`{text}` is too short (it must be more than 0s)")),
        duration => Ok(duration),
    }
}

/// `off`, or bytes: `65536`, `64KiB`, `1MiB`, `1GiB`.
pub(super) fn size_or_off(text: &str) -> Parsed<Option<u64>> {
    if text == "off" {
        return Ok(None);
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let bytes = number.parse::<u64>().ok().zip(unit);
    bytes
        .and_then(|(number, unit)| number.checked_mul(unit))
        .filter(|bytes| *bytes <= MAX_SIZE)
        .map(Some)
        .ok_or_else(|| {
            format!("`{text}` is not a size (off, or a number alone or with KiB, MiB or GiB, at most 1024GiB)")
        })
}

/// A decimal number within `range`.
pub(super) fn number(text: &str, range: RangeInclusive<u64>) -> Parsed<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text
        .parse()
        .ok()
        .filter(|number| digits && range.contains(number));
    number.ok_or_else(|| {
        format!(
            "`{text}` is not a number from {} to {}",
            range.start(),
            range.end()
        )
    })
}

pub(super) fn port(text: &str) -> Parsed<u16> {
    number(text, 0..=65535)
        .ok()
        .and_then(|port| u16::try_from(port).ok())
        .ok_or_else(|| format!("`{text}` is not a port (0 to 65535; 0 is any free one)"))
}

/// Not zero, and one less than the largest: the delivery mark is the next number.
pub(super) fn mark(text: &str) -> Parsed<u32> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) if !digits.starts_with('+') => u32::from_str_radix(digits, 16).ok(),
        None if !text.starts_with('+') => text.parse().ok(),
        _ => None,
    };
    parsed
        .filter(|mark| (1..u32::MAX).contains(mark))
        .ok_or_else(|| format!("`{text}` is not a mark (1 to 0xfffffffe, decimal or with 0x)"))
}

/// Is `text` a filter for log events: a level, or several of `TARGET=LEVEL` and at most one level, separated by commas?
///
/// # Errors
/// What is wrong with it.
pub fn check_level(text: &str) -> Result<(), String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let is_target = |word: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-' | '.');
        !word.is_empty() && word.chars().all(allowed)
    };
    let is_right = |directive: &str| match directive.split_once('=') {
        Some((target, level)) => is_target(target) && is_level(level),
        None => is_level(directive),
    };
    if text.split(',').all(|directive| is_right(directive.trim())) {
        return Ok(());
    }
    Err(format!(
        "`{text}` is not a log level (off | error | warn | info | debug | trace, or with targets as \
         info,shunt_proxy=debug)"
    ))
}

pub(super) fn access_log(text: &str) -> Parsed<AccessLog> {
    match text {
        "stdout" => Ok(AccessLog::Stdout),
        "off" => Ok(AccessLog::Off),
        path => absolute_path(path).map(AccessLog::File).map_err(|_| {
            format!("`{text}` is no place for the access log (stdout | off | /absolute/path)")
        }),
    }
}

pub(super) fn absolute_path(text: &str) -> Parsed<PathBuf> {
    path(text)
        .filter(|path| path.is_absolute())
        .ok_or_else(|| format!("`{text}` is not an absolute path (it must begin with /)"))
}

pub(super) fn socket_path(text: &str) -> Parsed<PathBuf> {
    let path = absolute_path(text)?;
    if text.len() > MAX_SOCKET_PATH {
        return Err(format!(
            "`{text}` is too long for a socket ({MAX_SOCKET_PATH} bytes)"
        ));
    }
    Ok(path)
}

/// The admin API changes the node: it is never offered to the network.
pub(super) fn loopback_address(text: &str) -> Parsed<SocketAddr> {
    let address: SocketAddr = text.parse().map_err(|_| {
        format!("`{text}` is not an address with a port (as 127.0.0.1:15000 or [::1]:15000)")
    })?;
    if !address.ip().to_canonical().is_loopback() {
        return Err(format!(
            "`{text}` is not a loopback address (127.0.0.0/8 or ::1)"
        ));
    }
    Ok(address)
}

/// What a service is reached at, or one of its endpoints: an address of the network, the same in every namespace.
pub(super) fn service_address(text: &str) -> Parsed<SocketAddr> {
    let address: SocketAddr = text.parse().map_err(|_| {
        format!("`{text}` is not an address with a port (as 10.96.0.10:80 or [fd00::10]:80)")
    })?;
    let address = canonical(address);
    let wrong = match address.ip() {
        _ if address.port() == 0 => "a port is 1 to 65535",
        ip if ip.is_loopback() => "it is a loopback address: each namespace has its own",
        ip if ip.is_multicast() => "it is a multicast address",
        IpAddr::V4(ip) if ip.octets()[0] == 0 => "it is no address of a host",
        IpAddr::V4(ip) if ip.is_broadcast() => "it is a broadcast address",
        IpAddr::V6(ip) if ip.is_unspecified() => "it is no address of a host",
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            "it is a link-local address: each interface has its own"
        }
        _ => return Ok(address),
    };
    Err(format!("`{text}` cannot be used ({wrong})"))
}

/// A workload's or a namespace's name. It is a part of the admin API's paths and of metrics' labels.
///
/// # Errors
/// What is wrong with it.
pub fn name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    if starts && text.len() <= MAX_NAME && text.chars().all(allowed) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{text}` is not a name (1 to {MAX_NAME} of A-Z a-z 0-9 . _ -, beginning with a letter, digit or _)"
    ))
}

/// A name under `/run/netns`, or an absolute path.
pub(super) fn netns(text: &str) -> Parsed<PathBuf> {
    let wrong = || {
        format!(
            "`{text}` is not a network namespace (a name under /run/netns, or an absolute path)"
        )
    };
    let given = path(text).ok_or_else(wrong)?;
    if given.is_absolute() {
        return Ok(given);
    }
    match given.components().collect::<Vec<_>>()[..] {
        [Component::Normal(name)] if !text.contains('/') => Ok(Path::new("/run/netns").join(name)),
        _ => Err(wrong()),
    }
}

/// Absolute, or relative to the cgroup2 mount; never out of it.
pub(super) fn cgroup(text: &str) -> Parsed<PathBuf> {
    let climbs = |path: &PathBuf| path.components().any(|part| part == Component::ParentDir);
    path(text).filter(|path| !climbs(path)).ok_or_else(|| {
        format!("`{text}` is not a cgroup (a path relative to the cgroup2 mount, or absolute, without ..)")
    })
}

pub(super) fn port_range(text: &str) -> Parsed<PortRange> {
    // No sign and no blanks: `+22` and `22 - 30` parse, but are nobody's intention.
    let plain = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'-');
    text.parse()
        .ok()
        .filter(|_| plain)
        .ok_or_else(|| format!("`{text}` is not a port (1 to 65535) or a range (as 8000-8100)"))
}

/// A network, or an address alone; bits after the prefix are cleared, IPv4 in IPv6's coat is IPv4.
pub(super) fn cidr(text: &str) -> Parsed<IpNet> {
    let net = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| format!("`{text}` is not a network (as 10.9.0.0/16, fd00::/8 or 10.0.0.1)"))?;
    let net = net.trunc();
    if let IpNet::V6(v6) = net
        && v6.prefix_len() >= 96
        && let Some(address) = v6.addr().to_ipv4_mapped()
        && let Ok(v4) = Ipv4Net::new(address, v6.prefix_len() - 96)
    {
        return Ok(v4.into());
    }
    Ok(net)
}

fn path(text: &str) -> Option<PathBuf> {
    let usable = !text.is_empty() && !text.contains(char::is_control);
    usable.then(|| PathBuf::from(text))
}
