//! Pods: a network namespace, a veth to a bridge, an address of each family, a cgroup.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::wait;

/// A command in a pod that takes longer than this hangs.
const LONGEST: Duration = Duration::from_secs(20);

/// One bridge in a namespace of its own, and the pods on it. Names hold the process's id: tests run side by side.
#[derive(Debug)]
pub struct World {
    label: String,
    cgroup: PathBuf,
    pods: AtomicU32,
    /// For configuration files and the like.
    pub dir: TempDir,
}

/// See the head of this module.
#[derive(Debug)]
pub struct Pod {
    /// The namespace's name under /run/netns.
    pub netns: String,
    pub v4: String,
    pub v6: String,
    pub cgroup: PathBuf,
}

/// A program in a pod, killed and reaped when dropped.
#[derive(Debug)]
pub struct Running(pub Child);

impl World {
    /// # Panics
    /// The host does not allow it.
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let label = format!("shunt-t{}-{number}", std::process::id());
        let cgroup = cgroup2().join(&label);
        fs::create_dir_all(&cgroup).expect("a cgroup");
        ip(&format!("netns add {label}"));
        ip(&format!("-n {label} link set lo up"));
        ip(&format!("-n {label} link add br0 type bridge"));
        ip(&format!("-n {label} link set br0 up"));
        let dir = tempfile::tempdir().expect("a directory");
        Self {
            label,
            cgroup,
            pods: AtomicU32::new(0),
            dir,
        }
    }

    /// Where its pods' cgroups are.
    pub fn cgroup(&self) -> &std::path::Path {
        &self.cgroup
    }

    /// The name of the bridge's namespace; all names start with it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// # Panics
    /// The host does not allow it.
    pub fn pod(&self) -> Pod {
        self.build(self.pods.fetch_add(1, Ordering::Relaxed))
    }

    /// Deletes a pod, and makes another at once that looks the same.
    ///
    /// # Panics
    /// As [`World::pod`], or the pod's programs do not end.
    pub fn again(&self, pod: Pod) -> Pod {
        let number = pod
            .port()
            .trim_start_matches('p')
            .parse()
            .expect("a number");
        ip(&format!("netns del {}", pod.netns));
        let _ = fs::write(pod.cgroup.join("cgroup.kill"), "1");
        remove_cgroup(&pod.cgroup);
        // The veth goes with the namespace, which the kernel takes apart in its own time.
        let gone = || ip_quietly(&format!("-n {} link del {}", self.label, pod.port()));
        wait::until("the veth is gone", Duration::from_secs(5), || {
            (!gone()).then_some(())
        });
        self.build(number)
    }

    fn build(&self, number: u32) -> Pod {
        let netns = format!("{}-p{number}", self.label);
        let (host, port) = (number + 2, format!("p{number}"));
        ip(&format!("netns add {netns}"));
        ip(&format!(
            "link add {port} netns {} type veth peer name eth0 address 02:66:00:00:00:{host:02x} netns {netns}",
            self.label
        ));
        ip(&format!("-n {} link set {port} master br0 up", self.label));
        let pod = Pod {
            v4: format!("10.66.0.{host}"),
            v6: format!("fd66::{host}"),
            cgroup: self.cgroup.join(format!("p{number}")),
            netns: netns.clone(),
        };
        fs::create_dir_all(&pod.cgroup).expect("a cgroup");
        ip(&format!("-n {netns} link set lo up"));
        ip(&format!("-n {netns} addr add {}/24 dev eth0", pod.v4));
        ip(&format!("-n {netns} addr add {}/64 dev eth0 nodad", pod.v6));
        ip(&format!("-n {netns} link set eth0 up"));
        wait::until("the veth comes up", Duration::from_secs(5), || {
            let shown = Command::new("ip")
                .args(["-n", &netns, "-6", "addr", "show", "dev", "eth0"])
                .output();
            let text = String::from_utf8(shown.expect("ip runs").stdout).expect("text");
            (text.contains("LOWER_UP") && !text.contains("tentative")).then_some(())
        });
        pod
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for number in 0..*self.pods.get_mut() {
            let _ = Command::new("ip")
                .args(["netns", "del", &format!("{}-p{number}", self.label)])
                .output();
            let cgroup = self.cgroup.join(format!("p{number}"));
            let _ = fs::write(cgroup.join("cgroup.kill"), "1");
            remove_cgroup(&cgroup);
        }
        let _ = Command::new("ip")
            .args(["netns", "del", &self.label])
            .output();
        remove_cgroup(&self.cgroup);
    }
}

pub(crate) fn remove_cgroup(path: &std::path::Path) {
    let start = Instant::now();
    // Killed processes take a moment to leave.
    while fs::remove_dir(path).is_err() && path.exists() && start.elapsed() < Duration::from_secs(2)
    {
        wait::pause(Duration::from_millis(10));
    }
}

impl Pod {
    /// A further address on the pod's network.
    ///
    /// # Panics
    /// It cannot be added.
    pub fn add_address(&self, address: IpAddr) {
        let more = if address.is_ipv4() { "/24" } else { "/64" };
        let nodad = if address.is_ipv4() { "" } else { " nodad" };
        let netns = &self.netns;
        ip(&format!(
            "-n {netns} addr add {address}{more} dev eth0{nodad}"
        ));
    }

