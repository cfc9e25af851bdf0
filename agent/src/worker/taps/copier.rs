//! The bytes of a tap: what the kernel copies, put in order for each direction of each connection.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use shunt_core::address::from_kernel;
use shunt_core::snapshot::{Enrolled, Snapshot};
use shunt_core::sockets::SocketCookie;
use shunt_core::tap::{BytesSeen, LeftQueue, Leg, TapEvent};
use shunt_core::workload::{Mode, WorkloadId, WorkloadName};
use shunt_ebpf_common::maps::{Destination, Event};
use shunt_ebpf_common::tap::Copied;
use shunt_intercept::ebpf::{Message, MessageTap};
use tokio::time::Instant;

use super::super::view::View;
use super::Refusal;

/// A fifth of what one renewal lasts.
const RENEWAL: Duration = Duration::from_millis(200);
/// Directions that are remembered; some megabytes.
const MOST_DIRECTIONS: usize = 1 << 15;

/// The kernel's maps, which one tap has at a time, and the number of the next.
#[derive(Clone, Debug)]
pub(in crate::worker) struct Kernel(Rc<RefCell<(MessageTap, u32)>>);

impl Kernel {
    pub(in crate::worker) fn new(maps: MessageTap) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let first = number(now.unwrap_or_default());
        Self(Rc::new(RefCell::new((maps, first))))
    }
}

/// Where a process begins to count its taps. The kernel remembers by number how much each sender's tap has seen, and the
/// data planes before this one had numbers too. Never 0.
fn number(now: Duration) -> u32 {
    let folded = now.as_nanos() % (1 << 32);
    u32::try_from(folded).unwrap_or_default().max(1)
}

/// Copies as long as it lives and is read.
pub(super) struct Copier {
    kernel: Kernel,
    snapshot: Arc<ArcSwap<Snapshot>>,
    whose: Option<WorkloadName>,
    lease: Lease,
    renewed: Instant,
    directions: Directions,
    lost: u64,
}

/// What the kernel was told last.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Lease {
    number: u32,
    /// 0: everybody's.
    workload: u32,
    bytes: u32,
}

impl Copier {
    pub(super) fn begin(
        view: &View,
        whose: Option<WorkloadName>,
        bytes: u32,
    ) -> Result<Self, Refusal> {
        let snapshot = Arc::clone(&view.snapshot);
        let by_rules =
            |whose| enrolled(&snapshot.load(), whose).is_some_and(|it| it.mode == Mode::Iptables);
        if whose.as_ref().is_some_and(by_rules) {
            return Err(Refusal::NothingToCopy);
        }
        let kernel = view.kernel_tap.clone().ok_or(Refusal::NothingToCopy)?;
        // The view's, and ours.
        if Rc::strong_count(&kernel.0) > 2 {
            return Err(Refusal::Taken("another tap copies bytes already"));
        }
        let mut maps = kernel.0.borrow_mut();
        // What an earlier one has not read.
        while maps.0.read().is_some() {}
        let lost = maps.0.lost();
        drop(maps);
        let mut copier = Self {
            kernel,
            snapshot,
            whose,
            lease: Lease {
                number: 0,
                workload: 0,
                bytes,
            },
            renewed: Instant::now(),
            directions: Directions {
                most: u64::from(bytes),
                ..Directions::default()
            },
            lost,
        };
        copier.renew();
        Ok(copier)
    }

    /// A workload that was enrolled anew has another id, and senders are counted anew.
    fn renew(&mut self) {
        self.renewed = Instant::now();
        let snapshot = self.snapshot.load();
        let workload = match &self.whose {
            None => Some(0),
            Some(whose) => enrolled(&snapshot, whose).map(|enrolled| enrolled.id.0),
        };
        let mut kernel = self.kernel.0.borrow_mut();
        let Some(workload) = workload else {
            // It is gone, and nothing is to be seen of it.
            return kernel.0.end();
        };
        if self.lease.number == 0 || self.lease.workload != workload {
            (self.lease.number, self.lease.workload) = (kernel.1, workload);
            kernel.1 = kernel.1.checked_add(1).unwrap_or(1);
        }
        let Lease {
            number,
            workload,
            bytes,
        } = self.lease;
        if let Err(error) = kernel.0.renew(number, workload, bytes) {
            tracing::warn!(%error, "the kernel copies nothing for a tap");
        }
    }

