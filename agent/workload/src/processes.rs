//! Which processes are a pod's: those whose cgroup has its uid in a name that the kubelet gives.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::wish::PodUid;

/// Levels below the cgroup2 mount on which pods' cgroups are looked for.
const MAX_DEPTH: usize = 6;

/// A pod's oldest process: that of its sandbox, whose network namespace is the pod's whatever its containers make.
#[derive(Debug)]
pub struct Leader {
    /// Of this very process: when its number is another's, reading through this fails.
    process: OwnedFd,
    life: Life,
    pid: u32,
    /// Clock ticks since the boot.
    started: u64,
    /// The pod's in the cgroup2 hierarchy, as /proc shows it.
    cgroup: Option<PathBuf>,
}

/// Of one process: tells when it has ended, and costs nothing until then.
#[derive(Debug)]
pub struct Life(OwnedFd);

impl Life {
    fn of(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Those of `lives` that have ended, asked all at once. Where that cannot be told, none.
    pub fn ended<'a, Key>(lives: impl Iterator<Item = (Key, &'a Self)>) -> Vec<Key> {
        let (keys, mut asked): (Vec<Key>, Vec<PollFd<'a>>) = lives
            .map(|(key, life)| (key, PollFd::new(&life.0, PollFlags::IN)))
            .unzip();
        if let Err(error) = poll(&mut asked, Some(&Timespec::default())) {
            tracing::debug!(%error, "cannot ask which processes live");
            return Vec::new();
        }
        let both = keys.into_iter().zip(asked);
        both.filter(|(_, asked)| !asked.revents().is_empty())
            .map(|(key, _)| key)
            .collect()
    }
}

/// Who of `wanted` runs here, found in one walk through /proc.
pub fn find(wanted: &BTreeSet<PodUid>) -> BTreeMap<PodUid, Leader> {
    let mut found: BTreeMap<PodUid, Leader> = BTreeMap::new();
    let Ok(processes) = fs::read_dir("/proc") else {
        return found;
    };
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Most are nobody's whom we want: those cost one file.
        let Ok(text) = fs::read_to_string(process.path().join("cgroup")) else {
            continue;
        };
        let of = membership(&text).filter(|of| wanted.contains(&of.uid));
        let Some(uid) = of.map(|of| of.uid) else {
            continue;
        };
        let Some(leader) = Leader::open(pid, &uid) else {
            continue;
        };
        let older = |known: &Leader| (known.started, known.pid) <= (leader.started, leader.pid);
        if !found.get(&uid).is_some_and(older) {
            found.insert(uid, leader);
        }
    }
    found
}

/// The pod in which this process is; `None` where it is in none, or has a cgroup namespace that does not show it. Those
/// of that pod show no uid then, either.
pub fn own_pod() -> Option<PodUid> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    membership(&text).map(|of| of.uid)
}

impl Leader {
    fn open(pid: u32, uid: &PodUid) -> Option<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let process = openat(CWD, format!("/proc/{pid}"), flags, Mode::empty()).ok()?;
        // Asked again: the number may have become another's since.
        let of = membership(&read(&process, "cgroup").ok()?).filter(|of| of.uid == *uid)?;
        let life = Life::of(pid).ok()?;
        // Asked last: it lives, so its number was its own all the time.
        let started = started(&read(&process, "stat").ok()?)?;
        Some(Self {
            process,
            life,
            pid,
            started,
            cgroup: of.cgroup,
        })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn into_life(self) -> Life {
        self.life
    }

    /// Its network namespace, open.
    ///
    /// # Errors
    /// It has ended, or may not be looked at.
    pub fn netns(&self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(openat(&self.process, "ns/net", flags, Mode::empty())?.into())
    }

    /// The pod's cgroup below `mount`, if it has one there. Where the agent has a cgroup namespace of its own, the path
    /// begins elsewhere than the mount, and the directory is looked for by its name.
    pub fn cgroup(&self, mount: &Path) -> Option<PathBuf> {
        let shown = self.cgroup.as_ref()?;
        let below = shown.strip_prefix("/").unwrap_or(shown);
        if !below.starts_with("..") {
            let path = mount.join(below);
            return path.is_dir().then_some(path);
        }
        search(mount, below.file_name()?.to_str()?, MAX_DEPTH)
    }
}

fn search(dir: &Path, wanted: &str, depth: usize) -> Option<PathBuf> {
    let direct = dir.join(wanted);
    if direct.is_dir() {
        return Some(direct);
    }
    let deeper = depth.checked_sub(1)?;
    let leads = |name: &str| {
        ["kube", "burstable", "besteffort", "system"]
            .iter()
            .any(|part| name.contains(part))
    };
    fs::read_dir(dir)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(leads))
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .find_map(|entry| search(&entry.path(), wanted, deeper))
}

fn read(process: &OwnedFd, name: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut text = String::new();
    File::from(openat(process, name, flags, Mode::empty())?).read_to_string(&mut text)?;
    Ok(text)
}

/// When the process of /proc/PID/stat was started; `None` when it is dead already.
fn started(stat: &str) -> Option<u64> {
    // The name before may hold anything, blanks and parentheses too.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    // The 22nd of all, the state is the third.
    let started = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X" | "x")).then_some(started)
}

#[derive(Debug, PartialEq, Eq)]
struct Membership {
    uid: PodUid,
    cgroup: Option<PathBuf>,
}

