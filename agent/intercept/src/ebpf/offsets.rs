//! What the programs read of the kernel's own structures, which differ from build to build.

use crate::{InterceptError, btf};

/// By the name of the programs' static: the structure and the path of members in it.
pub(super) type Member = (&'static str, &'static str, &'static [&'static str]);

const MEMBERS: [Member; 6] = [
    (
        "RECEIVE_QUEUE_OFFSET",
        "sock",
        &["sk_backlog", "rmem_alloc"],
    ),
    ("USER_DATA_OFFSET", "sock", &["sk_user_data"]),
    ("WRITERS_OFFSET", "sock", &["sk_write_pending"]),
    ("WRITTEN_OFFSET", "tcp_sock", &["write_seq"]),
    ("ERROR_OFFSET", "sock", &["sk_err"]),
    ("SOCK_FLAGS_OFFSET", "sock", &["__sk_common", "skc_flags"]),
];

/// Where the running kernel keeps what acceleration and the books of direct connections read of sockets.
pub(super) fn statics() -> Result<Vec<(&'static str, u32)>, InterceptError> {
    find(&MEMBERS)
}

/// Each member's place in its structure, by the static's name.
pub(super) fn find(members: &[Member]) -> Result<Vec<(&'static str, u32)>, InterceptError> {
    let kernel = btf::Kernel::read()?;
    let places = members.iter();
    let paths: Vec<_> = places
        .map(|(_, structure, path)| (*structure, *path))
        .collect();
    let names = members.iter().map(|(name, ..)| *name);
    Ok(names.zip(kernel.offsets(&paths)?).collect())
}
