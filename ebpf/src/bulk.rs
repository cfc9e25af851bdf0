//! Which services' connections are bulk, by those that were paired.

use aya_ebpf::bindings::BPF_NOEXIST;
use shunt_ebpf_common::bulk::BulkShare;
use shunt_ebpf_common::maps::{Event, ListeningPort};

use crate::maps::{BULK, SocketNote, count};

/// Is a direct connection to be paired that both workloads want accelerated?
#[inline(always)]
pub fn is_worth_pairing(note: &SocketNote) -> bool {
    let Some(known) = BULK.get_ptr_mut(&service(note)) else {
        return true;
    };
    // SAFETY: a map value; see there.
    let known = unsafe { &mut *known };
    if !known.is_mostly_bulk() {
        return true;
    }
    known.skipped = known.skipped.wrapping_add(1);
    let is_sample = known.skipped % BulkShare::SAMPLE == 0;
    if !is_sample {
        count(Event::BulkService);
    }
    is_sample
}

/// A paired connection has ended: bytes of both directions.
#[inline(always)]
pub fn ended(note: &SocketNote, by_tcp: u64, by_queue: u64) {
    let service = service(note);
    if let Some(known) = BULK.get_ptr_mut(&service) {
        // SAFETY: as above.
        unsafe { (*known).learn(by_tcp, by_queue) };
        return;
    }
    let mut first = BulkShare::default();
    first.learn(by_tcp, by_queue);
    // Somebody else's first may be there by now. One is as good as the other.
    let _ = BULK.insert(&service, &first, u64::from(BPF_NOEXIST));
}

#[inline(always)]
fn service(note: &SocketNote) -> ListeningPort {
    ListeningPort {
        workload: note.peer,
        port: u32::from(note.upstream.port),
    }
}
