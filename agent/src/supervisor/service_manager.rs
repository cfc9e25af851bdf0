//! What systemd is told of the supervisor, by the protocol of sd_notify(3); of the environment, and nothing without it.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::Supervisor;

/// A service manager that wants to be told.
#[derive(Debug)]
pub(super) struct ServiceManager {
    link: Option<(UnixDatagram, SocketAddr)>,
    watches: bool,
    phase: Phase,
    status: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Ready,
    Reloading,
}

impl ServiceManager {
    /// The one of this process's environment, if there is one. That it cannot be told is no reason not to serve.
    pub(super) fn of_environment() -> Self {
        let link = std::env::var("NOTIFY_SOCKET").ok().and_then(|name| {
            open(&name)
                .inspect_err(
                    |error| tracing::warn!(%error, name, "the service manager cannot be told"),
                )
                .ok()
        });
        Self {
            link,
            watches: std::env::var_os("WATCHDOG_USEC").is_some(),
            phase: Phase::Starting,
            status: String::new(),
        }
    }

    fn tell(&self, lines: &str) {
        if let Some((socket, address)) = &self.link
            && let Err(error) = socket.send_to_addr(lines.as_bytes(), address)
        {
            tracing::debug!(%error, "the service manager was not told");
        }
    }

    /// A changed configuration is about to be read.
    pub(super) fn reloading(&mut self) {
        if self.phase == Phase::Ready {
            let now = clock_gettime(ClockId::Monotonic);
            let now = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
            self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
            self.phase = Phase::Reloading;
        }
    }

    /// The end, which takes so long at the most; the watchdog has to wait for it.
    pub(super) fn stopping(&self, most: Duration) {
        let mut lines = "STOPPING=1\nSTATUS=new connections go directly; flows may end".to_owned();
        if self.watches {
            lines += &format!("\nWATCHDOG_USEC={}", most.as_micros());
        }
        self.tell(&lines);
    }

    fn ticked(&mut self, settled: bool, status: String) {
        if self.phase != Phase::Ready && settled {
            self.phase = Phase::Ready;
            self.tell("READY=1");
        }
        if self.status != status {
            self.tell(&format!("STATUS={status}"));
            self.status = status;
        }
        if self.watches {
            self.tell("WATCHDOG=1");
        }
    }
}

impl Supervisor {
    /// With each tick, so that a loop that hangs is found out.
    pub(super) fn tell_service_manager(&mut self) {
        let served = self.workloads.values();
        let served = served.filter(|workload| workload.serving().is_some());
        let mut status = format!(
            "{} of {} workloads served",
            served.count(),
            self.workloads.len()
        );
        if !self.captures {
            status += "; the data plane does not answer, connections go directly";
        }
        let settled = self.captures && !self.reloaded;
        self.manager.ticked(settled, status);
    }
}

/// A path, or with `@` before it a name that no file has.
fn open(name: &str) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}
