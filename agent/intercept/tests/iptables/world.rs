//! A pod and a peer in namespaces of their own, a listener of the "agent" in the pod, and words that tell who answered.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};
use shunt_core::flow::Direction;
use shunt_core::sockets::{ListenerSpec, Steering};
use shunt_core::workload::{
    AccelerationPolicy, CapturePolicy, ModeSetting, OnFailure, WorkloadId, WorkloadName,
    WorkloadSpec,
};
use shunt_intercept::netns::Netns;
use shunt_intercept::{Enrolment, Listener, Marks};

pub const MARKS: Marks = Marks {
    upstream: 0x539,
    delivery: 0x53a,
};
pub const PEER_PORT: u16 = 9000;
pub const POD: [&str; 2] = ["10.77.0.1", "fd77::1"];
pub const PEER: [&str; 2] = ["10.77.0.2", "fd77::2"];

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Deletes its namespace when dropped, and with it everything in it.
pub struct Space {
    name: String,
    pub netns: Arc<Netns>,
}

impl Space {
    pub fn new() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("shunt-ipt-{}-{number}", std::process::id());
        run("ip", &["netns", "add", &name]);
        run("ip", &["-n", &name, "link", "set", "lo", "up"]);
        let netns = Netns::open(&PathBuf::from("/run/netns").join(&name)).expect("just made");
        Self {
            name,
            netns: Arc::new(netns),
        }
    }

    pub fn path(&self) -> &Path {
        self.netns.path()
    }

    /// Runs a shell line inside; what it says on stdout.
    pub fn sh(&self, line: &str) -> String {
        run("ip", &["netns", "exec", &self.name, "sh", "-ec", line])
    }

    /// Everything that an installation could leave behind.
    pub fn state(&self) -> String {
        self.sh("{ iptables-nft-save; ip6tables-nft-save; iptables-legacy-save; ip6tables-legacy-save; \
                   nft list ruleset; ipset list; ip rule; ip -6 rule; \
                   ip route show table all; ip -6 route show table all; \
                   cat /proc/sys/net/ipv4/tcp_fwmark_accept /proc/sys/net/ipv[46]/fwmark_reflect; } 2>/dev/null \
                 | grep -v '^#' | sed 's/\\[[0-9:]*\\]//; s/counter packets [0-9]* bytes [0-9]*/counter/'")
    }

    pub fn nat(&self, variant: &str) -> String {
        self.sh(&format!(
            "iptables-{variant}-save; ip6tables-{variant}-save"
        ))
    }

    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        self.netns.enter(work).expect("the namespace is there")
    }

    /// Whoever connects reads `word`, and SO_ORIGINAL_DST when `word` is "agent".
    fn serve(&self, listener: TcpListener, word: &'static str) {
        // Ends when the process does: nobody waits for it, and its namespace's name is gone before.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut answer = word.to_owned();
                if word != "direct" {
                    answer = format!("{word} {}", original(&stream));
                }
                let peer = stream.peer_addr().expect("connected").ip();
                let _ = stream.write_all(format!("{answer} for {peer}").as_bytes());
            }
        });
    }

    pub fn serve_direct(&self, port: u16) {
        for addr in [format!("0.0.0.0:{port}"), format!("[::]:{port}")] {
            let addr = addr.parse().expect("an address");
            let Ok((_, mut sockets)) = self.netns.listen(addr, 0, 1) else {
                continue;
            };
            self.serve(blocking(sockets.remove(0)), "direct");
        }
    }

    /// Who answers at `addr`, asked from here.
    pub fn ask(&self, addr: &str) -> String {
        let addr: SocketAddr = addr.parse().expect("an address");
        let connected = || TcpStream::connect_timeout(&addr, Duration::from_secs(1));
        match self.enter(connected) {
            Ok(stream) => read(stream),
            Err(error) => format!("{:?}", error.kind()),
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

/// pod <-> peer over a veth.
pub struct World {
    pub pod: Space,
    pub peer: Space,
}

impl World {
    pub fn new() -> Self {
        let (pod, peer) = (Space::new(), Space::new());
        run(
            "ip",
            &[
                "-n", &pod.name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0",
                "netns", &peer.name,
            ],
        );
        // No link-local address: its route comes seconds later and would look like something left behind.
        for (space, addresses) in [(&pod, POD), (&peer, PEER)] {
            space.sh(&format!(
                "ip link set eth0 addrgenmode none; ip link set eth0 up; ip addr add {}/24 dev eth0; ip addr add {}/64 dev eth0 nodad",
                addresses[0], addresses[1]
            ));
        }
        pod.sh(&format!(
            "ip route add default via {}; ip -6 route add default via {}",
            PEER[0], PEER[1]
        ));
        peer.serve_direct(PEER_PORT);
        Self { pod, peer }
    }

    /// Enrols the pod, with listeners that serve.
    pub fn enrolment(&self, on_failure: OnFailure) -> Enrolment {
        enrolment(
            &self.pod,
            on_failure,
            &["127.0.0.1:0", "[::1]:0"],
            &["0.0.0.0:0", "[::]:0"],
        )
    }
}

pub fn enrolment(
    pod: &Space,
    on_failure: OnFailure,
    outbound: &[&str],
    inbound: &[&str],
) -> Enrolment {
    let id = WorkloadId(NUMBER.fetch_add(1, Ordering::Relaxed));
    let mut listeners = Vec::new();
    for (direction, word, addrs) in [
        (Direction::Outbound, "agent", outbound),
        (Direction::Inbound, "inbound", inbound),
    ] {
        for addr in addrs {
            let addr = addr.parse().expect("an address");
            let (addr, sockets) = pod.netns.listen(addr, MARKS.upstream, 1).expect("free");
            let spec = ListenerSpec {
                workload: id,
                direction,
                steering: Steering::Redirect,
                addr,
            };
            let serving = sockets[0].try_clone().expect("a descriptor");
            pod.serve(blocking(serving), word);
            listeners.push(Listener { spec, sockets });
        }
    }
    Enrolment {
        dns: Vec::new(),
        needs_proxy: None,
        captured: Default::default(),
        id,
        spec: WorkloadSpec {
            name: WorkloadName {
                namespace: "default".into(),
                name: "pod".into(),
            },
            netns: pod.path().to_owned(),
            cgroup: None,
            labels: Default::default(),
            mode: ModeSetting::Iptables,
            acceleration: AccelerationPolicy::default(),
            dns: shunt_core::workload::DnsPolicy::default(),
            on_failure,
            outbound: CapturePolicy::default(),
            inbound: CapturePolicy::default(),
        },
        netns: Arc::clone(&pod.netns),
        addresses: pod.netns.addresses().expect("readable"),
        listeners,
    }
}

pub fn at(ip: &str, port: u16) -> String {
    SocketAddr::new(ip.parse::<IpAddr>().expect("an address"), port).to_string()
}

pub fn read(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .expect("a timeout");
    match stream.read_to_string(&mut answer) {
        Ok(_) => answer,
        Err(error) => format!("{:?}", error.kind()),
    }
}

fn blocking(socket: OwnedFd) -> TcpListener {
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(false).expect("a socket");
    // The agent's relay ends in order what it has moved in full; this one always has.
    let socket = socket2::SockRef::from(&listener);
    socket.set_linger(None).expect("a socket");
    listener
}

/// What conntrack says about it.
fn original(stream: &TcpStream) -> String {
    match stream.local_addr().expect("connected") {
        SocketAddr::V4(_) => getsockopt(stream, sockopt::OriginalDst).map_or("?".into(), |found| {
            nix::sys::socket::SockaddrIn::from(found).to_string()
        }),
        SocketAddr::V6(_) => getsockopt(stream, sockopt::Ip6tOriginalDst)
            .map_or("?".into(), |found| {
                nix::sys::socket::SockaddrIn6::from(found).to_string()
            }),
    }
}

pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .expect("installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Asks again until it holds; how long that took.
pub fn until(what: &str, longest: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < longest,
            "waited {longest:?} in vain: {what}"
        );
        pause(Duration::from_millis(20));
    }
    start.elapsed()
}

/// Says only what differs.
#[track_caller]
pub fn assert_same(now: &str, before: &str, what: &str) {
    let only = |a: &str, b: &str| {
        a.lines()
            .filter(|line| !b.lines().any(|other| other == *line))
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert!(
        now == before,
        "{what}\nnew:\n{}\ngone:\n{}",
        only(now, before),
        only(before, now)
    );
}

#[expect(clippy::disallowed_methods, reason = "the one place that waits")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
