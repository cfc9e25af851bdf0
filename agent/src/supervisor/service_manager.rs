//! What systemd is told of the supervisor, by the protocol of sd_notify(3); of the environment, and nothing without it.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr,
};
use rustix::time::{ClockId, clock_gettime};

use super::Supervisor;
use crate::ipc::MAX_FDS;

/// What is kept at a time. systemd hands the names over as one word of the environment, which may have 128 KiB, else
/// nothing starts; and it compares each descriptor with all that it has.
const MOST_KEPT: usize = 2048;

/// A service manager that wants to be told.
#[derive(Debug)]
pub(super) struct ServiceManager {
    link: Option<(UnixDatagram, SocketAddrUnix)>,
    /// What it keeps, and how much of it, by name.
    kept: BTreeMap<String, usize>,
    /// What of that an earlier program has given it, and this one has not.
    recalled: BTreeMap<String, usize>,
    /// It has no room now for what it is told to keep or to forget.
    waiting: VecDeque<(String, Vec<OwnedFd>)>,
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
            kept: BTreeMap::new(),
            recalled: BTreeMap::new(),
            waiting: VecDeque::new(),
            watches: std::env::var_os("WATCHDOG_USEC").is_some(),
            phase: Phase::Starting,
            status: String::new(),
        }
    }

    /// What it is told to keep may outlive this program.
    pub(super) fn is_there(&self) -> bool {
        self.link.is_some()
    }

    fn tell(&self, lines: &str) {
        if let Err(error) = self.send(lines, &[]) {
            tracing::debug!(%error, "the service manager was not told");
        }
    }

    fn send(&self, lines: &str, fds: &[OwnedFd]) -> rustix::io::Result<()> {
        let Some((socket, address)) = &self.link else {
            return Ok(());
        };
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&borrowed));
        }
        let text = [IoSlice::new(lines.as_bytes())];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg_addr(socket, address, &text, &mut control, flags).map(drop)
    }

    /// Has these kept under a name until they are [forgotten](Self::forget): whoever is started next, however this one
    /// ended, has them. Where too much is kept already they are not.
    pub(super) fn keep<'a>(&mut self, name: &str, fds: impl IntoIterator<Item = &'a OwnedFd>) {
        if self.link.is_none() {
            return;
        }
        let fds: io::Result<Vec<OwnedFd>> = fds.into_iter().map(OwnedFd::try_clone).collect();
        let mut fds = match fds {
            Ok(fds) => fds,
            Err(error) => return tracing::warn!(%error, name, "not kept for the next start"),
        };
        let count = self.recalled.remove(name).unwrap_or(0).max(fds.len());
        let all = self.kept.values().chain(self.recalled.values());
        if all.sum::<usize>() + count > MOST_KEPT {
            return tracing::debug!(name, "too much is kept for the next start");
        }
        *self.kept.entry(name.to_owned()).or_default() += count;
        while !fds.is_empty() {
            let rest = fds.split_off(fds.len().min(MAX_FDS));
            // Some kinds look broken to whoever polls them.
            let lines = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
            self.waiting
                .push_back((lines, std::mem::replace(&mut fds, rest)));
        }
        self.pass_on();
    }

    /// Nobody needs what is kept under this name.
    pub(super) fn forget(&mut self, name: &str) {
        let is_known = self.kept.remove(name).is_some() | self.recalled.remove(name).is_some();
        if is_known {
            let lines = format!("FDSTOREREMOVE=1\nFDNAME={name}");
            self.waiting.push_back((lines, Vec::new()));
            self.pass_on();
        }
    }

    pub(super) fn keeps(&self, name: &str) -> bool {
        self.kept.contains_key(name)
    }

    /// What an earlier program has had kept. It stays until it is [given up](Self::forget_recalled).
    pub(super) fn recall(&mut self, names: BTreeMap<String, usize>) {
        self.recalled = names;
    }

    /// What this program has not had kept too is forgotten.
    pub(super) fn forget_recalled(&mut self) {
        let names: Vec<String> = self.recalled.keys().cloned().collect();
        names.iter().for_each(|name| self.forget(name));
    }

    /// What is kept, and how much of it.
    pub(super) fn kept(&self) -> BTreeMap<String, usize> {
        let all = self.recalled.iter().chain(&self.kept);
        all.map(|(name, count)| (name.clone(), *count)).collect()
    }

    fn pass_on(&mut self) {
        while let Some((lines, fds)) = self.waiting.front() {
            match self.send(lines, fds) {
                // It reads on: with the next tick.
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => continue,
                Ok(()) => {}
                Err(error) => tracing::warn!(%error, lines, "the service manager was not told"),
            }
            self.waiting.pop_front();
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
        self.pass_on();
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
fn open(name: &str) -> io::Result<(UnixDatagram, SocketAddrUnix)> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        None => SocketAddrUnix::new(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}
