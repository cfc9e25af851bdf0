//! Which connections may not go directly, as listeners of the configuration are for them: what the hooks are told of that.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use aya::maps::lpm_trie::Key;
use shunt_core::address::to_kernel;
use shunt_ebpf_common::maps::{RuleKey, Workload};

use super::RuleEntry;
use crate::Enrolment;

/// Bits of [`Workload`].
#[derive(Debug, Default)]
pub(super) struct Proxied {
    /// Of every port.
    pub(super) rest: u32,
    /// Of these ports beside that.
    pub(super) ports: BTreeMap<u16, u32>,
    /// Of the client's side, where the address counts.
    destinations: Vec<SocketAddr>,
}

impl Proxied {
    pub(super) fn of(enrolment: &Enrolment) -> Self {
        let mut found = Self::default();
        let (outbound, inbound) = (&enrolment.captured.outbound, &enrolment.captured.inbound);
        if outbound.rest().is_some() {
            found.rest |= Workload::PROXIED_OUTBOUND;
        }
        if inbound.rest().is_some() {
            found.rest |= Workload::PROXIED_INBOUND;
        }
        for (to, _) in outbound.iter() {
            let bit = match to.ip().is_unspecified() {
                true => Workload::PROXIED_OUTBOUND,
                false => Workload::PROXIED_BY_ADDRESS,
            };
            *found.ports.entry(to.port()).or_default() |= bit;
            if !to.ip().is_unspecified() {
                found.destinations.push(to);
            }
        }
        for (at, _) in inbound.iter() {
            if at.ip().is_unspecified() || enrolment.addresses.contains(&at.ip()) {
                *found.ports.entry(at.port()).or_default() |= Workload::PROXIED_INBOUND;
            }
        }
        found
    }

    /// Entries of the table of destinations.
    pub(super) fn entries(&self, set: u32) -> impl Iterator<Item = RuleEntry> {
        self.destinations.iter().map(move |to| {
            let key = RuleKey::listener(set, to.port(), &to_kernel(to.ip()));
            (Key::new(RuleKey::ADDRESS_BITS, key), 1)
        })
    }
}