/// The pod of a /proc/PID/cgroup, in whichever hierarchy it shows.
fn membership(text: &str) -> Option<Membership> {
    let mut found: Option<Membership> = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let Some((uid, pods)) = pod_of(path) else {
            continue;
        };
        let cgroup = (number == "0" && controllers.is_empty()).then(|| PathBuf::from(pods));
        match &mut found {
            None => found = Some(Membership { uid, cgroup }),
            Some(found) if found.uid == uid => found.cgroup = found.cgroup.take().or(cgroup),
            // Two hierarchies that disagree: somebody moved it, it is nobody's.
            Some(_) => return None,
        }
    }
    found
}

/// The uid in a cgroup's path, and the part of the path that is the pod's. Only the first that looks like a pod's
/// counts: below it a container may name cgroups as it likes.
fn pod_of(path: &str) -> Option<(PodUid, &str)> {
    let mut below_kubepods = path.starts_with("/../");
    let mut end = 0;
    for component in path.split('/') {
        end += component.len();
        if let Some(uid) =
            uid_of(component).filter(|_| below_kubepods || component.contains("kubepods"))
        {
            return Some((uid, &path[..end]));
        }
        below_kubepods |= component.contains("kubepods");
        end += 1;
    }
    None
}

/// By the kubelet's two drivers: `pod6b0a6f2e-2a3c-...` of cgroupfs, `kubepods-burstable-pod6b0a6f2e_2a3c_....slice` of
/// systemd.
fn uid_of(component: &str) -> Option<PodUid> {
    if let Some(slice) = component.strip_suffix(".slice") {
        let (_, uid) = slice.rsplit_once("-pod")?;
        return PodUid::new(uid.replace('_', "-")).ok();
    }
    PodUid::new(component.strip_prefix("pod")?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6b0a6f2e-2a3c-4a7e-9d0b-0d7c2f1f3a11";
    const SLICE: &str = "pod6b0a6f2e_2a3c_4a7e_9d0b_0d7c2f1f3a11.slice";

    #[test]
    fn the_kubelets_names() {
        let id = "e3f1".repeat(16);
        for (path, pods) in [
            // containerd, cgroupfs driver, each class of service.
            (
                format!("/kubepods/burstable/pod{UID}/{id}"),
                format!("/kubepods/burstable/pod{UID}"),
            ),
            (
                format!("/kubepods/pod{UID}/{id}"),
                format!("/kubepods/pod{UID}"),
            ),
            // containerd and cri-o, systemd driver.
            (
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-{SLICE}/cri-containerd-{id}.scope"
                ),
                format!("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-{SLICE}"),
            ),
            (
                format!("/kubepods.slice/kubepods-{SLICE}/crio-{id}.scope/container"),
                format!("/kubepods.slice/kubepods-{SLICE}"),
            ),
            // A kubelet with a root of its own (kind), and the agent in a cgroup namespace.
            (
                format!(
                    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-{SLICE}/x"
                ),
                format!(
                    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-{SLICE}"
                ),
            ),
            (
                format!("/../../kubepods-burstable-{SLICE}/cri"),
                format!("/../../kubepods-burstable-{SLICE}"),
            ),
            (format!("/../../pod{UID}/{id}"), format!("/../../pod{UID}")),
        ] {
            let (uid, shown) = pod_of(&path).expect(&path);
            assert_eq!((uid.as_str(), shown), (UID, pods.as_str()));
        }
    }

    #[test]
    fn an_ended_process_is_told_from_those_that_live() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("it starts");
        let lives = [std::process::id(), child.id()].map(|pid| Life::of(pid).expect("it lives"));
        let ended = || Life::ended(lives.iter().enumerate());
        assert_eq!(ended(), [0; 0]);
        child.kill().expect("killed");
        child.wait().expect("it ended");
        assert_eq!(ended(), [1]);
        assert!(Life::of(0).is_err());
    }

    #[test]
    fn nobody_makes_himself_a_pod() {
        let other = "11111111-2222-3333-4444-555555555555";
        let nested = format!("/kubepods/pod{UID}/abc/kubepods/pod{other}/x");
        assert_eq!(pod_of(&nested).expect("a pod").0.as_str(), UID);
        for path in [
            "/".to_owned(),
            "/kubepods".to_owned(),
            "/kubepods/podman".to_owned(),
            format!("/user.slice/user-1000.slice/pod{UID}/x"),
        ] {
            assert_eq!(pod_of(&path), None, "{path}");
        }
    }

    #[test]
    fn hierarchies_of_both_versions() {
        let path = format!("/kubepods/pod{UID}/x");
        let v1 = format!("12:memory:{path}\n1:name=systemd:{path}\n0::/\n");
        let found = membership(&v1).expect("a pod");
        assert_eq!((found.uid.as_str(), found.cgroup), (UID, None));
        let hybrid = format!("5:pids:{path}\n0::{path}\n");
        let found = membership(&hybrid).expect("a pod");
        assert_eq!(found.cgroup, Some(format!("/kubepods/pod{UID}").into()));
        let moved =
            format!("5:pids:{path}\n0::/kubepods/pod11111111-2222-3333-4444-555555555555/x\n");
        assert_eq!(membership(&moved), None);
    }

    #[test]
    fn names_with_parentheses_and_the_dead() {
        let rest = "1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 2";
        assert_eq!(started(&format!("7 (a) S (b) S {rest}")), Some(4711));
        assert_eq!(started(&format!("7 (a) Z {rest}")), None);
        assert_eq!(started(""), None);
    }
}
