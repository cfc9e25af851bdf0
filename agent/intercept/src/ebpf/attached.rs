//! Which programs the kernel runs for a cgroup.
#![expect(unsafe_code, reason = "bpf(2) has no safe binding for this query")]

use std::io;
use std::os::fd::AsFd;

use super::raw;

/// From linux/bpf.h.
const BPF_PROG_QUERY: i64 = 16;
pub(super) const INET4_CONNECT: u32 = 10;
pub(super) const INET6_CONNECT: u32 = 11;
/// The kernel lets no more be attached to one cgroup in one place (BPF_CGROUP_MAX_PROGS).
const MOST: usize = 64;

/// `union bpf_attr`, the arm of the command.
#[repr(C)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

/// Ids of the programs attached to `cgroup` itself.
pub(super) fn programs(cgroup: &impl AsFd, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MOST];
    let mut attr = QueryAttr {
        target_fd: raw(cgroup).unsigned_abs(),
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: MOST as u32,
        padding: 0,
    };
    let (address, size) = (&raw mut attr, size_of::<QueryAttr>());
    // SAFETY: `attr` has the layout of the command, and `prog_ids` leads to `prog_cnt` words.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, address, size) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let count = usize::try_from(attr.prog_cnt).unwrap_or(MOST).min(MOST);
    Ok(ids[..count].to_vec())
}
