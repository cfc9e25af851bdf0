//! `shunt tap`: every flow is told when it begins and ends, and the bytes that no tcpdump sees are in a file.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use shunt_tests::agent::{self, signal};
use shunt_tests::tap::{packets, stream};
use shunt_tests::{Agent, Pair, Running, Script, Tap, wait};

const SECONDS: Duration = Duration::from_secs(10);
const ALWAYS: &str = "acceleration: always";
/// Always, but by the agent.
const HANDED_OVER: &str = "acceleration: {default: always, direct: false}";

/// A socket as event-driven programs use it: sends, reads so many bytes.
const EVENTS: &str = "
import random, select, socket, sys
class Events:
    def __init__(self, s): self.s = s; s.setblocking(False)
    def recv(self, most):
        while True:
            select.select([self.s], [], [])
            try: return self.s.recv(most)
            except BlockingIOError: pass
    def read(self, count):
        heard = b''
        while len(heard) < count:
            some = self.recv(count - len(heard)); assert some; heard += some
        return heard
    def send(self, bytes):
        while bytes:
            select.select([], [self.s], [])
            try: bytes = bytes[self.s.send(bytes):]
            except BlockingIOError: pass
def call(host):
    s = socket.create_connection((host, 7000)); s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Events(s)
";

/// Answers each message, whose length stands before it, with its bytes the other way round.
const SERVER: &str = "
l = socket.create_server(('::', 7000), family=socket.AF_INET6, dualstack_ipv6=True, backlog=100)
while True:
    s = Events(l.accept()[0])
    while head := s.recv(4):
        length = int.from_bytes(head + s.read(4 - len(head)), 'big')
        s.send(s.read(length)[::-1])
    s.s.close()
";

/// Sends messages of these sizes and hears the answers; writes both streams to files. Arguments: the server, where.
const CLIENT: &str = "
s, r, sent, heard = call(sys.argv[1]), random.Random(7), b'', b''
for size in SIZES:
    message = size.to_bytes(4, 'big') + r.randbytes(size)
    s.send(message); sent += message
    answer = s.read(size); heard += answer
    assert answer == message[:3:-1]
s.s.close()
open(sys.argv[2] + '/sent', 'wb').write(sent); open(sys.argv[2] + '/heard', 'wb').write(heard)
";
const MANY_SIZES: &str = "[5, 1, 100, 252, 253, 4096, 300, 10_000, 3, 30_000, 7, 1000, 500]";

struct Scene {
    pair: Pair,
    agent: Agent,
    _server: Running,
}

impl Scene {
    fn new(mode: &str, wish: &str) -> Self {
        let pair = Pair::new();
        let script = format!("{EVENTS}{SERVER}");
        let server = pair.server.spawn("python3", &["-c", &script]);
        pair.server.wait_for_listener(7000);
        let agent = pair.both(mode, wish).start();
        Self {
            pair,
            agent,
            _server: server,
        }
    }

    /// One connection with messages of these sizes: what its client sent, and what it heard.
    fn talk(&self, host: &str, sizes: &str) -> (Vec<u8>, Vec<u8>) {
        let script = format!("{EVENTS}SIZES = {sizes}\n{CLIENT}");
        let dir = self.agent.dir.display().to_string();
        self.pair
            .client
            .says("python3", &["-c", &script, host, &dir]);
        let read = |name| fs::read(self.agent.dir.join(name)).expect("a file");
        (read("sent"), read("heard"))
    }

    fn file(&self) -> PathBuf {
        self.agent.dir.join("tap.pcapng")
    }

    /// A tap that writes [`Scene::file`].
    fn copying(&self, args: &[&str]) -> Tap {
        let file = self.file().display().to_string();
        let tap = Tap::start(&self.agent, &[&["-w", &file], args].concat());
        assert!(tap.says().contains("go to"), "{}", tap.says());
        tap
    }

    fn kernel_count(&self, event: &str) -> u64 {
        let (_, stats) = self.agent.admin("GET", "/stats", "");
        let name = format!("kernel.{event}: ");
        let number = stats.lines().find_map(|line| line.strip_prefix(&name));
        number.map_or(0, |number| number.parse().expect("a number"))
    }
}

