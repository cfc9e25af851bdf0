//! Envoy, shunt, an upstream that notes what it sees, and a client, all in one pod.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use shunt_tests::world::Running;
use shunt_tests::{Pod, World, agent, wait};
use socket2::{Domain, Socket, Type};

use crate::cases::{Case, Upstream};
use crate::message::{Message, Reader};

/// A proxy that says nothing for so long has nothing to say.
const PATIENCE: Duration = Duration::from_secs(5);
/// Who closes with an answer has done so by then.
const A_MOMENT: Duration = Duration::from_millis(30);

pub struct Scene {
    world: World,
    pod: Pod,
    pub proxies: [Proxy; 2],
    upstream: Arc<Mutex<Plan>>,
}

pub struct Proxy {
    pub name: &'static str,
    /// Of the first listener; the others follow.
    port: u16,
    _running: Running,
}

#[derive(Default)]
struct Plan {
    does: Upstream,
    seen: Vec<Message>,
}

/// What one proxy made of a case.
#[derive(Debug)]
pub struct Outcome {
    pub responses: Vec<Message>,
    /// How the connection was after the last response.
    pub end: &'static str,
    pub seen: Vec<Message>,
}

/// Two pieces of an early answer.
const BETWEEN: Duration = Duration::from_millis(800);

/// What the two proxies say of themselves.
const LOGS: [&str; 2] = ["envoy.log", "shunt.log"];

const LISTENERS: [&str; 10] = [
    "MAIN", "EDGE", "PASS", "TCP", "FILTERS", "REPLIES", "TUNNELS", "BESIDE", "SUBSETS", "CHAINS",
];

impl Scene {
    pub fn new(envoy: &Path) -> Self {
        let world = World::new();
        let pod = world.pod();
        pod.add_address("10.66.0.100".parse().expect("an address"));
        let upstream: Arc<Mutex<Plan>> = Arc::default();
        let listener = inside(&pod, || TcpListener::bind("0.0.0.0:0")).expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let plan = Arc::clone(&upstream);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let plan = Arc::clone(&plan);
                std::thread::spawn(move || serve(stream, &plan));
            }
        });
        let file = |name: &str, first: u16| {
            let mut text = include_str!("bootstrap.yaml").replace("[ADDRESS]", &pod.v4);
            text = text.replace("[UPSTREAM]", &port.to_string());
            for (listener, port) in LISTENERS.iter().zip(first..) {
                text = text.replace(&format!("[{listener}]"), &port.to_string());
            }
            let path = world.dir.path().join(name);
            fs::write(&path, text).expect("written");
            path
        };
        let bootstrap = file("envoy.yaml", 20000);
        let mut command = pod.command(&envoy.display().to_string());
        command.arg("-c").arg(&bootstrap);
        command.args([
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "error",
        ]);
        let envoy = start(command, &world.dir.path().join(LOGS[0]));
        let bootstrap = file("shunt.bootstrap.yaml", 21000);
        let at = world.dir.path().display().to_string();
        let config = format!(
            "concurrency: 1\nstate_dir: {at}/state\nadmin: {{socket: {at}/admin.sock}}\n\
             log: {{level: warn, access: off}}\nbootstrap: {}\n",
            bootstrap.display()
        );
        let path = world.dir.path().join("shunt.yaml");
        fs::write(&path, config).expect("written");
        let mut command = pod.command(&agent::binary().display().to_string());
        command.args(["run", "-c"]).arg(&path);
        let shunt = start(command, &world.dir.path().join(LOGS[1]));
        for port in [20000, 21000] {
            pod.wait_for_listener(port);
        }
        Self {
            proxies: [
                Proxy {
                    name: "Envoy",
                    port: 20000,
                    _running: envoy,
                },
                Proxy {
                    name: "shunt",
                    port: 21000,
                    _running: shunt,
                },
            ],
            world,
            pod,
            upstream,
        }
    }

    /// Sends the case's bytes to one proxy.
    pub fn play(&self, proxy: &Proxy, case: &Case) -> Outcome {
        *self.upstream.lock().expect("a plan") = Plan {
            does: case.upstream.clone(),
            seen: Vec::new(),
        };
        let at = LISTENERS.iter().position(|known| *known == case.listener);
        let port = proxy.port + at.expect("a listener") as u16;
        let ip: IpAddr = self.pod.v4.parse().expect("an address");
        let address = SocketAddr::new(ip, port);
        let mut stream = inside(&self.pod, || match case.from {
            Some(from) => connect_from(from, address),
            None => TcpStream::connect(address),
        })
        .expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let text = case.send.replace('\n', "\r\n");
        // Who is refused early may close early.
        let _ = stream.write_all(&[&case.first, text.as_bytes()].concat());
        if case.ends {
            // Sooner, it would be a matter of luck what the upstream gets.
            wait::until("the upstream has the request", PATIENCE, || {
                let plan = self.upstream.lock().expect("a plan");
                (!plan.seen.is_empty()).then_some(())
            });
            let _ = stream.shutdown(Shutdown::Write);
        }
        let wire = stream.try_clone().expect("a clone");
        let mut reader = Reader::new(stream);
        let mut responses = Vec::new();
        let mut end = "open";
        while responses.len() < case.responses {
            let bodiless = match responses.is_empty() {
                true => ["HEAD ", "CONNECT "].map(|method| case.send.starts_with(method)),
                false => [case.send.starts_with("HEAD "), false],
            };
            match reader.answer(bodiless) {
                Ok(Some(message)) => {
                    responses.push(message);
                    if responses.len() == 1 && !case.then.is_empty() {
                        let from = Instant::now();
                        // Longer than what must not end it.
                        let late = Duration::from_millis(500 * u64::from(case.is_late));
                        wait::until("time to pass", PATIENCE, || {
                            (from.elapsed() >= late).then_some(())
                        });
                        let text = case.then.replace('\n', "\r\n");
                        let _ = reader.0.stream.write_all(text.as_bytes());
                    }
                }
                Ok(None) => {
                    end = "closed";
                    break;
                }
                Err(error) => {
                    end = match error.kind() {
                        io::ErrorKind::WouldBlock => "silent",
                        io::ErrorKind::ConnectionReset => "reset",
                        _ => "broken off",
                    };
                    break;
                }
            }
        }
        let is_last = responses
            .last()
            .is_some_and(|last| last.header("connection") == Some("close"));
        if end == "open" && is_last {
            end = match reader.message(false) {
                Ok(None) => "closed",
                Ok(Some(_)) => "more",
                Err(_) => "open, and said to be closed",
            };
        }
        if end == "open" && !is_last && !responses.is_empty() && !case.ends {
            wire.set_read_timeout(Some(A_MOMENT)).expect("a timeout");
            end = match wait::uninterrupted(|| wire.peek(&mut [0])) {
                Ok(0) => "closed, and not said to be",
                Ok(_) => "more",
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => "open",
                Err(_) => "reset",
            };
        }
        drop(reader);
        let seen = std::mem::take(&mut self.upstream.lock().expect("a plan").seen);
        Outcome {
            responses,
            end,
            seen,
        }
    }

    pub fn log(&self) -> String {
        let of = |name| fs::read_to_string(self.world.dir.path().join(name)).unwrap_or_default();
        LOGS.map(of).join("\n")
    }
}

