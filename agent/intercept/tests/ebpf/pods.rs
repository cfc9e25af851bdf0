//! Two pods with a wire between them, and an agent in its simplest form: a thread that accepts, asks where the
//! connection was going, and says so.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use shunt_core::address::{canonical, from_kernel};
use shunt_core::flow::Direction;
use shunt_core::sockets::{ListenerSpec, Steering};
use shunt_core::workload::{
    Acceleration, CapturePolicy, ModeSetting, OnFailure, WorkloadId, WorkloadName, WorkloadSpec,
};
use shunt_intercept::ebpf::{Destinations, EbpfBackend};
use shunt_intercept::netns::Netns;
use shunt_intercept::{Backend, Enrolment, Listener, Marks, cgroup};

pub const MARKS: Marks = Marks {
    upstream: 0x539,
    delivery: 0x53a,
};

/// A network namespace and a cgroup of its own.
#[derive(Debug)]
pub struct Pod {
    name: String,
    pub netns: Arc<Netns>,
    pub cgroup: PathBuf,
    pub v4: IpAddr,
    pub v6: IpAddr,
}

/// Two pods wired to each other, with addresses that no other pair of this process has: all agents here are in one
/// cgroup, so each notes the flows of all, and a note has no namespace (seen: the kernel chose the same source port for
/// another test's agent and for this one's client).
pub fn pair() -> (Pod, Pod) {
    static NUMBER: AtomicU16 = AtomicU16::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let label = format!("shunt-i{}-{number}", std::process::id());
    let pods = [1_u8, 2].map(|host| {
        let name = format!("{label}-{host}");
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        let cgroup = cgroup::mount_point().expect("cgroup2").join(&name);
        fs::create_dir(&cgroup).expect("a cgroup");
        Pod {
            netns: Arc::new(
                Netns::open(&PathBuf::from(format!("/run/netns/{name}"))).expect("open"),
            ),
            cgroup,
            v4: IpAddr::from([10, 77, number.to_le_bytes()[0], host]),
            v6: IpAddr::from([0xfd77, 0, 0, number, 0, 0, 0, u16::from(host)]),
            name,
        }
    });
    let [a, b] = &pods;
    ip(&format!(
        "link add eth0 netns {} type veth peer name eth0 netns {}",
        a.name, b.name
    ));
    for pod in &pods {
        ip(&format!("-n {} addr add {}/24 dev eth0", pod.name, pod.v4));
        ip(&format!(
            "-n {} addr add {}/64 dev eth0 nodad",
            pod.name, pod.v6
        ));
        ip(&format!("-n {} link set eth0 up", pod.name));
    }
    let [a, b] = pods;
    until("the wire carries IPv6", || {
        a.python(&format!("socket.create_connection(('{}', 9), 1)", b.v6))
            == "ConnectionRefusedError"
    });
    (a, b)
}