/// Both directions of the one connection in a file.
fn streams(file: &Path, host: &str) -> (Vec<u8>, Vec<u8>) {
    let server = SocketAddr::new(host.parse().expect("an address"), 7000);
    let packets = packets(file);
    let sent = packets.iter().filter(|packet| packet.destination == server);
    let heard = packets.iter().filter(|packet| packet.source == server);
    (stream(sent), stream(heard))
}

/// The same, as soon as there is so much.
fn copied(file: &Path, host: &str, length: (usize, usize)) -> (Vec<u8>, Vec<u8>) {
    wait::until("the copies", SECONDS, || {
        let (sent, heard) = streams(file, host);
        (sent.len() >= length.0 && heard.len() >= length.1).then_some((sent, heard))
    })
}

fn flows<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events
        .iter()
        .filter(|event| event["event"] == kind)
        .collect()
}

#[test]
fn flows_of_every_path_are_told_when_they_begin_and_end() {
    for (mode, wish, path) in [
        ("ebpf", "acceleration: auto", "direct"),
        ("ebpf", ALWAYS, "direct"),
        ("ebpf", HANDED_OVER, "handoff"),
        ("ebpf", "acceleration: off", "copy"),
        ("iptables", "", "copy"),
    ] {
        let scene = Scene::new(mode, wish);
        let mut tap = Tap::start(&scene.agent, &["client", "-o", "json"]);
        let mut table = Tap::start(&scene.agent, &["server"]);
        let host = &scene.pair.server.v4;
        scene.talk(host, MANY_SIZES);
        let events = wait::until("the flow's end", SECONDS, || {
            let events = tap.events();
            (!flows(&events, "close").is_empty()).then_some(events)
        });
        let what = format!("{mode} {wish}: {events:#?}");
        let (opened, closed) = (flows(&events, "open"), flows(&events, "close"));
        assert_eq!((opened.len(), closed.len()), (1, 1), "{what}");
        let told = scene.agent.lines(1).remove(0);
        for key in [
            "workload",
            "peer_workload",
            "client",
            "original_dst",
            "upstream",
        ] {
            assert_eq!(opened[0][key], told[key], "{key}, {what}");
            assert_eq!(closed[0][key], told[key], "{key}, {what}");
        }
        for key in ["path", "bytes_received", "bytes_sent", "close_reason"] {
            assert_eq!(closed[0][key], told[key], "{key}, {what}");
        }
        assert_eq!(closed[0]["path"], path, "{what}");
        assert_eq!(opened[0]["close_reason"], Value::Null, "{what}");
        let faster = flows(&events, "path");
        assert_eq!(faster.is_empty(), path != "handoff", "{what}");
        let row = wait::until("the table's last row", SECONDS, || {
            let text = table.text();
            let row = text.lines().find(|row| row.contains("  close  "));
            row.map(str::to_owned)
        });
        let to = format!("-> default/server {host}:7000");
        assert!(row.contains(&to) && row.contains(path), "{row}");
        assert!(row.ends_with("finished"), "{row}");
        tap.interrupt();
        table.interrupt();
    }
}

#[test]
fn a_tap_is_told_of_its_own_workload_and_ends_after_so_many_lines() {
    let scene = Scene::new("ebpf", "acceleration: auto");
    let mut all = Tap::start(&scene.agent, &["-o", "json", "--count", "4"]);
    let other = scene.pair.world.pod();
    let other = shunt_tests::agent::entry("other", &other, "");
    let (client, server) = (&scene.pair.client, &scene.pair.server);
    let [client, server] = [("client", client), ("server", server)]
        .map(|(name, pod)| shunt_tests::agent::entry(name, pod, "acceleration: auto"));
    scene.agent.rewrite(&[client, server, other]);
    wait::until("enrolled", SECONDS, || {
        let status = scene.agent.status();
        (status["workloads"].as_array()?.len() == 3).then_some(())
    });
    let mut none = Tap::start(&scene.agent, &["default/other", "--duration", "5s"]);
    for _ in 0..2 {
        scene.talk(&scene.pair.server.v6, "[1]");
    }
    assert!(all.ends().success());
    assert_eq!(all.events().len(), 4);
    assert!(none.ends().success());
    assert_eq!(none.text().lines().count(), 1, "{}", none.text());
}

