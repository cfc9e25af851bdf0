//! What the programs read of the kernel's own structures, which differ from build to build.

use crate::{InterceptError, btf};

/// Where the running kernel keeps what the programs read of sockets, in the order of [`Offsets::MEMBERS`].
#[derive(Clone, Copy, Default)]
pub(super) struct Offsets([u32; Self::MEMBERS.len()]);

impl Offsets {
    /// By the name of the programs' static: the structure and the path of members in it.
    const MEMBERS: [(&str, &str, &[&str]); 6] = [
        (
            "RECEIVE_QUEUE_OFFSET",
            "sock",
            &["sk_backlog", "rmem_alloc"],
        ),
        ("USER_DATA_OFFSET", "sock", &["sk_user_data"]),
        ("WRITERS_OFFSET", "sock", &["sk_write_pending"]),
        ("WRITTEN_OFFSET", "tcp_sock", &["write_seq"]),
        ("ERROR_OFFSET", "sock", &["sk_err"]),
        ("FLAGS_OFFSET", "sock", &["__sk_common", "skc_flags"]),
    ];

    pub(super) fn of_the_kernel() -> Result<Self, InterceptError> {
        let types = btf::Kernel::read()?;
        let mut offsets = Self::default();
        for (place, (_, structure, members)) in offsets.0.iter_mut().zip(Self::MEMBERS) {
            *place = types.offset(structure, members)?;
        }
        Ok(offsets)
    }

    pub(super) fn statics(self) -> impl Iterator<Item = (&'static str, u32)> {
        let names = Self::MEMBERS.into_iter().map(|(name, _, _)| name);
        names.zip(self.0)
    }
}
