//! sk_lookup in the workload's namespace: a new connection looks for its listener. One instance per workload, since
//! the hook cannot tell in which namespace it runs and `bpf_sk_assign` does not check.

use core::ptr::read_volatile;

use aya_ebpf::bindings::{
    bpf_sk_lookup,
    sk_action::{SK_DROP, SK_PASS},
};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use shunt_ebpf_common::decision::{Address, Direction, Question};
use shunt_ebpf_common::maps::{Event, FlowOwner, ListeningPort, OwnFlow, Workload};

use crate::maps::{LISTENERS, LISTENING, OWN_FLOWS, WORKLOADS, count, gate_is_fresh};
use crate::rules::captures;

/// The workload's namespace; set when this instance is loaded.
#[unsafe(no_mangle)]
static NETNS_COOKIE: u64 = 0;

const IPPROTO_TCP: u32 = 6;
const AF_INET: u32 = 2;

/// By the agent, or by the hooks of a workload that is still enrolled.
#[inline(always)]
fn is_decided(flow: &OwnFlow) -> bool {
    // SAFETY: copied at once.
    let Some(owner) = (unsafe { OWN_FLOWS.get(flow) }).copied() else {
        return false;
    };
    // SAFETY: see `connect`.
    owner == FlowOwner::AGENT
        || unsafe { WORKLOADS.get(&owner.key) }.is_some_and(|client| client.id == owner.workload)
}

#[sk_lookup]
pub fn shunt_sk_lookup(ctx: SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    // SAFETY: the program's context.
    if unsafe { (*lookup).protocol } != IPPROTO_TCP {
        return SK_PASS;
    }
    let flow = flow_of(lookup);
    // The workload to itself.
    if flow.source == flow.destination
        || flow.destination.is_loopback()
        || flow.source.is_loopback()
    {
        return SK_PASS;
    }
    // SAFETY: our own static, changed by the loader.
    let cookie = unsafe { read_volatile(&raw const NETNS_COOKIE) };
    // SAFETY: see `connect`.
    let Some(workload) = (unsafe { WORKLOADS.get(&cookie) }) else {
        return SK_PASS;
    };
    if workload.flags & Workload::CAPTURE_INBOUND == 0 {
        return SK_PASS;
    }
    if is_decided(&flow) {
        return SK_PASS;
    }
    let port = ListeningPort {
        workload: workload.id,
        port: u32::from(flow.destination_port),
    };
    // SAFETY: as above. Nobody listens: the kernel refuses, as without us.
    if unsafe { LISTENING.get(&port) }.is_none() {
        return SK_PASS;
    }
    let question = Question {
        direction: Direction::Inbound,
        address: flow.source,
        port: flow.destination_port,
        bound_to_device: false,
    };
    if !captures(workload, &question) {
        count(Event::InboundBypassed);
        return SK_PASS;
    }
    if !gate_is_fresh() {
        count(Event::GateStale);
        return failed(workload);
    }
    let family = u32::from(!flow.source.is_v4());
    if LISTENERS.redirect_sk_lookup(&ctx, family, 0).is_err() {
        count(Event::ListenerGone);
        return failed(workload);
    }
    count(Event::InboundCaptured);
    SK_PASS
}

#[inline(always)]
fn failed(workload: &Workload) -> u32 {
    if workload.flags & Workload::FAIL_CLOSED == 0 {
        SK_PASS
    } else {
        SK_DROP
    }
}

#[inline(always)]
fn flow_of(lookup: *mut bpf_sk_lookup) -> OwnFlow {
    // SAFETY: the program's context; word by word, as the verifier wants it.
    unsafe {
        let (source, destination) = if (*lookup).family == AF_INET {
            (
                Address::v4((*lookup).remote_ip4),
                Address::v4((*lookup).local_ip4),
            )
        } else {
            let remote = (&raw const (*lookup).remote_ip6).cast::<u32>();
            let local = (&raw const (*lookup).local_ip6).cast::<u32>();
            (words(remote), words(local))
        };
        OwnFlow {
            source,
            destination,
            source_port: u16::from_be((*lookup).remote_port),
            destination_port: (*lookup).local_port as u16,
        }
    }
}

/// # Safety
/// `first` points to four words of the context.
#[inline(always)]
unsafe fn words(first: *const u32) -> Address {
    // SAFETY: the caller's promise.
    unsafe {
        Address([
            read_volatile(first),
            read_volatile(first.add(1)),
            read_volatile(first.add(2)),
            read_volatile(first.add(3)),
        ])
    }
}
