//! A capture policy as entries of the longest-prefix trie `RULES`.
//!
//! The trie answers with the longest prefix only, while a policy is the union of every rule that covers: so each
//! entry carries the marks of all shorter prefixes too. Port ranges are cut where any range begins or ends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use shunt_core::address::to_kernel;
use shunt_core::flow::Direction;
use shunt_core::rules::PolicyRules;
use shunt_ebpf_common::decision::{Marks, Rules};
use shunt_ebpf_common::maps::RuleKey;

use super::RuleEntry;
use super::acceleration::Possible;

/// Bits before an IPv4 address in its mapped form.
pub(super) const MAPPED_BITS: u32 = 96;

pub(super) fn compile(set: u32, direction: Direction, rules: &PolicyRules<'_>) -> Vec<RuleEntry> {
    let mut entries = ports(set, direction, rules);
    entries.extend(addresses(set, direction, rules));
    entries
}

fn ports(set: u32, direction: Direction, rules: &PolicyRules<'_>) -> Vec<RuleEntry> {
    let ranges = rules
        .policy
        .include_ports
        .iter()
        .chain(&rules.policy.exclude_ports);
    let mut cuts: BTreeSet<u32> = BTreeSet::new();
    for range in ranges {
        cuts.insert(u32::from(range.first));
        cuts.insert(u32::from(range.last) + 1);
    }
    let cuts: Vec<u32> = cuts.into_iter().collect();
    let mut entries = Vec::new();
    for pair in cuts.windows(2) {
        let first = u16::try_from(pair[0]).unwrap_or(u16::MAX);
        let marks = rules.port(first);
        if marks == Marks(0) {
            continue;
        }
        for (port, bits) in prefixes(pair[0], pair[1]) {
            let key = RuleKey::port(set, direction as u32, port);
            entries.push((Key::new(RuleKey::FIXED_BITS + bits, key), marks.0));
        }
    }
    entries
}

/// Ports that are not as all others.
pub(super) fn acceleration(set: u32, possible: &Possible<'_>) -> Vec<RuleEntry> {
    let (wish, proxied) = (possible.wish, &possible.proxied);
    let ranges = wish
        .ports
        .iter()
        .map(|(range, _)| (range.first, range.last));
    let listened = proxied.ports.keys().map(|port| (*port, *port));
    let mut cuts: BTreeSet<u32> = BTreeSet::new();
    for (first, last) in ranges.chain(listened) {
        cuts.extend([u32::from(first), u32::from(last) + 1]);
    }
    let cuts: Vec<u32> = cuts.into_iter().collect();
    let mut entries = Vec::new();
    for pair in cuts.windows(2) {
        let first = u16::try_from(pair[0]).unwrap_or(u16::MAX);
        let is_ruled = wish.ports.iter().any(|(range, _)| range.contains(first));
        let own = proxied.ports.get(&first);
        if !is_ruled && own.is_none() {
            continue;
        }
        let listeners = proxied.rest | own.copied().unwrap_or_default();
        let marks = possible.bits(wish.of(first)) | listeners;
        for (port, bits) in prefixes(pair[0], pair[1]) {
            let key = RuleKey::acceleration(set, port);
            entries.push((Key::new(RuleKey::FIXED_BITS + bits, key), marks));
        }
    }
    entries
}

/// `first..end` as aligned blocks: (first port, prefix length of 16).
fn prefixes(first: u32, end: u32) -> Vec<(u16, u32)> {
    let mut blocks = Vec::new();
    let mut at = first;
    while at < end {
        let mut size = if at == 0 {
            1 << 16
        } else {
            at & at.wrapping_neg()
        };
        while at + size > end {
            size /= 2;
        }
        blocks.push((
            u16::try_from(at).unwrap_or(u16::MAX),
            16 - size.trailing_zeros(),
        ));
        at += size;
    }
    blocks
}

fn addresses(set: u32, direction: Direction, rules: &PolicyRules<'_>) -> Vec<RuleEntry> {
    let mut direct: BTreeMap<IpNet, u32> = BTreeMap::new();
    let included = rules
        .policy
        .include_cidrs
        .iter()
        .map(|net| (*net, Marks::INCLUDED));
    let excluded = rules
        .policy
        .exclude_cidrs
        .iter()
        .map(|net| (*net, Marks::EXCLUDED));
    let own = rules.own.iter().map(|ip| (IpNet::from(*ip), Marks::OWN));
    for (net, mark) in included.chain(excluded).chain(own) {
        *direct.entry(net.trunc()).or_default() |= mark;
    }
    // A short IPv6 prefix covers the mapped IPv4 range too, which it does not mean: this entry stands in between.
    if direct.keys().any(|net| matches!(net, IpNet::V6(_))) {
        direct
            .entry(IpNet::V4(ipnet::Ipv4Net::default()))
            .or_default();
    }
    direct
        .keys()
        .filter(|net| !is_mapped(net))
        .map(|net| {
            let marks = std::iter::successors(Some(*net), IpNet::supernet)
                .filter_map(|cover| direct.get(&cover))
                .fold(0, |all, marks| all | marks);
            let bits = match net {
                IpNet::V4(v4) => MAPPED_BITS + u32::from(v4.prefix_len()),
                IpNet::V6(v6) => u32::from(v6.prefix_len()),
            };
            let address = to_kernel(net.network());
            let key = RuleKey::address(set, direction as u32, &address);
            (Key::new(RuleKey::FIXED_BITS + bits, key), marks)
        })
        .collect()
}

/// An IPv6 prefix inside `::ffff:0:0/96`: every address there is IPv4 to us.
fn is_mapped(net: &IpNet) -> bool {
    match net.network() {
        IpAddr::V6(v6) => {
            v6.to_ipv4_mapped().is_some() && u32::from(net.prefix_len()) >= MAPPED_BITS
        }
        IpAddr::V4(_) => false,
    }
}

/// The entry that the kernel's look-up of a whole port or address finds.
pub(super) fn longest<'a>(entries: &'a [RuleEntry], wanted: &RuleKey) -> Option<&'a RuleEntry> {
    let wanted = bytes(wanted);
    let bit = |bytes: &[u8], at: u32| bytes[at as usize / 8] >> (7 - at % 8) & 1;
    let covers = |(entry, _): &&RuleEntry| {
        let (held, length) = (bytes(&entry.data()), entry.prefix_len());
        (0..length).all(|at| bit(&held, at) == bit(&wanted, at))
    };
    entries
        .iter()
        .filter(covers)
        .max_by_key(|(entry, _)| entry.prefix_len())
}

fn bytes(key: &RuleKey) -> Vec<u8> {
    [key.set, key.table]
        .iter()
        .chain(&key.data)
        .flat_map(|word| word.to_ne_bytes())
        .collect()
}

#[cfg(test)]
mod tests;
