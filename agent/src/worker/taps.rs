//! Whoever watches live flows: `GET /tap`.
//!
//! ```text
//!  worker threads ── goes_on, ended ──► Taps ── try_send ──► a queue for each ──► its HTTP answer
//!  ring buffer of the kernel ── every 5 ms ──► Copier ───────────┘
//! ```
//! A reader that does not keep up loses lines, which are counted and told. Nobody waits for it. What the kernel copies is
//! left there while there is no room for it; who takes nothing at all for ten seconds is copied nothing more.

mod copier;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use shunt_core::dns::QueryRecord;
use shunt_core::flow::FlowRecord;
use shunt_core::http::record::RequestRecord;
use shunt_core::tap::{FlowSeen, TapEvent, TapRequest};
use shunt_core::workload::{WorkloadName, called};
use shunt_proxy::{FlowWitness, Moment};
use shunt_telemetry::access_log::AccessLogger;
use shunt_telemetry::timestamp::rfc3339_millis;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::copier::Copier;
pub(super) use self::copier::Kernel;
use super::view::View;

/// Taps at once.
const MOST: usize = 8;
/// Lines that wait for a reader: some megabytes when they are full of bytes.
const WAITING: usize = 1024;
/// Of these, for lines about flows when there is room for no more copies; and the most copies between two looks of the
/// thread at its other work.
const FOR_FLOWS: usize = 256;
const AT_ONCE: usize = 256;
/// How long nothing is taken, by a reader for whom copies wait, until the tap ends.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often lost lines are told, at the least; and how often the kernel's copies are read.
const LOOK: Duration = Duration::from_millis(250);
const READ: Duration = Duration::from_millis(5);

/// All that run now.
#[derive(Debug, Default)]
pub(super) struct Taps {
    any: AtomicBool,
    all: Mutex<Vec<Arc<Tap>>>,
}

#[derive(Debug)]
struct Tap {
    /// `None`: everybody's flows.
    whose: Option<WorkloadName>,
    lines: mpsc::Sender<Bytes>,
    lost: AtomicU64,
}

/// Why there is no tap.
#[derive(Debug)]
pub(super) enum Refusal {
    UnknownWorkload(String),
    /// Somebody else has what there is only one of, or few.
    Taken(&'static str),
    NothingToCopy,
}

/// The access log, and whoever taps.
#[derive(Debug)]
pub(super) struct Witness {
    pub(super) log: AccessLogger,
    pub(super) taps: Arc<Taps>,
}

impl FlowWitness for Witness {
    fn ended(&self, record: &FlowRecord) {
        self.log.write(record);
        if self.is_attentive() {
            self.taps.tell(record, TapEvent::Close, true);
        }
    }

    fn reads_requests(&self) -> bool {
        self.log.is_on()
    }

    fn answered(&self, record: &RequestRecord) {
        self.log.write_request(record);
    }

    fn resolved(&self, record: &QueryRecord) {
        self.log.write_query(record);
    }

    fn is_attentive(&self) -> bool {
        self.taps.any.load(Relaxed)
    }

