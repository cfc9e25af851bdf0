//! Which endpoint of a service a connection gets.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use shunt_ebpf_common::maps::Destination;
use shunt_ebpf_common::services::EndpointKey;

use crate::maps::{ENDPOINTS, SERVICES, TURNS};

pub enum Chosen {
    /// It is no service's address.
    NoService,
    /// The service has no endpoint.
    Nobody,
    Endpoint(Destination),
}

#[inline(always)]
pub fn choose(destination: &Destination) -> Chosen {
    // SAFETY: copied at once.
    let Some(service) = (unsafe { SERVICES.get(destination) }).copied() else {
        return Chosen::NoService;
    };
    if service.count == 0 {
        return Chosen::Nobody;
    }
    let turn = match service.turns {
        // SAFETY: the helper takes no argument.
        0 => unsafe { bpf_get_prandom_u32() },
        turns => next(turns),
    };
    let key = EndpointKey {
        set: service.endpoints,
        index: turn % service.count,
    };
    // SAFETY: copied at once. Missing only when the service changed since it was read.
    match unsafe { ENDPOINTS.get(&key) } {
        Some(endpoint) => Chosen::Endpoint(*endpoint),
        None => Chosen::Nobody,
    }
}

/// Two CPUs at once may get the same turn: the target has no atomic that gives the old value.
#[inline(always)]
fn next(turns: u32) -> u32 {
    let Some(counter) = TURNS.get_ptr_mut(&turns) else {
        return 0;
    };
    // SAFETY: a map value.
    unsafe {
        let turn = *counter;
        *counter = turn.wrapping_add(1);
        turn
    }
}
