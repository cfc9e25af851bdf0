//! What policy says of a connection, by the rules of one of its ends.

use shunt_ebpf_common::decision::{Address, Direction};
use shunt_ebpf_common::maps::Workload;
use shunt_ebpf_common::policy::{Peer, PolicyKey, PolicyRule, Selected};

use crate::maps::{POLICY, SELECTED};

pub enum Decision {
    Allowed,
    /// By the rule with this index in the configuration, of that direction.
    Denied(u32, Direction),
    /// The rules do not fit, or speak of what is not known yet.
    Unknown,
}

/// `address_is_sure`: is it known which address the peer has?
#[inline(always)]
pub fn decide(
    workload: &Workload,
    direction: Direction,
    peer: &Peer,
    address_is_sure: bool,
    port: u16,
) -> Decision {
    let policy = workload.policy[direction as usize];
    if policy & Workload::POLICY_ELSEWHERE != 0
        || policy & Workload::POLICY_BY_ADDRESS != 0 && !address_is_sure
    {
        return Decision::Unknown;
    }
    let count = policy & Workload::POLICY_RULES;
    let [a, b, c, d] = peer.address.0.map(u64::from);
    let place = PolicyKey::new(workload.rules, direction, count);
    let verdict = shunt_policy(
        u64::from(place.set) << 32 | u64::from(place.place),
        u64::from(peer.workload) << 32 | u64::from(port),
        a << 32 | b,
        c << 32 | d,
    );
    match verdict as u32 {
        ALLOWED => Decision::Allowed,
        MISSING => Decision::Unknown,
        rule => Decision::Denied(rule, direction),
    }
}

const ALLOWED: u32 = u32::MAX;
const MISSING: u32 = u32::MAX - 1;

/// The index of the rule that denies, or one of the constants above. `place`: the end of the rules. A function of its own
/// that takes numbers only: the verifier goes through it once, not once for each way that leads here.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn shunt_policy(place: u64, peer_and_port: u64, high: u64, low: u64) -> u64 {
    let end = place as u32;
    let words = [
        (high >> 32) as u32,
        high as u32,
        (low >> 32) as u32,
        low as u32,
    ];
    let peer = Peer {
        workload: (peer_and_port >> 32) as u32,
        address: Address(words),
    };
    for index in 0..PolicyRule::MOST as u32 {
        if index >= end & Workload::POLICY_RULES {
            break;
        }
        let key = PolicyKey {
            set: (place >> 32) as u32,
            place: end & !Workload::POLICY_RULES | index,
        };
        // SAFETY: an entry is written once, and removed long after it was in force.
        let Some(rule) = (unsafe { POLICY.get(&key) }) else {
            return u64::from(MISSING);
        };
        if rule.matches(&peer, peer_and_port as u16, is_selected) {
            return match rule.denies {
                0 => u64::from(ALLOWED),
                _ => u64::from(rule.index),
            };
        }
    }
    u64::from(ALLOWED)
}

#[inline(always)]
fn is_selected(selected: &Selected) -> bool {
    // SAFETY: only looked for.
    unsafe { SELECTED.get(selected) }.is_some()
}