    fn goes_on(&self, moment: Moment, record: &FlowRecord) {
        let event = match moment {
            Moment::Opened => TapEvent::Open,
            Moment::Accelerated => TapEvent::Path,
        };
        self.taps.tell(record, event, false);
    }
}

/// Begins a tap. Must run inside a `LocalSet`. It ends when the receiver is dropped.
pub(super) fn begin(view: &View, request: &TapRequest) -> Result<mpsc::Receiver<Bytes>, Refusal> {
    let called = |wanted: &String| called(view.infos.values(), |info| &info.name, wanted);
    let whose = request.workload.as_ref().map(called).transpose();
    let whose = whose.map_err(Refusal::UnknownWorkload)?;
    let whose = whose.map(|info| info.name.clone());
    let copier = match request.bytes {
        Some(bytes) => Some(Copier::begin(view, whose.clone(), bytes)?),
        None => None,
    };
    let (lines, receiver) = mpsc::channel(WAITING);
    let tap = Arc::new(Tap {
        whose,
        lines,
        lost: AtomicU64::new(0),
    });
    view.taps.add(&tap)?;
    tokio::task::spawn_local(attend(Arc::clone(&view.taps), tap, copier));
    Ok(receiver)
}

/// Until the reader has gone, or all taps end; or, of one that copies, the reader takes nothing any more. What the copier
/// has dies with it.
async fn attend(taps: Arc<Taps>, tap: Arc<Tap>, mut copier: Option<Copier>) {
    let mut looks = interval(if copier.is_some() { READ } else { LOOK });
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut more, mut had_room) = (false, Instant::now());
    while taps.has(&tap) && !tap.lines.is_closed() {
        if more {
            yield_now().await;
        } else {
            tokio::select! {
                () = tap.lines.closed() => break,
                _ = looks.tick() => {}
            }
        }
        tap.tell_lost();
        let room = tap.room();
        if room > 0 {
            had_room = Instant::now();
        }
        match &mut copier {
            None => {}
            Some(_) if had_room.elapsed() >= PATIENCE => {
                drop(copier.take());
                // It counts as a tap as long as its lines take memory.
                let _ = tap.lines.reserve_many(WAITING).await;
                break;
            }
            Some(copier) => more = copier.read(room, |event| tap.tell(&event)),
        }
    }
    drop(copier);
    taps.remove(&tap);
}

impl Taps {
    fn tell(&self, record: &FlowRecord, event: fn(FlowSeen) -> TapEvent, ended: bool) {
        // Other workers wait for this lock.
        let about = |tap: &&Arc<Tap>| tap.is_about(record);
        let taps: Vec<Arc<Tap>> = self.lock().iter().filter(about).cloned().collect();
        if taps.is_empty() {
            return;
        }
        let time = rfc3339_millis(record.started + record.duration);
        let line = line_of(&event(FlowSeen::new(record, time, ended)));
        for tap in taps {
            tap.send(line.clone());
        }
    }

    /// Ends all.
    pub(super) fn end(&self) {
        self.lock().clear();
        self.any.store(false, Relaxed);
    }

    fn add(&self, tap: &Arc<Tap>) -> Result<(), Refusal> {
        let mut all = self.lock();
        if all.len() == MOST {
            return Err(Refusal::Taken("eight taps run already"));
        }
        all.push(Arc::clone(tap));
        self.any.store(true, Relaxed);
        Ok(())
    }

    fn remove(&self, tap: &Arc<Tap>) {
        let mut all = self.lock();
        all.retain(|other| !Arc::ptr_eq(other, tap));
        self.any.store(!all.is_empty(), Relaxed);
    }

    fn has(&self, tap: &Arc<Tap>) -> bool {
        self.lock().iter().any(|other| Arc::ptr_eq(other, tap))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Tap>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tap {
    fn is_about(&self, record: &FlowRecord) -> bool {
        self.whose.as_ref().is_none_or(|whose| {
            *whose == record.workload || Some(whose) == record.peer_workload.as_ref()
        })
    }

    /// For how many copies, now.
    fn room(&self) -> usize {
        let room = self.lines.capacity().saturating_sub(FOR_FLOWS);
        room.min(AT_ONCE)
    }

    fn tell(&self, event: &TapEvent) {
        self.send(line_of(event));
    }

    /// What is lost is told before anything else is.
    fn send(&self, line: Bytes) {
        if !self.tell_lost() || self.lines.try_send(line).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// False: there is no room to tell it.
    fn tell_lost(&self) -> bool {
        let lines = self.lost.swap(0, Relaxed);
        if lines == 0 {
            return true;
        }
        let told = self
            .lines
            .try_send(line_of(&TapEvent::Lost { lines, messages: 0 }));
        if told.is_err() {
            self.lost.fetch_add(lines, Relaxed);
        }
        told.is_ok()
    }
}

fn line_of(event: &TapEvent) -> Bytes {
    // Numbers, addresses and strings always serialize.
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    Bytes::from(line)
}

#[cfg(test)]
mod tests;
