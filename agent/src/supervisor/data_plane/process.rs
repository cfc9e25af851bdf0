//! The process of a data plane: started here, or by the supervisor that this one has succeeded in the same process.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};
use tokio::io::unix::AsyncFd;
use tokio::process::Child;

/// How often the end of an inherited one is looked for where the kernel does not tell (Linux 5.2, or descriptors ran out).
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) enum Process {
    Child(Child),
    /// A child too, but tokio does not know it. Nobody else reaps it, so the number is its own.
    Inherited(Option<Pid>, Option<AsyncFd<OwnedFd>>),
}

impl Process {
    pub(super) fn inherited(pid: u32) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
        #[expect(
            deprecated,
            reason = "an OwnedFd stays open as long as it is registered; the successor is unsafe"
        )]
        let watch = AsyncFd::new;
        let end = pidfd_open(pid, PidfdFlags::NONBLOCK);
        let end = end.map_err(io::Error::from).and_then(watch);
        let end = end.inspect_err(
            |error| tracing::debug!(%error, "the end of an inherited data plane is noticed later"),
        );
        Some(Self::Inherited(Some(pid), end.ok()))
    }

    /// `None`: it has ended.
    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Self::Child(child) => child.id(),
            Self::Inherited(pid, _) => pid.map(|pid| pid.as_raw_nonzero().get().cast_unsigned()),
        }
    }

    pub(super) fn kill(&mut self) {
        match self {
            Self::Child(child) => drop(child.start_kill()),
            Self::Inherited(pid, _) => drop(pid.map(|pid| kill_process(pid, Signal::KILL))),
        }
    }

    /// Cancel safe.
    pub(super) async fn wait(&mut self) -> ExitStatus {
        let (inherited, end) = match self {
            Self::Child(child) => return child.wait().await.unwrap_or_default(),
            Self::Inherited(pid, end) => (pid, end),
        };
        while let Some(pid) = *inherited {
            match waitpid(Some(pid), WaitOptions::NOHANG) {
                Ok(None) => match end {
                    // It stays readable, and the next look reaps it.
                    Some(end) => drop(end.readable().await),
                    None => tokio::time::sleep(LOOK).await,
                },
                Ok(Some((_, status))) => {
                    *inherited = None;
                    return ExitStatus::from_raw(status.as_raw());
                }
                Err(_) => *inherited = None,
            }
        }
        ExitStatus::default()
    }
}
