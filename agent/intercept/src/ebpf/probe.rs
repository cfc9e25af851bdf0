//! What `shunt check` says of eBPF mode, each with the evidence.

mod denied;

use std::fs;

use aya::programs::ProgramType;
use aya::sys::is_program_supported;
use aya::util::KernelVersion;

use super::object;
use crate::{Finding, cgroup};

/// The first kernel that lets a process without capabilities use a map it holds: the data plane needs that.
const KERNEL: KernelVersion = KernelVersion::new(5, 19, 0);

/// Looks at everything that eBPF mode needs. Changes nothing.
pub fn probe() -> Vec<Finding> {
    vec![
        kernel(),
        btf(),
        cgroup2(),
        capabilities(),
        bpf_permitted(),
        sock_addr(),
        sk_lookup(),
    ]
}

fn finding(
    name: &'static str,
    required: bool,
    result: Result<String, String>,
    meaning: &str,
) -> Finding {
    let ok = result.is_ok();
    let found = result.unwrap_or_else(|reason| reason);
    Finding {
        name,
        ok,
        required,
        found,
        meaning: meaning.to_owned(),
    }
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned();
    let new_enough = KernelVersion::current().is_ok_and(|now| now >= KERNEL);
    finding(
        "kernel",
        true,
        if new_enough {
            Ok(release)
        } else {
            Err(format!("{release}, older than 5.19"))
        },
        "the data plane holds no capability: it may use map descriptors from 5.19 on",
    )
}

fn btf() -> Finding {
    let file = "/sys/kernel/btf/vmlinux";
    let found = fs::metadata(file).map(|meta| format!("{file}, {} bytes", meta.len()));
    finding(
        "btf",
        true,
        found.map_err(|error| format!("{file}: {error}")),
        "socket storage needs the kernel's type information (CONFIG_DEBUG_INFO_BTF)",
    )
}

fn cgroup2() -> Finding {
    let found = cgroup::mount_point().map(|path| path.display().to_string());
    finding(
        "cgroup2",
        true,
        found.map_err(|error| error.chain()),
        "connect hooks are attached to cgroups; without the mount only iptables mode works",
    )
}

fn capabilities() -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .unwrap_or("")
        .trim();
    let bits = u64::from_str_radix(line, 16).unwrap_or(0);
    // Numbers from linux/capability.h. CAP_SYS_ADMIN includes CAP_BPF.
    let needed = [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21)];
    let missing: Vec<&str> = needed
        .iter()
        .filter(|(_, bit)| bits >> bit & 1 == 0)
        .map(|(name, _)| *name)
        .collect();
    finding(
        "capabilities",
        true,
        if missing.is_empty() {
            Ok(format!("CapEff {line}"))
        } else {
            Err(format!("missing {}", missing.join(", ")))
        },
        "the supervisor enters namespaces and loads programs (SYS_ADMIN), sets marks (NET_ADMIN)",
    )
}

fn bpf_permitted() -> Finding {
    finding(
        "bpf(2)",
        true,
        supported(ProgramType::SocketFilter),
        "really asked: seccomp, lockdown or an LSM may deny what capabilities allow",
    )
}

fn sock_addr() -> Finding {
    finding(
        "connect hooks",
        true,
        supported(ProgramType::CgroupSockAddr),
        "outbound capture (kernel 4.17)",
    )
}

fn sk_lookup() -> Finding {
    finding(
        "sk_lookup",
        true,
        supported(ProgramType::SkLookup),
        "inbound capture without NAT (kernel 5.9)",
    )
}

fn supported(kind: ProgramType) -> Result<String, String> {
    match is_program_supported(kind) {
        Ok(true) => Ok("a program of this type loads".into()),
        Ok(false) => Err("the kernel does not know this program type".into()),
        Err(error) => {
            let said = object::failed("load a program", &error).chain();
            match denied::by_what() {
                Some(cause) if denied::is_denial(&error) => Err(format!("{said}: {cause}")),
                _ => Err(said),
            }
        }
    }
}
