//! Proof of life: each worker thread writes the time into its slot of a page shared with the supervisor, which lets
//! the kernel's gates stay closed only while every slot is fresh.
//!
//! ```text
//! worker thread --200 ms--> slot --250 ms--> supervisor --> gate (eBPF map, xt_recent) --> hooks
//!                           stale: 0.6 s                    stale: 1 s
//! ```
//! A worker that stops answering opens the gates within 0.25 + 0.6 + 1 s.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::time::{ClockId, clock_gettime};

/// How old a slot may be.
pub const STALE: Duration = Duration::from_millis(600);

/// The page; both processes hold the same memory file.
#[derive(Debug)]
pub struct Heartbeats {
    page: File,
    slots: usize,
}

impl Heartbeats {
    /// A new page of `slots` slots, none of which has ever beaten.
    ///
    /// # Errors
    /// No memory file can be made.
    pub fn new(slots: usize) -> io::Result<Self> {
        let page = File::from(rustix::fs::memfd_create(
            "shunt-heartbeats",
            MemfdFlags::CLOEXEC,
        )?);
        page.set_len((slots * size_of::<u64>()) as u64)?;
        Ok(Self { page, slots })
    }

    /// The page as received from the supervisor.
    pub fn from_fd(page: OwnedFd, slots: usize) -> Self {
        Self {
            page: File::from(page),
            slots,
        }
    }

    /// # Errors
    /// Descriptors ran out.
    pub fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.page.try_clone()?.into())
    }

    /// # Errors
    /// Descriptors ran out.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            page: self.page.try_clone()?,
            slots: self.slots,
        })
    }

    /// # Errors
    /// The page cannot be written, which a memory file never says.
    pub fn beat(&self, slot: usize) -> io::Result<()> {
        self.page
            .write_all_at(&monotonic_ns().to_ne_bytes(), offset(slot))
    }

    /// The oldest slot's age; `None` when one never beat.
    pub fn oldest(&self) -> Option<Duration> {
        let now = monotonic_ns();
        let mut oldest = Duration::ZERO;
        for slot in 0..self.slots {
            let mut beat = [0; 8];
            self.page.read_exact_at(&mut beat, offset(slot)).ok()?;
            match u64::from_ne_bytes(beat) {
                0 => return None,
                beat => oldest = oldest.max(Duration::from_nanos(now.saturating_sub(beat))),
            }
        }
        Some(oldest)
    }

    pub fn alive(&self) -> bool {
        self.oldest().is_some_and(|age| age < STALE)
    }
}

/// The clock that neither steps nor runs while the host is suspended.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

fn offset(slot: usize) -> u64 {
    (slot * size_of::<u64>()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alive_only_when_every_slot_beats() {
        let page = Heartbeats::new(2).expect("a page");
        assert!(!page.alive());
        page.beat(0).expect("a beat");
        assert!(!page.alive(), "slot 1 never beat");
        page.beat(1).expect("a beat");
        assert!(page.alive());
    }
}