impl Pod {
    /// What a Python script prints, in the pod's namespace and cgroup; the name of its exception if it raises one.
    pub fn python(&self, script: &str) -> String {
        let script = format!(
            "import socket, errno\ntry:\n{}\nexcept Exception as error: print(type(error).__name__)",
            script
                .lines()
                .map(|line| format!("    {line}\n"))
                .collect::<String>()
        );
        let mut command = self.command();
        let output = command
            .args(["timeout", "10", "python3", "-c", &script])
            .output();
        let output = output.expect("sh runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}\n{stderr}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// A prefix for commands that run in the pod.
    pub fn command(&self) -> Command {
        let mut command = Command::new("sh");
        let enter =
            "echo 0 > \"$1/cgroup.procs\"; netns=$2; shift 2; exec ip netns exec \"$netns\" \"$@\"";
        command
            .args(["-c", enter, "sh"])
            .arg(&self.cgroup)
            .arg(&self.name);
        command
    }

    /// Connects and says: the answer, the peer and the own address as the application sees them.
    pub fn ask(&self, to: impl std::fmt::Display, port: u16) -> String {
        self.python(&format!(
            "s = socket.create_connection(('{to}', {port}), 5)\n\
             print(s.recv(100).decode(), s.getpeername()[0], s.getpeername()[1], s.getsockname()[0])"
        ))
    }

    /// An application in this pod that says its name, not in the pod's cgroup.
    pub fn serve(&self, addr: SocketAddr, name: &'static str) -> Serving {
        let bind = || TcpListener::bind(addr).expect("a free port");
        let listener = self.netns.enter(bind).expect("enter");
        Serving::start(vec![listener.into()], move |_, _| name.to_owned())
    }

    pub fn ips(&self) -> Vec<IpAddr> {
        vec![self.v4, self.v6]
    }

    /// Nothing captured yet; with listeners as the supervisor makes them.
    pub fn enrolment(&self, id: u32) -> Enrolment {
        let listen = |direction, steering, addr: &str| {
            let addr = addr.parse().expect("an address");
            let (addr, sockets) = self
                .netns
                .listen(addr, MARKS.upstream, 2)
                .expect("a listener");
            let workload = WorkloadId(id);
            Listener {
                spec: ListenerSpec {
                    workload,
                    direction,
                    steering,
                    addr,
                },
                sockets,
            }
        };
        let hook = Steering::ConnectHook;
        Enrolment {
            dns: Vec::new(),
            needs_proxy: None,
            captured: Default::default(),
            id: WorkloadId(id),
            spec: WorkloadSpec {
                name: WorkloadName {
                    namespace: "default".into(),
                    name: self.name.clone(),
                },
                netns: self.netns.path().to_owned(),
                cgroup: Some(self.cgroup.clone()),
                labels: Default::default(),
                mode: ModeSetting::Ebpf,
                acceleration: Acceleration::Off.into(),
                on_failure: OnFailure::Open,
                dns: shunt_core::workload::DnsPolicy::default(),
                outbound: CapturePolicy::default(),
                inbound: CapturePolicy::default(),
            },
            netns: self.netns.clone(),
            addresses: self.ips(),
            listeners: vec![
                listen(Direction::Outbound, hook, "127.0.0.1:0"),
                listen(Direction::Outbound, hook, "[::1]:0"),
                listen(Direction::Inbound, Steering::SkLookup, "127.0.0.1:0"),
                listen(Direction::Inbound, Steering::SkLookup, "[::1]:0"),
            ],
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .output();
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        let deadline = Instant::now() + Duration::from_secs(2);
        while fs::remove_dir(&self.cgroup).is_err() && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

/// Accepts until dropped.
#[derive(Debug)]
pub struct Serving {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    /// `say` gets the accepted socket and its own address.
    pub fn start(
        listeners: Vec<OwnedFd>,
        say: impl Fn(&TcpStream, SocketAddr) -> String + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let listeners: Vec<TcpListener> = listeners.into_iter().map(TcpListener::from).collect();
        let thread = std::thread::spawn(move || {
            for listener in &listeners {
                listener.set_nonblocking(true).expect("nonblocking");
                // The agent's relay ends in order what it has moved in full; this one always has.
                let socket = socket2::SockRef::from(listener);
                socket.set_linger(None).expect("set");
            }
            while !stopped.load(Ordering::Relaxed) {
                for listener in &listeners {
                    if let Ok((mut stream, _)) = listener.accept() {
                        let local = stream.local_addr().expect("an address");
                        // The client may be gone already.
                        let _ = stream.write_all(say(&stream, local).as_bytes());
                    }
                }
                std::thread::park_timeout(Duration::from_millis(2));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The data plane of one workload: without any capability, like the real one.
pub fn agent(live: &Live, enrolment: &Enrolment) -> Serving {
    let sockets = |direction| {
        let of = move |listener: &&Listener| listener.spec.direction == direction;
        let listeners = enrolment.listeners.iter().filter(of);
        let sockets = listeners.flat_map(|listener| &listener.sockets);
        let dup = |socket: &OwnedFd| socket.as_fd().try_clone_to_owned().expect("a descriptor");
        sockets.map(dup).collect::<Vec<_>>()
    };
    let outbound: Vec<u16> = enrolment
        .listeners
        .iter()
        .filter(|listener| listener.spec.direction == Direction::Outbound)
        .map(|listener| listener.spec.addr.port())
        .collect();
    let destinations =
        Destinations::from_fd(live.backend().destinations_fd().expect("a descriptor"));
    let mut listeners = sockets(Direction::Outbound);
    listeners.extend(sockets(Direction::Inbound));
    Serving::start(listeners, move |accepted, local| {
        without_capabilities();
        if !outbound.contains(&local.port()) {
            return format!("inbound {}", canonical(local));
        }
        match destinations.of(accepted.as_fd()) {
            Ok(Some(to)) => format!(
                "outbound {}",
                SocketAddr::new(from_kernel(to.address), to.port)
            ),
            Ok(None) => "nobody noted it".into(),
            Err(error) => format!("not permitted: {error}"),
        }
    })
}

/// Capabilities belong to threads: the test itself keeps its own.
fn without_capabilities() {
    for set in [caps::CapSet::Effective, caps::CapSet::Permitted] {
        caps::clear(None, set).expect("dropping is always allowed");
    }
}

/// The backend, kept alive ten times a second until it is dropped or told to stop.
#[derive(Debug)]
pub struct Live {
    backend: Arc<Mutex<EbpfBackend>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Live {
    pub fn load() -> Self {
        let root = cgroup::mount_point().expect("cgroup2");
        let own = cgroup::of_this_process(&root).expect("a cgroup");
        let mut backend =
            EbpfBackend::load(MARKS, &own, Path::new("/nowhere")).expect("the programs load");
        backend.keep_alive();
        let (backend, stop) = (
            Arc::new(Mutex::new(backend)),
            Arc::new(AtomicBool::new(false)),
        );
        let (beating, stopped) = (backend.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                beating.lock().expect("whole").keep_alive();
                std::thread::park_timeout(Duration::from_millis(100));
            }
        });
        Self {
            backend,
            stop,
            thread: Some(thread),
        }
    }

    pub fn backend(&self) -> MutexGuard<'_, EbpfBackend> {
        self.backend.lock().expect("whole")
    }

    pub fn install(&self, enrolment: &Enrolment) {
        self.backend().install(enrolment).expect("installed");
    }

    pub fn update(&self, enrolment: &Enrolment) {
        self.backend().update(enrolment).expect("updated");
    }

    pub fn release(&self, enrolment: &Enrolment) {
        self.backend().release(enrolment).expect("released");
    }

    pub fn event(&self, name: &str) -> u64 {
        let events = self.backend().events();
        let event = events.iter().find(|(held, _)| *held == name);
        event.expect("a known event").1
    }

    /// The backend lives on, its data plane does not answer.
    pub fn stop_beating(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.stop_beating();
    }
}

/// Waits for a condition.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 5 s: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

fn ip(args: &str) {
    let output = Command::new("ip")
        .args(args.split(' '))
        .output()
        .expect("`ip` runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {args}: {stderr}");
}

/// The kernel's id of a map.
pub fn map_id(map: BorrowedFd<'_>) -> u32 {
    let file = format!("/proc/self/fdinfo/{}", map.as_raw_fd());
    let text = fs::read_to_string(file).expect("readable");
    let id = text.lines().find_map(|line| line.strip_prefix("map_id:"));
    id.and_then(|id| id.trim().parse().ok()).expect("a map")
}