    /// The bridge's end of its veth.
    pub fn port(&self) -> &str {
        let (_, port) = self.netns.rsplit_once('-').unwrap_or_default();
        port
    }

    /// Says that flows go through its namespace: agents of other tests, which do not know it, let it alone.
    ///
    /// # Panics
    /// It cannot be said.
    pub fn occupied(&self) -> Running {
        let script = "import signal, socket\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
                      s.bind('\\0shunt/flows/test')\nsignal.pause()";
        let running = self.spawn("python3", &["-c", script]);
        wait::until("the namespace is occupied", Duration::from_secs(5), || {
            let held = self.says("cat", &["/proc/net/unix"]);
            held.contains("@shunt/flows/test").then_some(())
        });
        running
    }

    /// A command in the pod's namespace and cgroup.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("sh");
        let script =
            "echo 0 > \"$1/cgroup.procs\"; netns=$2; shift 2; exec ip netns exec \"$netns\" \"$@\"";
        command
            .args(["-c", script, "sh"])
            .arg(&self.cgroup)
            .arg(&self.netns)
            .arg(program);
        command
    }

    /// Runs a program to its end.
    ///
    /// # Panics
    /// It hangs or cannot be started.
    pub fn run(&self, program: &str, args: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.arg(LONGEST.as_secs().to_string());
        let inner = self.command(program);
        command
            .arg(inner.get_program())
            .args(inner.get_args())
            .args(args);
        command
            .stdin(Stdio::null())
            .output()
            .expect("the program starts")
    }

    /// A program's stdout, trimmed.
    ///
    /// # Panics
    /// It fails.
    pub fn says(&self, program: &str, args: &[&str]) -> String {
        let output = self.run(program, args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{program} {args:?}: {}: {stderr}",
            output.status
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// A Python script to its end.
    ///
    /// # Panics
    /// It fails.
    pub fn python(&self, script: &str) -> String {
        self.says("python3", &["-c", script])
    }

    /// Starts a program; it is killed when the guard is dropped.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn spawn(&self, program: &str, args: &[&str]) -> Running {
        let mut command = self.command(program);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Running(command.spawn().expect("the program starts"))
    }

    /// # Panics
    /// Nobody listens within a few seconds.
    pub fn wait_for_listener(&self, port: u16) {
        wait::until(
            &format!("a listener on {port}"),
            Duration::from_secs(10),
            || {
                let shown = Command::new("ip")
                    .args(["netns", "exec", &self.netns, "ss", "-Hltn"])
                    .output();
                let text = String::from_utf8(shown.expect("ss runs").stdout).expect("text");
                text.lines()
                    .any(|line| {
                        line.split_whitespace()
                            .nth(3)
                            .is_some_and(|at| at.ends_with(&format!(":{port}")))
                    })
                    .then_some(())
            },
        );
    }

    /// nginx on ports 80 (says the client's address) with `/big`, 4 MB that are known.
    ///
    /// # Panics
    /// It does not start.
    pub fn nginx(&self, world: &World) -> Running {
        let dir = world.dir.path().join(&self.netns);
        fs::create_dir_all(&dir).expect("a directory");
        let known: Vec<u8> = (0..4_u32 << 20)
            .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        fs::write(dir.join("big"), known).expect("written");
        let at = dir.display();
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\n\
             events {{}}\nhttp {{ access_log off; server {{ listen 80; listen [::]:80 ipv6only=on;\n\
             location / {{ return 200 \"$remote_addr\"; }} location /big {{ alias {at}/big; }}\n\
             location /slow {{ alias {at}/big; limit_rate 1m; }} }} }}\n"
        );
        let file = dir.join("nginx.conf");
        fs::write(&file, config).expect("written");
        let running = self.spawn("nginx", &["-c", &file.display().to_string()]);
        self.wait_for_listener(80);
        running
    }

    /// What the namespace's netfilter and routing look like.
    pub fn state(&self) -> String {
        let mut state = String::new();
        for command in [
            "iptables-save",
            "ip6tables-save",
            "nft list ruleset",
            "ip rule",
            "ip -6 rule",
            "ip route show table all",
            "sysctl net.ipv4.tcp_fwmark_accept net.ipv4.fwmark_reflect net.ipv6.fwmark_reflect net.netfilter.nf_conntrack_tcp_timeout_time_wait net.netfilter.nf_conntrack_tcp_timeout_close",
            "ss -Hltn",
        ] {
            let words: Vec<&str> = command.split(' ').collect();
            let output = Command::new("ip")
                .args(["netns", "exec", &self.netns])
                .args(words)
                .output()
                .expect("runs");
            let text = String::from_utf8_lossy(&output.stdout);
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            state.push_str(&format!(
                "== {command}\n{}\n",
                lines.collect::<Vec<_>>().join("\n")
            ));
        }
        state
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `ip` with these words.
///
/// # Panics
/// It fails.
pub fn ip(args: &str) {
    let output = Command::new("ip")
        .args(args.split(' '))
        .output()
        .expect("`ip` runs");
    assert!(
        output.status.success(),
        "ip {args}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn ip_quietly(args: &str) -> bool {
    let mut ip = Command::new("ip");
    let output = ip.args(args.split(' ')).output();
    output.expect("`ip` runs").status.success()
}

pub fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let line = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .expect("a cgroup2 mount");
    PathBuf::from(line.split(' ').nth(4).expect("a mount point"))
}
