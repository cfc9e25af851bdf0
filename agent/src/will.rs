//! What a supervisor leaves to the program that takes its place in the same process: descriptors, by their numbers, and
//! what they are for, as JSON in a memory file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use shunt_core::sockets::{Family, ListenerSpec};
use shunt_core::workload::{WorkloadId, WorkloadName, WorkloadSpec};
use shunt_intercept::ebpf;
use shunt_intercept::inherited::{bequeath, inherit};

use crate::ipc;

/// Says which supervisors may succeed each other: those of the same word. Its first number is raised when anything here
/// changes its meaning. What the data plane is told ([`ipc::VERSION`]), and what it reads in the kernel ([`ebpf::LAYOUT`]),
/// counts too: the one that serves goes on under the next supervisor.
pub const LINE: &str = "shunt-1.5.1";
const _: () = assert!(ipc::VERSION == 5 && ebpf::LAYOUT == 1, "LINE has them too");

/// A descriptor on its way.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Left(i32);

/// See the head of this module.
#[derive(Debug, Serialize, Deserialize)]
pub struct Will {
    line: String,
    pub uptime_ms: u64,
    pub next_id: u32,
    pub next_plane: u64,
    /// Wishes that are not in the file, or differ from it.
    pub put: Vec<WorkloadSpec>,
    /// The file's that were taken out.
    pub deleted: Vec<WorkloadName>,
    /// Somebody was withdrawn, and his flows have not ended.
    pub unfinished: bool,
    pub admin: Vec<Left>,
    /// The node's own listeners.
    pub node: Vec<(SocketAddr, Vec<Left>)>,
    pub served: Vec<Served>,
    /// Threads of each data plane.
    pub workers: usize,
    pub planes: Vec<Plane>,
    pub steering: Option<Steering>,
    /// By the inode of the namespace: sockets that own a table there.
    pub tables: Vec<(u64, Left)>,
    /// What keeps rules closed, by family.
    pub switches: Vec<(Family, Left)>,
    /// What systemd keeps, and how much of it, by name.
    #[serde(default)]
    pub stored: BTreeMap<String, usize>,
}

/// A workload.
#[derive(Debug, Serialize, Deserialize)]
pub struct Served {
    pub name: WorkloadName,
    pub shares_netns: bool,
    pub netns: Left,
    /// By which the namespace is known.
    pub path: PathBuf,
    pub id: WorkloadId,
    pub claim: Option<Left>,
    pub flows: Option<Left>,
    pub listeners: Vec<(ListenerSpec, Vec<Left>)>,
}

/// A data plane.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plane {
    pub id: u64,
    pub pid: u32,
    pub channel: Left,
    pub heartbeats: Left,
    /// The same again, of the one that serves.
    pub page: Option<Left>,
    /// The number of the next message to it.
    pub next: u64,
    /// `None`: it serves. Else how long it may still let its flows end.
    pub retires_in_ms: Option<u64>,
}

/// Programs that go on until the successor's are attached.
#[derive(Debug, Serialize, Deserialize)]
pub struct Steering {
    pub gate: Left,
    pub destinations: Left,
    pub capturing: Vec<Left>,
    pub attending: Vec<Left>,
}

/// Keeps open what is left, and closes it where nobody came to take it.
#[derive(Debug, Default)]
pub struct Leaving(Vec<OwnedFd>);

impl Leaving {
    /// # Errors
    /// Descriptors ran out.
    pub fn leave(&mut self, fd: impl AsFd) -> io::Result<Left> {
        let own = fd.as_fd().try_clone_to_owned()?;
        let number = bequeath(&own)?;
        self.0.push(own);
        Ok(Left(number))
    }

    /// # Errors
    /// As [`Leaving::leave`].
    pub fn leave_all<'a>(
        &mut self,
        fds: impl IntoIterator<Item = &'a OwnedFd>,
    ) -> io::Result<Vec<Left>> {
        fds.into_iter().map(|fd| self.leave(fd)).collect()
    }

    /// Writes it down. Gives the number under which [`Will::read`] finds it.
    ///
    /// # Errors
    /// There is no memory, or no descriptor.
    pub fn write(&mut self, will: &Will) -> Result<i32> {
        let file = memfd_create("shunt-will", MemfdFlags::CLOEXEC)?;
        let mut file = File::from(file);
        file.write_all(&serde_json::to_vec(will)?)?;
        Ok(self.leave(&file)?.0)
    }
}

impl Left {
    /// # Errors
    /// It did not come.
    pub fn take(self) -> io::Result<OwnedFd> {
        inherit(self.0)
    }

    /// # Errors
    /// As [`Left::take`].
    pub fn take_all(all: Vec<Self>) -> io::Result<Vec<OwnedFd>> {
        all.into_iter().map(Self::take).collect()
    }
}

impl Will {
    /// With nothing in it.
    pub fn new(uptime_ms: u64, next_id: u32, workers: usize) -> Self {
        Self {
            line: LINE.to_owned(),
            uptime_ms,
            next_id,
            workers,
            next_plane: 1,
            put: Vec::new(),
            deleted: Vec::new(),
            unfinished: false,
            admin: Vec::new(),
            node: Vec::new(),
            served: Vec::new(),
            planes: Vec::new(),
            steering: None,
            tables: Vec::new(),
            switches: Vec::new(),
            stored: BTreeMap::new(),
        }
    }

    /// # Errors
    /// There is none, or it is another line's.
    pub fn read(number: i32) -> Result<Self> {
        let mut file = File::from(inherit(number).context("nothing was left")?);
        file.rewind()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let will: Self = serde_json::from_str(&text).context("cannot read what was left")?;
        ensure!(
            will.line == LINE,
            "what was left is of line {}, this is {}",
            will.line,
            LINE
        );
        Ok(will)
    }
}
