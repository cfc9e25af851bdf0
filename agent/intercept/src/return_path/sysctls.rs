//! Settings of a namespace that are changed while it is served.

use std::fs;

use nix::unistd::{AccessFlags, access};

/// A setting of the namespace that is changed while it is served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sysctl {
    /// In the rule's priority: it was us who changed it.
    pub(super) bit: u32,
    pub(super) path: &'static str,
    /// Only this, the kernel's default, is changed.
    pub(super) default: &'static str,
    pub(super) ours: &'static str,
}

/// What the path itself needs. The first carries answers back, the others refusals.
pub(super) const SYSCTLS: [Sysctl; 3] = [
    switch(1, "/proc/sys/net/ipv4/tcp_fwmark_accept"),
    switch(2, "/proc/sys/net/ipv4/fwmark_reflect"),
    switch(4, "/proc/sys/net/ipv6/fwmark_reflect"),
];
/// What is remembered of connections that are over, in iptables mode, where REDIRECT gives all connections of a
/// namespace one destination and their source ports come back soon.
pub(super) const FORGETTING: [Sysctl; 3] = [
    // A port is taken until connection tracking forgets it. With its two minutes there is room for 540 connections a
    // second (seen: timeouts at 1,400); two seconds are enough for whatever comes late on loopback.
    Sysctl {
        bit: 8,
        path: "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait",
        default: "120",
        ours: "2",
    },
    // What ended in a reset is over at once: a later connection from the same port would be led where that one went,
    // to a listener that has gone since.
    Sysctl {
        bit: 16,
        path: "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close",
        default: "10",
        ours: "0",
    },
    CLOCK,
];
/// Without an offset of its own for each destination: a SYN to the agent's end that is in TIME_WAIT, for another
/// destination from the same port, is younger than what was there, and answered. See docs/adr/0013.
pub(super) const CLOCK: Sysctl = Sysctl {
    bit: 32,
    path: "/proc/sys/net/ipv4/tcp_timestamps",
    default: "1",
    ours: "2",
};
pub(super) const ALL_BITS: u32 = 63;

const fn switch(bit: u32, path: &'static str) -> Sysctl {
    Sysctl {
        bit,
        path,
        default: "0",
        ours: "1",
    }
}

/// Will connections of this thread's namespace have timestamps that grow from one to the next, whatever their
/// destinations, once [`super::ensure`] is done?
pub(crate) fn clock_can_be_common() -> bool {
    let writable = || access(CLOCK.path, AccessFlags::W_OK).is_ok();
    is(CLOCK.path, CLOCK.ours) || is(CLOCK.path, CLOCK.default) && writable()
}

/// A sysctl that does not exist is nothing.
pub(super) fn is(sysctl: &str, value: &str) -> bool {
    fs::read_to_string(sysctl).is_ok_and(|now| now.trim() == value)
}