    /// At most `most` of what was copied since the last call. True: there may be more. What is not read stays in the
    /// kernel, which counts what it has no room for.
    pub(super) fn read(&mut self, most: usize, mut tell: impl FnMut(TapEvent)) -> bool {
        if self.renewed.elapsed() >= RENEWAL {
            self.renew();
        }
        if most == 0 {
            return false;
        }
        let snapshot = self.snapshot.load_full();
        let mut kernel = self.kernel.0.borrow_mut();
        let mut read = 0;
        while read < most
            && let Some(message) = kernel.0.read()
        {
            read += 1;
            if let Some(event) = self.directions.event(&message, &snapshot) {
                tell(event);
            }
        }
        let lost = kernel.0.lost();
        if lost > self.lost {
            let messages = lost - self.lost;
            self.lost = lost;
            tell(TapEvent::Lost { lines: 0, messages });
        }
        read == most
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.kernel.0.borrow().0.end();
    }
}

/// How far each direction of each connection is.
#[derive(Default)]
struct Directions {
    known: HashMap<(SocketAddr, SocketAddr), Direction>,
    /// Bytes of each that are told.
    most: u64,
}

#[derive(Clone, Copy)]
struct Direction {
    from: (SocketCookie, u32),
    to: SocketCookie,
    /// What the sender's own count is behind ours.
    ahead: u64,
    /// Bytes so far.
    seen: u64,
}

impl Directions {
    fn event(&mut self, message: &Message, snapshot: &Snapshot) -> Option<TapEvent> {
        let head = &message.head;
        let (source, destination) = (address(head.source), address(head.destination));
        if source.ip().is_unspecified() {
            return None; // The receiver was gone before its addresses were read.
        }
        let offset = self.place(source, destination, head, message.bytes.len() as u64);
        let name = |id| {
            let enrolled = snapshot.workloads.get(&WorkloadId(id))?;
            Some(enrolled.name.to_string())
        };
        let leg = Leg {
            time_ns: since_1970(message),
            source,
            destination,
            offset,
            from: name(head.workload),
            to: name(head.peer),
        };
        if head.kind == Copied::BY_TCP {
            let reason = Event::NAMES.get(head.value as usize);
            let reason = (*reason.unwrap_or(&"unknown")).to_owned();
            return Some(TapEvent::ByTcp(LeftQueue { leg, reason }));
        }
        let room = usize::try_from(self.most.saturating_sub(offset)).unwrap_or(usize::MAX);
        let bytes = &message.bytes[..message.bytes.len().min(room)];
        (!bytes.is_empty()).then(|| TapEvent::Bytes(BytesSeen::new(leg, bytes)))
    }

    /// How many bytes of the direction came before. Several senders may follow each other in it, as the agent and then the
    /// application: they have an end in common. A later connection of the same ports has none.
    fn place(
        &mut self,
        source: SocketAddr,
        destination: SocketAddr,
        head: &Copied,
        length: u64,
    ) -> u64 {
        if self.known.len() >= MOST_DIRECTIONS {
            self.known.clear();
        }
        let from = (head.from, head.number);
        let known = self.known.get(&(source, destination)).copied();
        let same = |known: &Direction| known.from.0 == head.from || known.to == head.to;
        let mut direction = match known.filter(same) {
            Some(known) if known.from == from => known,
            Some(known) => Direction {
                ahead: known.seen.saturating_sub(head.offset),
                ..known
            },
            None => Direction {
                from,
                to: head.to,
                ahead: 0,
                seen: 0,
            },
        };
        (direction.from, direction.to) = (from, head.to);
        let at = head.offset + direction.ahead;
        direction.seen = at + length;
        self.known.insert((source, destination), direction);
        at
    }
}

/// The latest enrolment of this name.
fn enrolled(snapshot: &Snapshot, whose: &WorkloadName) -> Option<Arc<Enrolled>> {
    let mut latest_first = snapshot.workloads.values().rev();
    let found = latest_first.find(|enrolled| enrolled.name == *whose);
    found.cloned()
}

fn since_1970(message: &Message) -> u64 {
    let now = SystemTime::now();
    let then = now.checked_sub(message.age()).unwrap_or(now);
    let since = then.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn address(place: Destination) -> SocketAddr {
    SocketAddr::new(from_kernel(place.address), place.port)
}

#[cfg(test)]
mod tests;
