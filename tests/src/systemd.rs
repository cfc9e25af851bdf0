//! A host that systemd runs: the real one, as the first process of namespaces of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::agent::signal;
use crate::wait;
use crate::world::{Pod, World, remove_cgroup};

/// Keeps the machine's files as they are whatever is written to them, hides what systemd would change but for the world's
/// pods, and becomes systemd.
const BOOT: &str = r#"
set -eu
mount --make-rprivate /
umount -R -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t proc proc /proc
mount --rbind /run/netns /mnt
mount -t tmpfs tmpfs /run
mkdir /run/netns
for at in /mnt/"$1"*; do
    touch "/run/netns/${at##*/}"
    mount --bind "$at" "/run/netns/${at##*/}"
done
umount -R -l /mnt
for at in usr etc var; do
    mkdir -p /run/over/$at /run/over/work/$at
    mount -t overlay -o lowerdir=/$at,upperdir=/run/over/$at,workdir=/run/over/work/$at overlay /$at
done
for at in /etc/systemd/system /usr/lib/systemd/system-generators; do
    mount -t tmpfs tmpfs $at
done
rm -f /usr/sbin/policy-rc.d
for wanted in /usr/lib/systemd/system/*.target.wants/*; do
    ln -sf /dev/null "/etc/systemd/system/${wanted##*/}"
done
for target in sysinit basic shutdown default network; do
    rm -f /etc/systemd/system/$target.target
    printf '[Unit]\nDescription=%s\nDefaultDependencies=no\n' $target > /etc/systemd/system/$target.target
done
# As on a host: what is mounted later is seen by services that run already.
mount --make-rshared /
tr -d - < /proc/sys/kernel/random/uuid > /etc/machine-id
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd \
    --log-target=null --default-standard-output=null --default-standard-error=null
"#;

/// A command that takes longer than this hangs.
const LONGEST: &str = "60";

/// Ends with everything that it has started when dropped.
#[derive(Debug)]
pub struct Systemd {
    child: Child,
    /// As seen from outside.
    init: u32,
    cgroup: PathBuf,
    /// What was said before systemd was there.
    log: PathBuf,
    host: (String, String, String),
}

impl Systemd {
    /// # Panics
    /// It does not come up.
    pub fn boot(world: &World, host: &Pod) -> Self {
        let log = world.dir.path().join("boot.log");
        let cgroup = world.cgroup().join("systemd");
        fs::create_dir(&cgroup).expect("a cgroup");
        let child = Command::new("sh")
            .args([
                "-c",
                "echo 0 > \"$1/cgroup.procs\"; shift; exec \"$@\"",
                "sh",
            ])
            .arg(&cgroup)
            .args(["nsenter", &format!("--net=/run/netns/{}", host.netns)])
            .args([
                "unshare",
                "-m",
                "-p",
                "-f",
                "-u",
                "-i",
                "-C",
                "--kill-child",
            ])
            .args(["sh", "-c", BOOT, "sh", world.label()])
            .stdin(Stdio::null())
            .stderr(fs::File::create(&log).expect("a log"))
            .spawn()
            .expect("runs");
        let pid = child.id();
        let init = wait::until("the first process", Duration::from_secs(10), || {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
            children.split_whitespace().next()?.parse().ok()
        });
        let systemd = Self {
            child,
            init,
            cgroup,
            log,
            host: (host.netns.clone(), host.v4.clone(), host.v6.clone()),
        };
        wait::until("systemd is up", Duration::from_secs(30), || {
            let said = systemd.run(&["systemctl", "is-system-running"]);
            (said.stdout == b"running\n").then_some(())
        });
        systemd
    }

    /// A command on this host.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn run(&self, command: &[&str]) -> Output {
        Command::new("timeout")
            .args([LONGEST, "nsenter", "-t", &self.init.to_string()])
            .args(["-m", "-p", "-n", "-u", "-i", "-C"])
            .args(command)
            .stdin(Stdio::null())
            .output()
            .expect("runs")
    }

    /// A file of this host alone.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn write(&self, path: &str, text: &str) {
        let script = "mkdir -p \"${1%/*}\" && printf %s \"$2\" > \"$1\"";
        let output = self.run(&["sh", "-c", script, "sh", path, text]);
        assert!(output.status.success(), "{path}: {output:?}");
    }

    /// # Panics
    /// It fails.
    pub fn systemctl(&self, verb: &str, unit: &str) {
        let output = self.run(&["systemctl", verb, unit]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{verb} {unit}: {said}");
    }

    /// What systemd knows of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        let output = self.run(&["systemctl", "show", unit, "--value", "-p", name]);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Where one's processes are.
    pub fn service(&self, unit: &str) -> Pod {
        let (netns, v4, v6) = self.host.clone();
        let cgroup = self.cgroup.join("system.slice").join(unit);
        Pod {
            netns,
            v4,
            v6,
            cgroup,
        }
    }
}

impl Drop for Systemd {
    #[expect(clippy::print_stderr, reason = "a failed test's output")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("systemd's host said: {said}");
        }
        signal("-KILL", self.init);
        let _ = self.child.wait();
        remove_tree(&self.cgroup);
    }
}

fn remove_tree(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    remove_cgroup(cgroup);
}
