//! The dead-man switch: REDIRECT holds only while somebody alive keeps writing; the kernel judges, nobody has to act.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use shunt_core::explain::Condition;
use shunt_core::sockets::Family;

use super::netfilter::Netfilter;
use crate::InterceptError;
use crate::netns::Netns;

/// What closes a REDIRECT for a second at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadMan {
    /// The `recent` match: one address that stands for all, written into the namespace's xt_recent list.
    Recent,
    /// The `set` match: an ipset holding the whole address space, whose members time out. Where `recent` is missing.
    Set,
}

impl DeadMan {
    pub(super) const ALL: [Self; 2] = [Self::Recent, Self::Set];

    /// The match as iptables takes it.
    pub(super) fn matching(self, family: Family) -> String {
        let name = list(family);
        match (self, family) {
            (Self::Recent, Family::V4) => {
                format!("-m recent --rcheck --seconds 1 --name {name} --mask 0.0.0.0 --rdest ")
            }
            (Self::Recent, Family::V6) => {
                format!("-m recent --rcheck --seconds 1 --name {name} --mask :: --rdest ")
            }
            (Self::Set, _) => format!("-m set --match-set {name} dst "),
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Recent => "the recent match",
            Self::Set => "an ipset with timeout",
        }
    }
}

/// The name of the recent list, or of the set. Both live in the namespace.
pub(super) fn list(family: Family) -> &'static str {
    match family {
        Family::V4 => "shunt4",
        Family::V6 => "shunt6",
    }
}

/// One family's switch in one namespace.
#[derive(Debug)]
pub(super) struct Switch {
    netns: Arc<Netns>,
    family: Family,
    kind: DeadMan,
    /// `None`: to be opened again, its list had vanished with the rules.
    handle: Option<Handle>,
    is_new: bool,
}

#[derive(Debug)]
enum Handle {
    Recent(File),
    Set(Netfilter),
}

impl Switch {
    /// The rules, or the set, exist already.
    pub(super) fn open(
        netns: &Arc<Netns>,
        family: Family,
        kind: DeadMan,
    ) -> Result<Self, InterceptError> {
        let mut switch = Self {
            netns: Arc::clone(netns),
            family,
            kind,
            handle: None,
            is_new: true,
        };
        switch.reopen().map_err(|error| {
            InterceptError::io("open the dead-man switch of", netns.path().display(), error)
        })?;
        Ok(switch)
    }

    /// Nobody has kept it yet.
    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    /// False: what it writes to had vanished.
    pub(super) fn works(&self) -> bool {
        self.handle.is_some()
    }

    /// What [`keep_switch`] takes. `None`: it is of the other kind, and is refreshed again only by its next owner.
    pub(super) fn share(&self) -> io::Result<Option<(Family, OwnedFd)>> {
        match &self.handle {
            Some(Handle::Recent(file)) => Ok(Some((self.family, file.try_clone()?.into()))),
            Some(Handle::Set(_)) | None => Ok(None),
        }
    }

