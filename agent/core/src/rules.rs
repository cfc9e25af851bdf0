//! A workload's capture policy, as the decision function wants it. This is the reference: the maps of the eBPF
//! backend and the rendered iptables rules are tested against it.

use std::net::IpAddr;

use shunt_ebpf_common::decision::{Address, Marks, Restricts, Rules};

use crate::address::from_kernel;
use crate::workload::{CapturePolicy, PortRange};

/// One direction of one workload.
#[derive(Clone, Copy, Debug)]
pub struct PolicyRules<'a> {
    pub policy: &'a CapturePolicy,
    /// The workload's own addresses; outbound only.
    pub own: &'a [IpAddr],
}

impl Rules for PolicyRules<'_> {
    fn restricts(&self) -> Restricts {
        let mut bits = 0;
        if !self.policy.include_ports.is_empty() {
            bits |= Restricts::INCLUDE_PORTS | Restricts::ANY_PORTS;
        }
        if !self.policy.exclude_ports.is_empty() {
            bits |= Restricts::ANY_PORTS;
        }
        if !self.policy.include_cidrs.is_empty() {
            bits |= Restricts::INCLUDE_ADDRESSES;
        }
        Restricts(bits)
    }

    fn port(&self, port: u16) -> Marks {
        let holds = |ranges: &[PortRange]| ranges.iter().any(|range| range.contains(port));
        let included = if holds(&self.policy.include_ports) {
            Marks::INCLUDED
        } else {
            0
        };
        let excluded = if holds(&self.policy.exclude_ports) {
            Marks::EXCLUDED
        } else {
            0
        };
        Marks(included | excluded)
    }

    fn address(&self, address: &Address) -> Marks {
        let ip = from_kernel(*address);
        let holds = |nets: &[ipnet::IpNet]| nets.iter().any(|net| net.contains(&ip));
        let included = if holds(&self.policy.include_cidrs) {
            Marks::INCLUDED
        } else {
            0
        };
        let excluded = if holds(&self.policy.exclude_cidrs) {
            Marks::EXCLUDED
        } else {
            0
        };
        let own = if self.own.contains(&ip) {
            Marks::OWN
        } else {
            0
        };
        Marks(included | excluded | own)
    }
}