#[test]
fn bytes_past_the_stack_are_in_the_file() {
    for wish in [ALWAYS, HANDED_OVER] {
        let scene = Scene::new("ebpf", wish);
        let file = scene.file();
        // IPv4 reaches the server as a mapped address.
        for host in [&scene.pair.server.v4, &scene.pair.server.v6] {
            let mut tap = scene.copying(&["client", "--bytes", "65536"]);
            let said = scene.talk(host, MANY_SIZES);
            copied(&file, host, (said.0.len(), said.1.len()));
            tap.interrupt();
            assert!(streams(&file, host) == said, "{wish} {}", tap.says());
            let raw = fs::read(&file).expect("a file");
            assert!(has(&raw, "default/client to default/server"));
            let mode = fs::metadata(&file).expect("a file").permissions();
            assert_eq!(mode.mode() & 0o777, 0o600);
        }
    }
}

fn has(bytes: &[u8], text: &str) -> bool {
    let mut places = bytes.windows(text.len());
    places.any(|place| place == text.as_bytes())
}

#[test]
fn of_each_direction_the_first_bytes_are_copied() {
    for wish in [ALWAYS, HANDED_OVER] {
        let scene = Scene::new("ebpf", wish);
        let (file, host) = (scene.file(), &scene.pair.server.v4);
        let mut tap = scene.copying(&["server", "--bytes", "777"]);
        let (sent, heard) = scene.talk(host, MANY_SIZES);
        // What comes last in the file belongs to a later connection.
        scene.talk(&scene.pair.server.v6, "[100]");
        copied(&file, &scene.pair.server.v6, (104, 100));
        tap.interrupt();
        let (first_sent, first_heard) = streams(&file, host);
        assert!(first_sent == sent[..777], "{wish}: {}", first_sent.len());
        assert!(first_heard == heard[..777], "{wish}: {}", first_heard.len());
        let raw = fs::read(&file).expect("a file");
        assert!(has(&raw, "the first 777 bytes end here"));
    }
}

#[test]
fn a_direction_that_changes_to_tcp_is_marked_where_it_does() {
    let scene = Scene::new("ebpf", ALWAYS);
    let mut tap = scene.copying(&["--bytes", "100"]);
    // The server reads everything at once, which makes 64 KiB in a row a bulk.
    scene.talk(&scene.pair.server.v4, "[65_532] * 60");
    let raw = wait::until("the mark", SECONDS, || {
        let raw = fs::read(scene.file()).expect("a file");
        has(&raw, "from here on by TCP (bulk)").then_some(raw)
    });
    tap.interrupt();
    assert!(has(&raw, "default/client"), "{}", tap.says());
    let packets = packets(&scene.file());
    let marks = packets.iter().filter(|packet| packet.bytes.is_empty());
    let marked: Vec<u32> = marks.map(|mark| mark.sequence).collect();
    assert!(!marked.is_empty());
    assert!(marked.iter().all(|at| *at > 16 * 32 << 10), "{marked:?}");
    assert!(tap.says().contains("changed to TCP"), "{}", tap.says());
}

#[test]
fn a_tap_that_dies_copies_nothing_more() {
    let scene = Scene::new("ebpf", ALWAYS);
    let talk = || drop(scene.talk(&scene.pair.server.v4, "[100] * 20"));
    let mut tap = scene.copying(&[]);
    let second = Tap::start(&scene.agent, &["-w", "/dev/null"]);
    assert!(second.says().contains("another tap copies bytes already"));
    talk();
    wait::until("counted", SECONDS, || {
        (scene.kernel_count("tap_copied") >= 40).then_some(())
    });
    tap.signal("-KILL");
    tap.ends();
    copies_nothing(&scene);
    // The next one may, until the data plane dies.
    let mut tap = scene.copying(&[]);
    let before = scene.kernel_count("tap_copied");
    talk();
    wait::until("counted again", SECONDS, || {
        (scene.kernel_count("tap_copied") > before).then_some(())
    });
    signal("-KILL", scene.agent.worker_pid().expect("a data plane"));
    assert_eq!(tap.ends().code(), Some(1));
    assert!(
        tap.says().contains("data plane was replaced"),
        "{}",
        tap.says()
    );
    copies_nothing(&scene);
}

