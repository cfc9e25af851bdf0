//! What each row sees without us: Linux, and nothing in between.

use crate::semantics::Pattern;

/// Row and observation.
const PLAIN: &[(&str, &str)] = &[
    ("order", "near 40 whole; far 40 whole"),
    ("bursts", "near 120 bursts whole; far 120 bursts whole"),
    ("early-data", "near 200 answered; far 200 in order"),
    (
        "server-first",
        "near 300000 bytes, then end; far greeted, answered",
    ),
    (
        "both-at-once",
        "near 524288 bytes, then end; far 524288 bytes, then end",
    ),
    (
        "many-threads",
        "near 0 bytes, then end; far [20000, 20000, 20000, 20000]",
    ),
    (
        "socket-of-a-child",
        "near exit status: 0; far 100000 bytes, then end",
    ),
    (
        "half-close",
        "near 1048576 bytes, then end; far 1048576 bytes, then end",
    ),
    (
        "half-close-late-answer",
        "near 1000 bytes, then end; far 1000 bytes, then end",
    ),
    (
        "half-close-late-reader",
        "near 200000 bytes, then end; far 3 bytes, then end",
    ),
    (
        "close-with-data-under-way",
        "near closed; far 200000 bytes, then end",
    ),
    (
        "close-with-data-unread",
        "near closed; far 0 bytes, then ECONNRESET",
    ),
    (
        "reset",
        "near reset; far 0 bytes, then ECONNRESET; send EPIPE",
    ),
    (
        "reset-behind-data",
        "near reset; far 1000 bytes, then ECONNRESET",
    ),
    (
        "reset-at-once-behind-data",
        "near reset; far 1000 bytes, then ECONNRESET",
    ),
    (
        "epipe",
        "near 0 bytes, then end; sending ends in EPIPE; far closed",
    ),
    (
        "errors-of-a-reset-sender",
        "near ECONNRESET, then EPIPE; far closed",
    ),
    (
        "send-after-shutdown",
        "near send EPIPE; 1000 bytes, then end; far 0 bytes, then end",
    ),
    (
        "shutdown-by-another-thread",
        "near 1000 bytes, then end; far 0 bytes, then end",
    ),
    (
        "shutdown-of-reading",
        "near 0 bytes, then end; far 1000 bytes, then end",
    ),
    (
        "readiness",
        "near OUT, IN OUT RDHUP HUP; far OUT, IN OUT, OUT, IN OUT RDHUP, IN OUT RDHUP HUP",
    ),
    (
        "readiness-of-a-reset",
        "near reset; far IN OUT RDHUP ERR HUP; SO_ERROR ECONNRESET, then none",
    ),
    (
        "msg-peek",
        "near 0 bytes, then end; far peeks 5 right, 5 right, 1000 right; 1000 bytes, then end",
    ),
    (
        "msg-trunc",
        "near 0 bytes, then end; far 500 bytes, none written; 1000 bytes, then end",
    ),
    (
        "msg-waitall",
        "near 0 bytes, then end; far 10000 bytes, right; 10000 bytes, then end",
    ),
    (
        "msg-dontwait",
        "near 0 bytes, then end; far EAGAIN, then 1 bytes; 1000 bytes, then end",
    ),
    (
        "msg-more",
        "near 0 bytes, then end; far 4000 bytes, then end",
    ),
    (
        "signal-restarting",
        "near 0 bytes, then end; far 1000 bytes, then 1000 bytes, then end",
    ),
    (
        "signal-interrupting",
        "near 0 bytes, then end; far EINTR, then 1000 bytes, then end",
    ),
    (
        "signal-with-a-timeout",
        "near 0 bytes, then end; far EINTR, then 1000 bytes, then end",
    ),
    (
        "reader-beside-a-writer",
        "near 1000 bytes, then end; far 20971520 bytes, then end",
    ),
    (
        "epoll-edge-triggered",
        "near 0 bytes, then end; far 1048576 bytes, then end",
    ),
    (
        "so-rcvtimeo",
        "near 0 bytes, then end; far EAGAIN in time; 1000 bytes, then end",
    ),
    (
        "so-rcvlowat",
        "near 0 bytes, then end; far OUT, then 1000 bytes; 1000 bytes, then end",
    ),
    (
        "fionread",
        "near 0 bytes, then end; far 1000 unread; 1000 bytes, then end",
    ),
    ("urgent-data", "near ; far urgent !, in line abcdef"),
    ("urgent-data-inline", "near ; far in line abc!def"),
    (
        "segment-size",
        "near of an Ethernet; far 1000 bytes, then end",
    ),
    ("tcp-ulp", "near as on loopback; far 1000 bytes, then end"),
    (
        "stalled-reader",
        "near less than a megabyte taken in; 0 bytes, then end; far all of it",
    ),
    (
        "so-sndtimeo",
        "near EAGAIN; 0 bytes, then end; far all of it",
    ),
    ("edge-of-room", "near 0 bytes, then end; far all of it"),
    (
        "acknowledged",
        "near not all; 0 bytes, then end; far 400000 bytes, then end",
    ),
    ("so-linger", "near close waits; far 400000 bytes, then end"),
    (
        "sendfile",
        "near 0 bytes, then end; far 300000 bytes, then end",
    ),
    (
        "splice-in",
        "near 0 bytes, then end; far 300000 bytes, then end",
    ),
    (
        "splice-out",
        "near 0 bytes, then end; far 300000 bytes, then end",
    ),
    (
        "splice-through",
        "near 2000 bytes, then end; far 2000 bytes, then end",
    ),
    (
        "zerocopy",
        "near completed; 0 bytes, then end; far 300000 bytes, then end",
    ),
    ("refused", "near connect ECONNREFUSED; far not listening"),
    ("unreachable", "near connect EHOSTUNREACH; far not called"),
    (
        "connect/blocking",
        "near at once; 1000 bytes, then end; far 1000 bytes, then end",
    ),
    (
        "connect/non-blocking",
        "near in progress; 1000 bytes, then end; far 1000 bytes, then end",
    ),
    (
        "connect-twice/blocking",
        "near EISCONN; 1000 bytes, then end; far 1000 bytes, then end",
    ),
    (
        "connect-twice/non-blocking",
        "near works; 1000 bytes, then end; far 1000 bytes, then end",
    ),
    (
        "fast-open",
        "near 100 bytes; 1000 bytes, then end; far 1000 bytes, then end",
    ),
    (
        "v6",
        "near peer as dialled; 1000 bytes, then end; far 1000 bytes, then end",
    ),
    (
        "v4-mapped",
        "near peer as dialled; 1000 bytes, then end; far 1000 bytes, then end",
    ),
    (
        "names",
        "near peer as dialled; far the caller's address, the caller's port",
    ),
    ("original-destination", "near none; far none"),
    (
        "defer-accept",
        "near 1000 bytes, then end; far EAGAIN; 1000 bytes, then end",
    ),
    (
        "type-of-service",
        "near 1000 bytes, then end; far service 0x10; 1000 bytes, then end",
    ),
];

/// What a variant sees without us.
pub(crate) fn plain(variant: &str) -> Option<&'static str> {
    let mut lines = PLAIN.iter();
    let line = lines.find(|(row, _)| Pattern((*row).to_owned()).covers(variant));
    line.map(|(_, seen)| *seen)
}

/// All rows that there should be, as patterns.
pub(crate) fn rows() -> impl Iterator<Item = Pattern> {
    PLAIN.iter().map(|(row, _)| Pattern((*row).to_owned()))
}
