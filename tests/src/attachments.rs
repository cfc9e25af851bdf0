//! What an agent has in the kernel, and programs of somebody else beside it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::kernel;

/// Loads programs that do nothing and says their ids, one a line; they go when its stdin closes.
const FOREIGN: &str = "
import ctypes, os, platform, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
number = {'x86_64': 321, 'aarch64': 280}[platform.machine()]
def bpf(command, attr):
    attr = ctypes.create_string_buffer(attr, len(attr))
    result = libc.syscall(number, command, attr, len(attr))
    if result < 0: sys.exit('bpf %d: %s' % (command, os.strerror(ctypes.get_errno())))
    return result, attr.raw
keep = []
def load(kind, attach, name):
    code = ctypes.create_string_buffer(struct.pack('<QQ', 0x1000000b7, 0x95), 16)
    licence = ctypes.create_string_buffer(b'GPL')
    keep.extend([code, licence])
    attr = struct.pack('<IIQQIIQII16sII', kind, 2, ctypes.addressof(code), ctypes.addressof(licence), 0, 0, 0, 0, 0, name, 0, attach)
    return bpf(5, attr)[0]
def info(fd):
    out = ctypes.create_string_buffer(232)
    bpf(15, struct.pack('<IIQ', fd, 232, ctypes.addressof(out)))
    return struct.unpack_from('<II', out.raw)[1]
cgroup = os.open(sys.argv[1], os.O_RDONLY)
connect = load(18, 10, b'cil_sock4_conn')
bpf(8, struct.pack('<IIII', cgroup, connect, 10, 2))
print(info(connect))
keep.append(os.open(sys.argv[2], os.O_RDONLY))
for kind, attach, name, target in [(13, 3, b'cil_sockops', cgroup), (30, 36, b'tubular', keep[-1])]:
    program = load(kind, attach, name)
    keep.append(bpf(28, struct.pack('<IIII', program, target, attach, 0))[0])
    print(info(program))
redirect = load(16, 7, b'mb_msg_redir')
sockmap, _ = bpf(0, struct.pack('<IIIII', 15, 4, 4, 8, 0) + struct.pack('<II', 0, 0) + b'mb_pairs'.ljust(16, b'\\0'))
bpf(8, struct.pack('<IIII', sockmap, redirect, 7, 0))
print(info(redirect), flush=True)
sys.stdin.read()
bpf(9, struct.pack('<III', cgroup, connect, 10))
";

/// Somebody else's programs: for connect and sock_ops on a cgroup, sk_lookup on a namespace, sk_msg on a socket map.
#[derive(Debug)]
pub struct Foreign {
    child: Child,
    /// Their ids.
    pub programs: Vec<String>,
}

impl Foreign {
    /// # Panics
    /// The kernel refuses.
    pub fn attach(cgroup: &Path, netns: &Path) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", FOREIGN])
            .args([cgroup, netns])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let said = BufReader::new(child.stdout.take().expect("piped")).lines();
        let programs: Vec<String> = said.take(4).map(|line| line.expect("text")).collect();
        assert_eq!(programs.len(), 4, "all are loaded");
        Self { child, programs }
    }

    /// Ids of their links, where they are attached by one.
    pub fn links(&self) -> Vec<String> {
        let links = kernel::held_by(self.child.id(), "link").into_iter();
        links.map(|id| id.to_string()).collect()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// What a process holds, as /proc/PID/fdinfo says: the value of `wanted` in each that has all of `having`.
pub fn held(pid: u32, having: &[(&str, &str)], wanted: &str) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("readable");
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let value = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(':'));
            lines.find_map(|(key, value)| (key == name).then(|| value.trim().to_owned()))
        };
        if having
            .iter()
            .all(|(name, is)| value(name).as_deref() == Some(is))
        {
            found.extend(value(wanted));
        }
    }
    found
}