    /// Says so once when it begins to fail and once when it works again, though it is called four times a second.
    pub(super) fn keep_alive(&mut self) {
        let worked = self.handle.is_some();
        self.is_new = false;
        let done = self
            .refresh()
            .or_else(|_| self.reopen().and_then(|()| self.refresh()));
        let netns = self.netns.path().display();
        match done {
            Ok(()) if !worked => tracing::info!(%netns, family = ?self.family, "captures again"),
            Ok(()) => {}
            Err(error) => {
                self.handle = None;
                if worked {
                    tracing::warn!(%netns, family = ?self.family, %error,
                        "the dead-man switch has vanished: somebody removed the rules, connections go directly");
                }
            }
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        let open = || match self.kind {
            DeadMan::Recent => {
                let path = format!("/proc/thread-self/net/xt_recent/{}", list(self.family));
                File::options().write(true).open(path).map(Handle::Recent)
            }
            DeadMan::Set => Netfilter::open().map(Handle::Set),
        };
        self.handle = Some(self.netns.enter(open)??);
        Ok(())
    }

    fn refresh(&mut self) -> io::Result<()> {
        match &mut self.handle {
            Some(Handle::Recent(file)) => touch(file, self.family),
            Some(Handle::Set(netfilter)) => netfilter.refresh_set(self.family, list(self.family)),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

fn touch(file: &mut File, family: Family) -> io::Result<()> {
    // From the start of the file each time: the kernel takes nothing at a later offset, and knows no pwrite here.
    file.rewind()?;
    file.write_all(match family {
        Family::V4 => b"+0.0.0.0\n",
        Family::V6 => b"+::\n",
    })
}

/// Rules of the supervisor before this one stay closed for a second more. `switch` as it was left.
///
/// # Errors
/// The rules have gone.
pub fn keep_switch(family: Family, switch: &OwnedFd) -> io::Result<()> {
    touch(&mut File::from(switch.try_clone()?), family)
}

/// The sets must be there before the rules that name them.
pub(super) fn create_sets(netns: &Netns, families: &[Family]) -> Result<(), InterceptError> {
    let create = || {
        let netfilter = Netfilter::open()?;
        families
            .iter()
            .try_for_each(|family| netfilter.create_set(*family, list(*family)))
    };
    netns
        .enter(create)
        .and_then(|created| created)
        .map_err(|error| InterceptError::io("make the sets of", netns.path().display(), error))
}

/// Those of our sets that are there.
pub(super) fn sets(netns: &Netns) -> Vec<&'static str> {
    let look = || {
        let Ok(netfilter) = Netfilter::open() else {
            return Vec::new();
        };
        let names = super::FAMILIES.map(list);
        names
            .into_iter()
            .filter(|name| netfilter.has_set(name))
            .collect()
    };
    netns.enter(look).unwrap_or_default()
}

/// Destroys our sets and says which. The kernel lets go of deleted rules a moment later, and of their sets with them.
pub(super) fn destroy_sets(netns: &Netns) -> Result<Vec<&'static str>, InterceptError> {
    let present = sets(netns);
    for name in &present {
        let destroy = || {
            let netfilter = Netfilter::open()?;
            let mut attempts = 0;
            loop {
                match netfilter.destroy_set(name) {
                    Err(error) if error.raw_os_error() == Some(BUSY) && attempts < 50 => pause(),
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
                    done => return done,
                }
                attempts += 1;
            }
        };
        netns
            .enter(destroy)
            .and_then(|done| done)
            .map_err(|error| InterceptError::io("destroy the set", name, error))?;
    }
    Ok(present)
}

/// IPSET_ERR_BUSY: a rule still names it.
const BUSY: i32 = 4100;

#[expect(
    clippy::disallowed_methods,
    reason = "the kernel does not tell when it has let go"
)]
pub(super) fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(10));
}

/// Does the kernel let connections be redirected right now?
pub(super) fn state(
    netns: &Netns,
    family: Family,
    kind: DeadMan,
) -> Result<Condition, InterceptError> {
    let name = list(family);
    let look = || match kind {
        DeadMan::Recent => {
            let path = format!("/proc/thread-self/net/xt_recent/{name}");
            fs::read_to_string(path).map(Some)
        }
        DeadMan::Set => {
            let netfilter = Netfilter::open()?;
            Ok(netfilter.is_open(family, name)?.then(String::new))
        }
    };
    let seen = match netns.enter(look).and_then(|seen| seen) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Condition::new(false, format!("{name} is not there")));
        }
        seen => seen.map_err(|error| {
            InterceptError::io("read the dead-man switch of", netns.path().display(), error)
        })?,
    };
    match (kind, seen) {
        (DeadMan::Set, open) => {
            let holds = if open.is_some() { "has" } else { "has no" };
            Ok(Condition::new(
                open.is_some(),
                format!("the set {name} {holds} members"),
            ))
        }
        (DeadMan::Recent, text) => recent_state(name, &text.unwrap_or_default())
            .map_err(|error| InterceptError::io("read", "the kernel's tick", error)),
    }
}

/// The kernel tells the last entry's time in ticks, and judges it so: no older than a second.
fn recent_state(name: &str, text: &str) -> io::Result<Condition> {
    let seen = text
        .split_once("last_seen: ")
        .and_then(|(_, rest)| rest.split(' ').next()?.parse::<u64>().ok());
    let Some(seen) = seen else {
        return Ok(Condition::new(
            false,
            format!("the recent list {name} is empty"),
        ));
    };
    let timers = fs::read_to_string("/proc/timer_list")?;
    let now = timers
        .lines()
        .find_map(|line| line.strip_prefix("jiffies: ")?.trim().parse::<u64>().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    // The coarse clocks advance once a tick.
    let tick = nix::time::clock_getres(nix::time::ClockId::CLOCK_REALTIME_COARSE)?;
    let tick_ms = u64::try_from(tick.tv_nsec()).unwrap_or(0) / 1_000_000;
    let age_ms = now.saturating_sub(seen) * tick_ms.max(1);
    let evidence =
        format!("the recent list {name} was written {age_ms} ms ago, which holds for 1000 ms");
    Ok(Condition::new(age_ms <= 1000, evidence))
}