fn start(mut command: std::process::Command, log: &Path) -> Running {
    let log = File::create(log).expect("a log");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(log);
    Running(command.spawn().expect("it starts"))
}

/// Does something in the pod's network namespace; sockets stay in it.
fn inside<T: Send>(pod: &Pod, work: impl FnOnce() -> T + Send) -> T {
    let path = PathBuf::from("/run/netns").join(&pod.netns);
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            let netns = File::open(path).expect("the namespace");
            setns(netns, CloneFlags::CLONE_NEWNET).expect("inside");
            work()
        });
        there.join().expect("no panic")
    })
}

fn connect_from(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    // A named port was the last case's too.
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

fn serve(stream: TcpStream, plan: &Mutex<Plan>) {
    let mut answer = stream.try_clone().expect("a clone");
    let mut reader = Reader::new(stream);
    let mut turn = 0;
    while let Ok(Some(mut request)) = reader.head() {
        let does = plan.lock().expect("a plan").does.clone();
        if !matches!(does, Upstream::IsEarly(..)) && reader.body(&mut request, false).is_err() {
            return;
        }
        plan.lock().expect("a plan").seen.push(request.clone());
        match does {
            Upstream::Says(text) => {
                if answer
                    .write_all(text.replace('\n', "\r\n").as_bytes())
                    .is_err()
                {
                    return;
                }
            }
            Upstream::InTurn(texts) => {
                let text = &texts[turn.min(texts.len() - 1)];
                turn += 1;
                if answer
                    .write_all(text.replace('\n', "\r\n").as_bytes())
                    .is_err()
                {
                    return;
                }
            }
            Upstream::SaysAndCloses(text) => {
                let _ = answer.write_all(text.replace('\n', "\r\n").as_bytes());
                return;
            }
            Upstream::SaysWhere => {
                let at = answer.local_addr().expect("an address").ip().to_string();
                let length = at.len();
                let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{at}");
                let _ = answer.write_all(text.as_bytes());
            }
            Upstream::IsEarly(texts) => {
                for text in texts {
                    let _ = answer.write_all(text.replace('\n', "\r\n").as_bytes());
                    wait::pause(BETWEEN);
                }
                // Whoever closes with bytes unread takes its answer back.
                let _ = reader.body(&mut request, false);
                return;
            }
            Upstream::IsSilent => {}
        }
    }
}