/// Soon a whole talk leaves the counter where it was.
fn copies_nothing(scene: &Scene) {
    wait::until("nothing is copied", SECONDS, || {
        let count = || {
            (
                scene.kernel_count("outbound_direct"),
                scene.kernel_count("tap_copied"),
            )
        };
        let before = wait::until("the agent answers", SECONDS, || {
            Some(count()).filter(|(direct, _)| *direct > 0)
        });
        scene.talk(&scene.pair.server.v4, "[100] * 20");
        let after = wait::until("the kernel's counts", SECONDS, || {
            Some(count()).filter(|(direct, _)| *direct > before.0)
        });
        (after.1 == before.1).then_some(())
    });
}

#[test]
fn a_slow_reader_holds_nobody_and_is_told_what_it_missed() {
    const CONNECTIONS: u64 = 3000;
    let scene = Scene::new("ebpf", "acceleration: auto");
    let mut tap = Tap::start(&scene.agent, &["-o", "json"]);
    tap.signal("-STOP");
    let script = format!(
        "import socket
for _ in range({CONNECTIONS}): socket.create_connection(('{}', 7000)).close()",
        scene.pair.server.v4
    );
    scene.pair.client.python(&script);
    scene
        .agent
        .lines(usize::try_from(CONNECTIONS).expect("few"));
    tap.signal("-CONT");
    let lost = wait::until("all is told or lost", SECONDS, || {
        let events = tap.events();
        let lost = flows(&events, "lost").into_iter();
        let lost: u64 = lost
            .map(|event| event["lines"].as_u64().expect("a count"))
            .sum();
        let told = flows(&events, "open").len() + flows(&events, "close").len();
        (told as u64 + lost == 2 * CONNECTIONS).then_some(lost)
    });
    assert!(lost > 0);
    tap.interrupt();
}

#[test]
fn a_living_connection_is_copied_from_now_on() {
    let scene = Scene::new("ebpf", ALWAYS);
    let script = format!(
        "{EVENTS}
s = call('{}')
for line in sys.stdin:
    text = line.strip().encode(); s.send(len(text).to_bytes(4, 'big') + text)
    print(s.read(len(text)).decode(), flush=True)
",
        scene.pair.server.v4
    );
    let mut client = Script::start(&scene.pair.client, &script, &[]);
    client.tell("before");
    assert_eq!(client.says(), "erofeb");
    let mut tap = scene.copying(&["--count", "2"]);
    client.tell("after");
    assert_eq!(client.says(), "retfa");
    // A request and an answer.
    assert!(tap.ends().success());
    let (sent, heard) = streams(&scene.file(), &scene.pair.server.v4);
    assert_eq!(
        (&sent[..], &heard[..]),
        (&b"\0\0\0\x05after"[..], &b"retfa"[..])
    );
}

#[test]
fn what_cannot_be_tapped_is_said() {
    let scene = Scene::new("iptables", "");
    let refused = |args: &[&str], code: i32, why: &str| {
        let mut tap = Tap::start(&scene.agent, args);
        assert_eq!(tap.ends().code(), Some(code), "{}", tap.says());
        assert!(tap.says().contains(why), "{}", tap.says());
    };
    refused(&["nobody"], 1, "no workload nobody");
    refused(
        &["nobody", "-w", "/nonexistent/file"],
        1,
        "no workload nobody",
    );
    refused(&["-w", "/nonexistent/file"], 1, "use tcpdump");
    refused(&["--bytes", "10"], 64, "--write");
    refused(&["-w", "-", "--bytes", "70000"], 64, "65536");
    refused(&["-w", "-", "-o", "json"], 64, "cannot be used with");
    let lonely = Command::new(agent::binary())
        .args(["tap", "--socket", "/nonexistent/admin.sock"])
        .output()
        .expect("it runs");
    assert_eq!(lonely.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&lonely.stderr).contains("no agent is running"));
}
