//! What the agent as a whole has on the node: its directory and lock, the admin sockets, its cgroup.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, umask};
use shunt_core::config::Config;
use shunt_core::workload::{OnFailure, WorkloadSpec};
use shunt_intercept::InterceptError;
use shunt_intercept::cgroup;

use super::cni::Attachments;
use super::store::Stored;
use crate::cleanup;

/// The prefix of cgroups made by [`OwnCgroup`].
pub(crate) const CGROUP_PREFIX: &str = "shunt-agent-";

#[derive(Debug)]
pub(super) struct Home {
    /// Held as long as the agent lives: one agent per state directory.
    _lock: Flock<File>,
    admin_path: PathBuf,
    admin: UnixListener,
    admin_tcp: Option<TcpListener>,
    pub(super) started: Instant,
}

impl Home {
    /// `admin`: its sockets, of the supervisor before this one, which had run for `uptime`.
    pub(super) fn open(config: &Config, admin: Vec<OwnedFd>, uptime: Duration) -> Result<Self> {
        let mut admin = admin.into_iter();
        let dir = &config.state_dir;
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let lock_path = dir.join("lock");
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .with_context(|| format!("cannot open {}", lock_path.display()))?;
        let _ = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error);
        let lock = lock.with_context(|| {
            format!(
                "another agent uses {}; give this one its own state_dir",
                dir.display()
            )
        })?;
        let (inherited_unix, inherited_tcp) = (admin.next(), admin.next());
        let admin_tcp = config
            .admin
            .address
            .map(|addr| match inherited_tcp {
                Some(tcp) => Ok(TcpListener::from(tcp)),
                None => TcpListener::bind(addr)
                    .with_context(|| format!("cannot bind admin.address {addr}")),
            })
            .transpose()?;
        Ok(Self {
            _lock: lock,
            admin: match inherited_unix {
                Some(unix) => UnixListener::from(unix),
                None => bind_private(&config.admin.socket)?,
            },
            admin_path: config.admin.socket.clone(),
            admin_tcp,
            started: Instant::now()
                .checked_sub(uptime)
                .unwrap_or_else(Instant::now),
        })
    }

    /// The data plane answers on them; they stay open here, so that nobody is refused while it restarts.
    pub(super) fn admin_fds(&self) -> Result<Vec<OwnedFd>> {
        let mut fds: Vec<OwnedFd> = vec![self.admin.try_clone()?.into()];
        if let Some(tcp) = &self.admin_tcp {
            fds.push(tcp.try_clone()?.into());
        }
        Ok(fds)
    }

    /// Removes what agents that were killed have left, but not what keeps a workload closed that is to be, nor what those
    /// need who wait for this agent: that is replaced when the workload is enrolled.
    pub(super) fn clean_up_after_the_dead<'a>(
        &self,
        workloads: impl Iterator<Item = &'a WorkloadSpec>,
        attachments: &Attachments,
        stored: &Stored,
    ) {
        let is_needed = |spec: &&WorkloadSpec| {
            spec.on_failure == OnFailure::Closed || stored.is_awaited_by(&spec.name)
        };
        let needed = workloads.filter(is_needed);
        // A name that the CNI plugin told may lead nowhere here.
        let inode = |spec: &WorkloadSpec| match attachments.netns_of(spec) {
            Some(netns) => Some(netns.inode()),
            None => fs::metadata(&spec.netns).ok().map(|found| found.ino()),
        };
        let spare: Vec<u64> = needed.filter_map(inode).collect();
        let extent = cleanup::Extent::Remove;
        for removed in cleanup::remove_leftovers(extent, &spare, &stored.flows()) {
            tracing::warn!("removed what an earlier agent left: {removed}");
        }
    }

    pub(super) fn leave(&self) {
        if let Err(error) = fs::remove_file(&self.admin_path) {
            tracing::warn!(%error, path = %self.admin_path.display(), "cannot remove the admin socket");
        }
    }
}

/// A unix socket that only the owner can connect to, in place of one that nobody answers on.
fn bind_private(path: &Path) -> Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    match UnixStream::connect(path) {
        Ok(_) => bail!("another agent answers on admin.socket {}", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) => {
            fs::remove_file(path)
                .with_context(|| format!("cannot remove the stale socket {}", path.display()))?;
        }
    }
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    umask(before);
    bound.with_context(|| format!("cannot bind admin.socket {}", path.display()))
}

/// The cgroup in which the agent's sockets are made. An agent that shares the root cgroup with everybody moves into
/// one of its own, since a hook at the root would cost every process of the node.
#[derive(Debug)]
pub(super) struct OwnCgroup {
    path: PathBuf,
    made: bool,
    root: PathBuf,
}

impl OwnCgroup {
    pub(super) fn find_or_make() -> Result<Self, InterceptError> {
        let root = cgroup::mount_point()?;
        let path = root.join(format!("{CGROUP_PREFIX}{}", std::process::id()));
        // By the supervisor that this one has succeeded. Who has a cgroup namespace is told another path to it.
        if has_this_process(&path) {
            return Ok(Self {
                path,
                made: true,
                root,
            });
        }
        let own = cgroup::of_this_process(&root)?;
        if own != root {
            return Ok(Self {
                path: own,
                made: false,
                root,
            });
        }
        fs::create_dir_all(&path)
            .and_then(|()| fs::write(path.join("cgroup.procs"), "0"))
            .map_err(|error| {
                InterceptError::io("move the agent into cgroup", path.display(), error)
            })?;
        Ok(Self {
            path,
            made: true,
            root,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn has_this_process(cgroup: &Path) -> bool {
    let own = std::process::id().to_string();
    let processes = fs::read_to_string(cgroup.join("cgroup.procs"));
    processes.is_ok_and(|processes| processes.lines().any(|process| process == own))
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        if self.made {
            // Best effort: an empty cgroup that stays is removed by the next start.
            let _ = fs::write(self.root.join("cgroup.procs"), "0");
            let _ = fs::remove_dir(&self.path);
        }
    }
}
