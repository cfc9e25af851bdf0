//! An agent as a gateway with close limits, before an upstream that notes everything.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use shunt_tests::kernel::{descriptors, resident};
use shunt_tests::{Agent, AgentBuilder, Pod, Raw, World, require, wait};

use crate::upstream::{PORT, Upstream};

/// Longer than any limit of the agent's.
pub const PATIENCE: Duration = Duration::from_secs(8);
/// Of a head, in the scene's configuration.
pub const MOST_LINES: usize = 20;
pub const MOST_BYTES: usize = 8 << 10;
/// KiB that the data plane may grow by, whatever clients and upstreams do.
const GROWTH: u64 = 32 << 10;
/// Descriptors that may be kept: connections of the pools, for the six who mean well, and sockets that are ready for more.
const SPARE: usize = 20;

const BOOTSTRAP: &str = r#"static_resources:
  listeners:
  - name: web
    address: {socket_address: {address: [GATEWAY], port_value: 80}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          use_remote_address: true
          normalize_path: true
          request_headers_timeout: 1s
          request_timeout: 2s
          stream_idle_timeout: 2s
          max_request_headers_kb: 8
          common_http_protocol_options: {max_headers_count: 20}
          route_config:
            response_headers_to_add: [{header: {key: x-said, value: "%REQ(x-say)% %REQ(:path)%"}}]
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - {match: {prefix: /to/}, redirect: {prefix_rewrite: /there/}}
              - {match: {prefix: /to-regex/}, redirect: {regex_rewrite: {pattern: {regex: "^/to-regex/(.*)$"}, substitution: "/\\1"}}}
              - match: {prefix: /mutated}
                request_headers_to_add: [{header: {key: x-copy, value: "%REQ(x-say)% %REQ(:path)%"}}]
                route: {cluster: up, prefix_rewrite: /was-mutated, host_rewrite_header: x-say}
              - {match: {prefix: /}, route: {cluster: up, timeout: 3s}}
          http_filters:
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: up
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options: {idle_timeout: 1s}
        explicit_http_config: {http_protocol_options: {}}
    load_assignment: {cluster_name: up, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: [SERVER], port_value: [PORT]}}}}]}]}
"#;

pub struct Scene {
    _world: World,
    gateway: Pod,
    client: Pod,
    _server: Pod,
    pub agent: Agent,
    pub upstream: Upstream,
}

/// A client's connection.
#[derive(Debug)]
pub struct Talk {
    pub raw: Raw,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Scene {
    pub fn new() -> Self {
        require::everything();
        let world = World::new();
        let [gateway, client, server] = [(); 3].map(|()| world.pod());
        let upstream = Upstream::start(&server);
        let text = BOOTSTRAP
            .replace("[GATEWAY]", &gateway.v4)
            .replace("[SERVER]", &server.v4)
            .replace("[PORT]", &PORT.to_string());
        let path = world.dir.path().join("bootstrap.yaml");
        fs::write(&path, text).expect("written");
        let agent = AgentBuilder::new(&world, "auto")
            .inside(&gateway)
            .set(&format!("bootstrap: {}", path.display()))
            .start();
        gateway.wait_for_listener(80);
        Self {
            _world: world,
            gateway,
            client,
            _server: server,
            agent,
            upstream,
        }
    }

    pub fn talk(&self) -> Talk {
        let address = (self.gateway.v4.as_str(), 80);
        let stream = inside(&self.client, || TcpStream::connect(address)).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream.into()
    }

    /// Does the harm while a client that means well asks and asks; then nothing is left of it.
    pub fn unharmed(&self, harm: impl FnOnce()) {
        let pid = self.agent.worker_pid().expect("a data plane");
        // The first request makes what stays.
        self.talk().good(0);
        let before = (descriptors(pid).len(), resident(pid));
        let most = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Some with each worker.
            let good = [(); 6].map(|()| {
                scope.spawn(|| {
                    let mut talk = self.talk();
                    let mut asked = 0;
                    while !is_over.load(Ordering::Relaxed) || asked < 10 {
                        asked += 1;
                        talk.good(asked);
                        most.fetch_max(resident(pid), Ordering::Relaxed);
                    }
                })
            });
            // It says that the harm is done also when that panics.
            let over = Over(&is_over);
            harm();
            drop(over);
            for client in good {
                client.join().expect("who means well has all answers");
            }
        });
        let most = most.load(Ordering::Relaxed);
        assert!(most < before.1 + GROWTH, "{} -> {most} KiB", before.1);
        wait::until("the descriptors are given back", PATIENCE, || {
            let now = descriptors(pid).len();
            (now <= before.0 + SPARE).then_some(())
        });
        let faults = self.upstream.with(|seen| seen.faults.clone());
        assert!(faults.is_empty(), "{faults:#?}");
        let now = self.agent.worker_pid();
        assert_eq!(now, Some(pid), "the data plane is the same");
    }
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl From<TcpStream> for Talk {
    fn from(stream: TcpStream) -> Self {
        Self { raw: stream.into() }
    }
}

impl Talk {
    /// Who is refused early cannot say everything.
    pub fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.raw.stream.write_all(bytes)
    }

    #[track_caller]
    fn good(&mut self, number: u32) {
        let body = format!("number {number}");
        let text = format!(
            "POST /good/{number} HTTP/1.1\r\nhost: good\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.say(text.as_bytes()).expect("it is heard");
        let answer = self.answer().expect("it is read").expect("an answer");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body, format!("POST /good/{number} {body}"));
    }

    /// `None`: the connection is over.
    pub fn answer(&mut self) -> io::Result<Option<Answer>> {
        let Some(head) = self.raw.until(b"\r\n\r\n")? else {
            return Ok(None);
        };
        let head = String::from_utf8(head).expect("text");
        let mut answer = Answer {
            status: head
                .split(' ')
                .nth(1)
                .and_then(|code| code.parse().ok())
                .unwrap_or(0),
            head,
            body: String::new(),
        };
        if answer.says("transfer-encoding").is_some() {
            let mut body = Vec::new();
            loop {
                let line = self.raw.line()?;
                let size = usize::from_str_radix(&String::from_utf8_lossy(&line), 16);
                let size = size.map_err(io::Error::other)?;
                let chunk = self.raw.exactly(size + 2)?;
                if size == 0 {
                    break;
                }
                body.extend_from_slice(&chunk[..size]);
            }
            answer.body = String::from_utf8_lossy(&body).into_owned();
        } else if let Some(length) = answer.says("content-length") {
            let length = length.parse().map_err(io::Error::other)?;
            answer.body = String::from_utf8_lossy(&self.raw.exactly(length)?).into_owned();
        }
        Ok(Some(answer))
    }

    /// What comes until the end.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        self.raw.rest()
    }

    /// The client has said everything.
    pub fn finish(&mut self) {
        // It fails only for a connection that is over.
        let _ = self.raw.stream.shutdown(Shutdown::Write);
    }
}

impl Answer {
    /// # Panics
    /// It is said twice.
    #[track_caller]
    pub fn says(&self, name: &str) -> Option<&str> {
        let lines = self
            .head
            .split("\r\n")
            .filter_map(|line| line.split_once(':'));
        let mut found = lines.filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let value = found.next().map(|(_, value)| value.trim());
        assert!(found.next().is_none(), "twice {name}: {}", self.head);
        value
    }
}

/// Does something in the pod's network namespace; sockets stay in it.
pub fn inside<T: Send>(pod: &Pod, work: impl FnOnce() -> T + Send) -> T {
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
