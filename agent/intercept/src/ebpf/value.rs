//! What the hooks must know of a workload, as one value that is replaced as a whole.

use std::net::IpAddr;

use shunt_core::flow::Direction;
use shunt_core::rules::PolicyRules;
use shunt_core::sockets::Family;
use shunt_core::workload::OnFailure;
use shunt_ebpf_common::decision::Rules;
use shunt_ebpf_common::maps::Workload;

use crate::Enrolment;

pub(super) fn outbound_rules(enrolment: &Enrolment) -> PolicyRules<'_> {
    PolicyRules {
        policy: &enrolment.spec.outbound,
        own: &enrolment.addresses,
    }
}

/// `flags`: what is known of it already.
pub(super) fn of(enrolment: &Enrolment, rules: u32, mut flags: u32) -> Workload {
    if enrolment.spec.on_failure == OnFailure::Closed {
        flags |= Workload::FAIL_CLOSED;
    }
    if enrolment
        .listeners
        .iter()
        .any(|listener| listener.spec.direction == Direction::Inbound)
    {
        flags |= Workload::CAPTURE_INBOUND;
    }
    for (several, v4) in [(Workload::SEVERAL_V4, true), (Workload::SEVERAL_V6, false)] {
        let of_family = enrolment.addresses.iter().filter(|ip| ip.is_ipv4() == v4);
        if of_family.count() > 1 {
            flags |= several;
        }
    }
    let inbound = PolicyRules {
        policy: &enrolment.spec.inbound,
        own: &[],
    };
    let (source_v4, source_v6) = sources(&enrolment.addresses);
    Workload {
        id: enrolment.id.0,
        flags,
        outbound_ports_v4: outbound_ports(enrolment, Family::V4),
        outbound_ports_v6: outbound_ports(enrolment, Family::V6),
        restricts: [
            outbound_rules(enrolment).restricts().0,
            inbound.restricts().0,
        ],
        source_v4,
        source_v6,
        rules,
        policy: [0; 2],
    }
}

/// Every place is filled: with fewer listeners some serve more destinations.
fn outbound_ports(enrolment: &Enrolment, family: Family) -> [u16; Workload::OUTBOUND_PORTS] {
    let mut ports = [0; Workload::OUTBOUND_PORTS];
    let bound = enrolment.ports(Direction::Outbound, family);
    let listeners: Vec<u16> = bound.collect();
    for (place, port) in ports.iter_mut().zip(listeners.iter().cycle()) {
        *place = *port;
    }
    ports
}

/// The addresses that `getsockname` shows: the first of each family, in kernel form; 0 where there is none.
fn sources(addresses: &[IpAddr]) -> (u32, [u32; 4]) {
    let first = |v4: bool| addresses.iter().find(|ip| ip.is_ipv4() == v4);
    let words = |ip: Option<&IpAddr>| ip.map_or([0; 4], |ip| shunt_core::address::to_kernel(*ip).0);
    (words(first(true))[3], words(first(false)))
}
