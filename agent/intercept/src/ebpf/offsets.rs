//! What the programs read of the kernel's own structures, which differ from build to build.

use crate::{InterceptError, btf};

/// By the name of the programs' static: the structure and the path of members in it.
/// Values of the programs' statics, by name.
pub(super) type Statics = Result<Vec<(&'static str, u32)>, InterceptError>;
pub(super) type Member = (&'static str, &'static str, &'static [&'static str]);

const MEMBERS: [Member; 7] = [
    (
        "RECEIVE_QUEUE_OFFSET",
        "sock",
        &["sk_backlog", "rmem_alloc"],
    ),
    ("RECEIVE_BUFFER_OFFSET", "sock", &["sk_rcvbuf"]),
    ("USER_DATA_OFFSET", "sock", &["sk_user_data"]),
    ("WRITERS_OFFSET", "sock", &["sk_write_pending"]),
    ("WRITTEN_OFFSET", "tcp_sock", &["write_seq"]),
    ("ERROR_OFFSET", "sock", &["sk_err"]),
    ("SOCK_FLAGS_OFFSET", "sock", &["__sk_common", "skc_flags"]),
];

/// From net/sock.h: the buffer's size is the program's own (`SO_RCVBUF`).
const SOCK_RCVBUF_LOCK: u32 = 2;

/// Where the running kernel keeps what acceleration and the books of direct connections read of sockets.
pub(super) fn statics(types: &btf::Kernel) -> Statics {
    let mut statics = find(types, &MEMBERS)?;
    // A byte of its own, or some bits of one, by the kernel's version.
    let locks = types.bits("sock", &["sk_userlocks"])?;
    statics.push(("LOCKS_OFFSET", locks / u8::BITS));
    statics.push((
        "RECEIVE_BUFFER_LOCK",
        SOCK_RCVBUF_LOCK << (locks % u8::BITS),
    ));
    Ok(statics)
}

/// Each member's place in its structure, by the static's name.
pub(super) fn find(types: &btf::Kernel, members: &[Member]) -> Statics {
    let place = |(name, structure, path): &Member| Ok((*name, types.offset(structure, path)?));
    members.iter().map(place).collect()
}
