//! What the hooks tell the agent of connections that go directly, over a ring buffer.

use crate::maps::{Destination, SocketCookie};

/// One event. A connection has an [`OPENED`](Self::OPENED) when its SYN is sent and a [`CLOSED`](Self::CLOSED) at its
/// end, both with everything that is known by then.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectEvent {
    /// The connecting socket's.
    pub cookie: SocketCookie,
    /// Nanoseconds of the kernel's CLOCK_MONOTONIC.
    pub at: u64,
    /// Nanoseconds since the connection was opened.
    pub duration: u64,
    /// Bytes by TCP that the client sent, and that it received.
    pub sent: u64,
    pub received: u64,
    /// Bytes that went from queue to queue.
    pub redirected_sent: u64,
    pub redirected_received: u64,
    /// And in how many messages.
    pub messages_sent: u64,
    pub messages_received: u64,
    pub client: Destination,
    pub original: Destination,
    pub upstream: Destination,
    /// [`Workload::id`](crate::maps::Workload::id) of the client.
    pub workload: u32,
    /// The same of the server; 0: not enrolled here.
    pub peer: u32,
    /// One of this type's.
    pub kind: u32,
    /// The TCP state in which it ended, as in linux/tcp_states.h; of a [`DENIED`](Self::DENIED) one the rule's
    /// [`Direction`](crate::decision::Direction).
    pub state: u32,
    /// The socket's pending error, an errno; 0: none.
    pub error: u32,
    /// Of a [`DENIED`](Self::DENIED) connection: the rule's index in the configuration.
    pub rule: u32,
}

impl DirectEvent {
    pub const OPENED: u32 = 0;
    pub const CLOSED: u32 = 1;
    /// Refused before it was opened: by policy, or because its service has no endpoint.
    pub const DENIED: u32 = 2;
    pub const UNSERVED: u32 = 3;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_no_padding() {
        assert_eq!(size_of::<DirectEvent>(), 9 * 8 + 3 * 24 + 6 * 4);
    }
}
