//! The process of a data plane: started here, or by the supervisor that this one has succeeded in the same process.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::process::Child;

/// How often the end of an inherited one is looked for; its channel closes first.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) enum Process {
    Child(Child),
    /// A child too, but tokio does not know it. Nobody else reaps it, so the number is its own.
    Inherited(Option<Pid>),
}

impl Process {
    pub(super) fn inherited(pid: u32) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
        Some(Self::Inherited(Some(pid)))
    }

    /// `None`: it has ended.
    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Self::Child(child) => child.id(),
            Self::Inherited(pid) => pid.map(|pid| pid.as_raw_nonzero().get().cast_unsigned()),
        }
    }

    pub(super) fn kill(&mut self) {
        match self {
            Self::Child(child) => drop(child.start_kill()),
            Self::Inherited(pid) => drop(pid.map(|pid| kill_process(pid, Signal::KILL))),
        }
    }

    /// Cancel safe.
    pub(super) async fn wait(&mut self) -> ExitStatus {
        let inherited = match self {
            Self::Child(child) => return child.wait().await.unwrap_or_default(),
            Self::Inherited(pid) => pid,
        };
        while let Some(pid) = *inherited {
            match waitpid(Some(pid), WaitOptions::NOHANG) {
                Ok(None) => tokio::time::sleep(LOOK).await,
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
