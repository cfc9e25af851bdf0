//! What the tests cannot do without. Missing, they fail: a skip would look like a pass. And hosts that lack it.

use std::path::Path;
use std::process::Command;
use std::sync::Once;

/// Runs a program under a seccomp filter to which one system call is not permitted, by its numbers on x86_64 and
/// aarch64: what a container's default profile does to some.
const DENY: &str = "
import ctypes, os, platform, struct, sys
number, arch = {'x86_64': (int(sys.argv[1]), 0xC000003E), 'aarch64': (int(sys.argv[2]), 0xC00000B7)}[platform.machine()]
steps = [(0x20, 0, 0, 4), (0x15, 0, 3, arch), (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack('HxxxxxxP', len(steps), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(22, 2, program, 0, 0): sys.exit('seccomp: ' + os.strerror(ctypes.get_errno()))
os.execv(sys.argv[3], sys.argv[3:])
";

/// # Panics
/// Not root, or the kernel does not let us load eBPF programs.
pub fn everything() {
    static LOOKED: Once = Once::new();
    LOOKED.call_once(look);
}

fn look() {
    let uid = Command::new("id").arg("-u").output().expect("`id` runs");
    assert_eq!(
        uid.stdout, b"0\n",
        "these tests make network namespaces: run them as root"
    );
    let check = Command::new(crate::agent::binary())
        .args(["check", "-o", "json"])
        .output()
        .expect("`shunt check` runs");
    let report: serde_json::Value =
        serde_json::from_slice(&check.stdout).expect("`shunt check` prints JSON");
    assert!(
        report["ebpf"] == true && report["iptables"] == true,
        "this machine cannot run both modes, so the tests would prove nothing: {report:#}"
    );
}

/// What stands before a command so that it runs where bpf(2) is not permitted.
pub fn without_bpf() -> Vec<String> {
    without(["321", "280"])
}

/// What stands before a command so that it runs where unshare(2) is not permitted.
pub fn without_new_namespaces() -> Vec<String> {
    without(["272", "97"])
}

fn without([x86_64, aarch64]: [&str; 2]) -> Vec<String> {
    ["python3", "-c", DENY, x86_64, aarch64]
        .map(str::to_owned)
        .into()
}

/// What stands before a command so that it, and whatever it starts, holds no other capabilities than these.
pub fn with_capabilities(names: &[String]) -> Vec<String> {
    let mut bounding = "-all".to_owned();
    for name in names {
        bounding += ",+";
        bounding += &name.trim_start_matches("CAP_").to_lowercase();
    }
    ["setpriv", "--inh-caps=-all", "--bounding-set", &bounding]
        .map(str::to_owned)
        .into()
}

/// The capabilities that the service is given.
///
/// # Panics
/// The unit does not say.
pub fn service_capabilities() -> Vec<String> {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/shunt.service");
    let unit = std::fs::read_to_string(unit).expect("the unit");
    let mut lines = unit.lines();
    let set = lines.find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = set.expect("a set").split(' ');
    names.map(str::to_owned).collect()
}

/// What stands before a command so that it sees /proc/sys read-only, as a container does.
pub fn with_read_only_sysctls() -> Vec<String> {
    let mount = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$0\" \"$@\"";
    [
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-c",
        mount,
    ]
    .map(str::to_owned)
    .into()
}

/// What stands before a command so that it sees no named network namespace.
pub fn without_named_namespaces() -> Vec<String> {
    let mount = "mount -t tmpfs none /run/netns && exec \"$0\" \"$@\"";
    [
        "unshare",
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-c",
        mount,
    ]
    .map(str::to_owned)
    .into()
}

/// What stands before a command so that it runs in a time namespace with clocks of its own.
pub fn in_a_time_namespace() -> Vec<String> {
    [
        "unshare",
        "-T",
        "--monotonic",
        "100000",
        "--boottime",
        "100000",
    ]
    .map(str::to_owned)
    .into()
}

/// What stands before a command so that it, and whatever it starts, sees the time of day that `file` says, at any
/// time anew. The clocks that only run are the kernel's.
pub fn with_time_of_day(file: &Path) -> Vec<String> {
    let file = format!("FAKETIME_TIMESTAMP_FILE={}", file.display());
    [
        "env",
        // The dynamic linker knows what $LIB is.
        "LD_PRELOAD=/usr/$LIB/faketime/libfaketimeMT.so.1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
        "DONT_FAKE_MONOTONIC=1",
        "FAKETIME_NO_CACHE=1",
        &file,
    ]
    .map(str::to_owned)
    .into()
}

/// `program`, run by whatever stands before it.
pub fn prefixed(prefix: &[String], program: &Path) -> Command {
    let Some((first, rest)) = prefix.split_first() else {
        return Command::new(program);
    };
    let mut command = Command::new(first);
    command.args(rest).arg(program);
    command
}
