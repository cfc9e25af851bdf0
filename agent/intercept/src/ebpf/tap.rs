//! Both ends of a tap: the supervisor's, which gives the maps away and can end it, and the data plane's, which begins it
//! and reads what is copied.
#![expect(unsafe_code, reason = "the ring buffer has bytes, a record is a type")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use aya::maps::{Array, IterableMap, Map, MapData, PerCpuArray, RingBuf};
use shunt_ebpf_common::maps::Event;
use shunt_ebpf_common::tap::{Copied, Tap};

use super::element::Elements;
use super::object::Object;
use super::{clock, offsets};
use crate::{InterceptError, btf};

/// By the name of the programs' static: the structure and the path of members in it.
const MEMBERS: [offsets::Member; 9] = [
    ("FAMILY_OFFSET", "sock", &["__sk_common", "skc_family"]),
    ("LOCAL_PORT_OFFSET", "sock", &["__sk_common", "skc_num"]),
    ("REMOTE_PORT_OFFSET", "sock", &["__sk_common", "skc_dport"]),
    ("LOCAL_V4_OFFSET", "sock", &["__sk_common", "skc_rcv_saddr"]),
    ("REMOTE_V4_OFFSET", "sock", &["__sk_common", "skc_daddr"]),
    (
        "LOCAL_V6_OFFSET",
        "sock",
        &["__sk_common", "skc_v6_rcv_saddr"],
    ),
    ("REMOTE_V6_OFFSET", "sock", &["__sk_common", "skc_v6_daddr"]),
    ("NET_OFFSET", "sock", &["__sk_common", "skc_net"]),
    ("NET_COOKIE_OFFSET", "net", &["net_cookie"]),
];

/// Where the running kernel keeps what the programs read.
pub(super) fn statics(types: &btf::Kernel) -> offsets::Statics {
    offsets::find(types, &MEMBERS)
}

/// The supervisor's end.
pub(super) struct TapMaps {
    control: Array<MapData, Tap>,
    ring: MapData,
}

impl TapMaps {
    /// # Errors
    /// It is not known where this kernel keeps a socket's addresses.
    pub(super) fn load(object: &mut Object) -> Result<Self, InterceptError> {
        std::mem::replace(&mut object.tapped, Ok(()))?;
        Ok(Self {
            control: object.map("SHUNT_TAP")?,
            ring: object.ring("SHUNT_TAPPED")?,
        })
    }

    /// In the order of [`MessageTap::from_fds`].
    pub(super) fn fds(&self, events: &PerCpuArray<MapData, u64>) -> io::Result<Vec<OwnedFd>> {
        let maps = [self.control.map(), &self.ring, events.map()];
        let clone = |map: &MapData| map.fd().as_fd().try_clone_to_owned();
        maps.into_iter().map(clone).collect()
    }

    /// Whoever read is gone.
    pub(super) fn end(&mut self) {
        if let Err(error) = self.control.set(0, Tap::OFF, 0) {
            tracing::warn!(%error, "a tap ends only with its lease");
        }
    }
}

/// The data plane's end. Nothing is copied for longer than [`Tap::LEASE_NS`] after the last [`MessageTap::renew`].
pub struct MessageTap {
    control: Elements<u32, Tap>,
    ring: RingBuf<MapData>,
    events: PerCpuArray<MapData, u64>,
}

/// Something that was sent past the TCP stack, or was not.
#[derive(Debug)]
pub struct Message {
    pub head: Copied,
    pub bytes: Vec<u8>,
}

impl MessageTap {
    /// `maps` as [`super::EbpfBackend::tap_fds`] gave them.
    ///
    /// # Errors
    /// They are not that many, or the kernel does not let this process use them.
    pub fn from_fds(maps: Vec<OwnedFd>) -> io::Result<Self> {
        let maps: Result<[OwnedFd; 3], _> = maps.try_into();
        let [control, ring, events] = maps.map_err(|_| io::ErrorKind::InvalidInput)?;
        let held = |map: OwnedFd| MapData::from_fd(map).map_err(io::Error::other);
        Ok(Self {
            control: Elements::from_fd(control),
            ring: RingBuf::try_from(Map::RingBuf(held(ring)?)).map_err(io::Error::other)?,
            events: PerCpuArray::try_from(Map::PerCpuArray(held(events)?))
                .map_err(io::Error::other)?,
        })
    }

    /// Begins or goes on: `bytes` of each sender's, of a workload's ([`Tap::workload`]).
    ///
    /// # Errors
    /// The kernel does not take it.
    pub fn renew(&self, number: u32, workload: u32, bytes: u32) -> io::Result<()> {
        let tap = Tap {
            until: clock::kernel_ns() + Tap::LEASE_NS,
            workload,
            bytes,
            number,
            reserved: 0,
        };
        self.control.set(&0, &tap)
    }

    /// Nothing more is copied.
    pub fn end(&self) {
        if let Err(error) = self.control.set(&0, &Tap::OFF) {
            tracing::debug!(%error, "a tap ends only with its lease");
        }
    }

    /// The next one that was not read yet.
    pub fn read(&mut self) -> Option<Message> {
        let item = self.ring.next()?;
        let (head, bytes) = item.split_at_checked(size_of::<Copied>())?;
        // SAFETY: the length is the type's, which is plain integers; nothing is said about alignment.
        let head = unsafe { head.as_ptr().cast::<Copied>().read_unaligned() };
        let length = match head.kind {
            Copied::BYTES => head.value as usize,
            _ => 0,
        };
        let bytes = bytes.get(..length).unwrap_or_default().to_vec();
        Some(Message { head, bytes })
    }

    /// How often something was not told since the programs were loaded.
    pub fn lost(&self) -> u64 {
        let counts = self.events.get(&(Event::TapLost as u32), 0);
        counts.map_or(0, |counts| counts.iter().sum())
    }
}

impl Message {
    /// How long ago it was sent.
    pub fn age(&self) -> Duration {
        Duration::from_nanos(clock::kernel_ns().saturating_sub(self.head.at))
    }
}

impl std::fmt::Debug for MessageTap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MessageTap")
    }
}
