//! One thread of the data plane, stopped by ptrace as if it looped for ever. The others and the supervisor go on.

use std::fs;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::Agent;

/// Goes on when dropped, by the thread that made it.
#[derive(Debug)]
pub struct Blocked(Pid);

impl Blocked {
    /// # Panics
    /// There is no data plane, or it may not be traced.
    pub fn worker(agent: &Agent) -> Self {
        let tasks = format!("/proc/{}/task", agent.worker_pid().expect("a data plane"));
        let mut tasks = fs::read_dir(tasks).expect("threads").flatten();
        let task = tasks
            .find(|task| {
                fs::read_to_string(task.path().join("comm")).expect("named") == "worker-0\n"
            })
            .expect("a worker thread");
        let id = task
            .file_name()
            .to_string_lossy()
            .parse()
            .expect("a number");
        let thread = Pid::from_raw(id);
        ptrace::attach(thread).expect("traced");
        let stopped = waitpid(thread, Some(WaitPidFlag::__WALL));
        stopped.expect("stopped");
        Self(thread)
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.0, None);
    }
}
