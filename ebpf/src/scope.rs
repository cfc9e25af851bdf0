//! Whose a socket is: its namespace's workload, or, where workloads share a namespace, that of the cgroup to which the
//! running program is attached. For programs at cgroups only.

use shunt_ebpf_common::maps::NetnsCookie;
use shunt_ebpf_common::scope::WorkloadKey;

use crate::maps::SCOPES;

#[inline(always)]
pub fn workload_key(netns: NetnsCookie) -> WorkloadKey {
    let scope = SCOPES.get_ptr_mut();
    // SAFETY: the kernel makes the storage of a cgroup before it attaches a program there.
    let (scoped_netns, workload) = unsafe { ((*scope).netns, (*scope).workload) };
    if workload != 0 && scoped_netns == netns {
        workload
    } else {
        netns
    }
}
