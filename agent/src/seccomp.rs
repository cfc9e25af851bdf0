//! Which system calls a process may make from now on. What is not permitted fails with `EPERM`: nobody is killed, since
//! that would cut off workloads' connections.

mod calls;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use nix::errno::Errno;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

use self::calls::{FORBIDDEN, MAP_COMMANDS, NAMESPACES, PERMITTED};

/// For the data plane and the watcher, which hold no privilege and start no programs: nothing but what they need. Call
/// before there is a second thread, and with `no_new_privs` set.
///
/// # Errors
/// The kernel has no seccomp filters.
pub fn permit_needed() -> Result<()> {
    let mut rules: Rules = PERMITTED.iter().map(|call| (*call, Vec::new())).collect();
    // Of maps that they were given: they make none, and load nothing.
    let commands = MAP_COMMANDS.map(|command| first(SeccompCmpOp::Eq, command));
    let commands: Result<_, BackendError> = commands.into_iter().collect();
    rules.insert(libc::SYS_bpf, commands.context("cannot compile a rule")?);
    // Threads, but no namespaces, in which they would be privileged again.
    let none = first(SeccompCmpOp::MaskedEq(NAMESPACES), 0).context("cannot compile a rule")?;
    rules.insert(libc::SYS_clone, vec![none]);
    // A filter does not see what clone3(2) is to do. Where the kernel has none the C library takes clone(2).
    let unknown = Rules::from([(libc::SYS_clone3, Vec::new())]);
    install(unknown, SeccompAction::Allow, errno(Errno::ENOSYS))?;
    install(rules, errno(Errno::EPERM), SeccompAction::Allow)
}

/// For the supervisor, and whatever it starts: everything but what no agent has to do. As [`permit_needed`].
///
/// # Errors
/// As there.
pub fn forbid_dangerous() -> Result<()> {
    let rules = FORBIDDEN.iter().map(|call| (*call, Vec::new())).collect();
    install(rules, SeccompAction::Allow, errno(Errno::EPERM))
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The call's first argument compares so.
fn first(how: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        how,
        value,
    )?])
}

fn errno(error: Errno) -> SeccompAction {
    SeccompAction::Errno(error as u32)
}

fn install(rules: Rules, others: SeccompAction, these: SeccompAction) -> Result<()> {
    let arch = std::env::consts::ARCH.try_into();
    let arch = arch.context("seccomp filters are not made for this architecture")?;
    let filter = SeccompFilter::new(rules, others, these, arch);
    let program: BpfProgram = filter
        .and_then(TryInto::try_into)
        .context("cannot compile the seccomp filter")?;
    seccompiler::apply_filter(&program).context("cannot install the seccomp filter")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io;
    use std::os::unix::net::UnixStream;
    use std::process::Command;
    use std::thread;

    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, setns, unshare};
    use nix::sys::ptrace;
    use nix::unistd::Pid;

    use super::*;

    /// In a thread of its own, which alone has the filter.
    fn under(filter: fn() -> Result<()>, look: fn()) {
        let filtered = thread::spawn(move || {
            filter().expect("a filter");
            look();
        });
        filtered.join().expect("as expected");
    }

    #[test]
    fn the_data_plane_does_what_it_needs_and_no_more() {
        under(permit_needed, || {
            UnixStream::pair().expect("sockets");
            File::open("/proc/self/status").expect("files");
            thread::spawn(|| ()).join().expect("threads");

            let started = Command::new("true").status();
            let kind = started.map_err(|error| error.kind());
            assert_eq!(kind.err(), Some(io::ErrorKind::PermissionDenied));
            let refused = Err(Errno::EPERM);
            let none = None::<&str>;
            assert_eq!(unshare(CloneFlags::CLONE_NEWUSER), refused);
            assert_eq!(setns(io::stdin(), CloneFlags::CLONE_NEWNET), refused);
            assert_eq!(mount(none, "/", none, MsFlags::MS_REC, none), refused);
            assert_eq!(ptrace::attach(Pid::parent()), refused);
            let unlinked = std::fs::remove_file("/nowhere").map_err(|error| error.kind());
            assert_eq!(unlinked, Err(io::ErrorKind::PermissionDenied));
        });
    }

    #[test]
    fn the_supervisor_starts_programs_and_traces_nobody() {
        under(forbid_dangerous, || {
            assert!(Command::new("true").status().expect("runs").success());
            assert_eq!(ptrace::attach(Pid::parent()), Err(Errno::EPERM));
        });
    }
}
