//! The data plane's end of what the hooks tell of direct connections.
#![expect(unsafe_code, reason = "the ring buffer has bytes, the event is a type")]

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use aya::maps::{Map, MapData, RingBuf};
use shunt_ebpf_common::direct::DirectEvent;

use super::clock;

/// See the head of this module.
pub struct DirectEvents(RingBuf<MapData>);

impl std::fmt::Debug for DirectEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DirectEvents")
    }
}

impl DirectEvents {
    /// `map` as [`super::EbpfBackend::direct_events_fd`] gave it.
    ///
    /// # Errors
    /// The kernel does not let this process read it.
    pub fn from_fd(map: OwnedFd) -> io::Result<Self> {
        let map = MapData::from_fd(map).map_err(io::Error::other)?;
        let ring = RingBuf::try_from(Map::RingBuf(map)).map_err(io::Error::other)?;
        Ok(Self(ring))
    }

    /// The next one that was not read yet; what another data plane has read does not come again.
    pub fn read(&mut self) -> Option<DirectEvent> {
        loop {
            let item = self.0.next()?;
            if item.len() == size_of::<DirectEvent>() {
                // SAFETY: the length is the type's, which is plain integers; nothing is said about alignment.
                return Some(unsafe { item.as_ptr().cast::<DirectEvent>().read_unaligned() });
            }
            // The programs write nothing else.
            debug_assert!(false, "an event of {} bytes", item.len());
        }
    }

    /// How long ago it happened.
    pub fn age(event: &DirectEvent) -> Duration {
        Duration::from_nanos(clock::kernel_ns().saturating_sub(event.at))
    }
}
