//! What a tap asks of the programs, and what they tell it: the first bytes that each sender sends past the TCP stack.

use crate::maps::{Destination, SocketCookie};

/// The one value of `TAP`. The data plane renews it while somebody reads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tap {
    /// Nanoseconds of the kernel's CLOCK_MONOTONIC until which messages are copied; 0: nobody taps. Whoever dies without
    /// a word leaves nothing that goes on.
    pub until: u64,
    /// [`Workload::id`](crate::maps::Workload::id) of one end, whichever; 0: everybody's.
    pub workload: u32,
    /// Of each sender's, at most [`Tap::MOST_BYTES`].
    pub bytes: u32,
    /// Each tap has another one, and with it senders are counted anew.
    pub number: u32,
    pub reserved: u32,
}

impl Tap {
    pub const MOST_BYTES: u32 = 64 << 10;
    /// How long, in nanoseconds, one renewal lasts.
    pub const LEASE_NS: u64 = 1_000_000_000;
    pub const OFF: Self = Self {
        until: 0,
        workload: 0,
        bytes: 0,
        number: 0,
        reserved: 0,
    };
}

/// The head of what the programs tell.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Nanoseconds of the kernel's CLOCK_MONOTONIC.
    pub at: u64,
    /// Of the sender, and of whose queue it went into; 0: nobody's.
    pub from: SocketCookie,
    pub to: SocketCookie,
    /// Bytes that the sender had sent since the tap began, before these.
    pub offset: u64,
    /// Of the sender and of the receiver, as the server knows them.
    pub source: Destination,
    pub destination: Destination,
    /// [`Workload::id`](crate::maps::Workload::id) of the sender and of the receiver; 0: not enrolled.
    pub workload: u32,
    pub peer: u32,
    /// One of this type's.
    pub kind: u32,
    /// [`Self::BYTES`]: how many follow. [`Self::BY_TCP`]: why, an [`Event`](crate::maps::Event).
    pub value: u32,
    /// [`Tap::number`].
    pub number: u32,
    pub reserved: u32,
}

impl Copied {
    pub const BYTES: u32 = 0;
    /// From here on the sender's bytes go by TCP, and are not told.
    pub const BY_TCP: u32 = 1;
}

/// A record: most messages are short, and the ring has room for more of those.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Record<const ROOM: usize> {
    pub head: Copied,
    /// As many as [`Copied::value`] says are right.
    pub bytes: [u8; ROOM],
}

pub const SHORT: usize = 256;
pub const LONG: usize = 4096;

#[cfg(feature = "user")]
#[expect(
    unsafe_code,
    reason = "promising the kernel that the type has no padding"
)]
// SAFETY: repr(C), plain integers only, and no padding: the test below adds up the fields.
unsafe impl aya::Pod for Tap {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_padding() {
        assert_eq!(size_of::<Tap>(), 8 + 4 * 4);
        assert_eq!(size_of::<Copied>(), 4 * 8 + 2 * 24 + 6 * 4);
        assert_eq!(size_of::<Record<SHORT>>(), size_of::<Copied>() + SHORT);
    }
}
