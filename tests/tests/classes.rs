//! `acceleration: auto`, the default: who is seen not to notice is accelerated, who might notice never is.

use std::time::Duration;

use serde_json::Value;
use shunt_tests::{Agent, Pair, Running, wait};

/// Turns messages round: on sockets that do not block, or on such that do.
const SERVER: &str = "
import select, socket, sys, threading
blocks = sys.argv[1] == 'blocking'
l = socket.create_server(('', 7000), backlog=100)
def serve(s):
    s.setblocking(blocks)
    while True:
        if not blocks: select.select([s], [], [])
        some = s.recv(1000)
        if not some: break
        s.sendall(some)
    s.close()
while True: threading.Thread(target=serve, args=[l.accept()[0]], daemon=True).start()
";

/// Its words: the server, connections one after the other, turns on each, and how.
const CLIENT: &str = "
import select, socket, sys
host, connections, turns, how = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
for _ in range(connections):
    s = socket.socket()
    if how == 'blocking': s.connect((host, 7000))
    else:
        s.setblocking(False); s.connect_ex((host, 7000)); select.select([], [s], [])
        # As hiredis does: it connects without blocking, and then blocks.
        if how == 'later': s.setblocking(True)
    for turn in range(turns):
        message = str(turn).encode() * 9
        s.send(message); got = b''
        while len(got) < len(message):
            if how == 'event': select.select([s], [], [])
            got += s.recv(len(message) - len(got))
        assert got == message
    s.close()
print('turned')
";

struct Scene {
    pair: Pair,
    agent: Agent,
    _server: Running,
}

impl Scene {
    /// As nobody configures anything.
    fn new(server: &str) -> Self {
        let pair = Pair::new();
        let running = pair.server.spawn("python3", &["-c", SERVER, server]);
        pair.server.wait_for_listener(7000);
        let agent = pair.both("ebpf", "acceleration: {direct: false}").start();
        Self {
            pair,
            agent,
            _server: running,
        }
    }

    fn call(&self, connections: u32, turns: u32, how: &str) -> Vec<String> {
        let before = self.agent.access_log().len();
        let (connections, turns) = (connections.to_string(), turns.to_string());
        let words = [
            "-c",
            CLIENT,
            &self.pair.server.v4,
            &connections,
            &turns,
            how,
        ];
        assert_eq!(self.pair.client.says("python3", &words), "turned");
        let wanted: usize = connections.parse().expect("a number");
        let lines = self.agent.lines(before + wanted);
        let path = |line: &Value| line["path"].as_str().expect("a path").to_owned();
        lines[before..].iter().map(path).collect()
    }

    fn explained(&self) -> (Value, String) {
        let target = format!(
            "/explain?workload=client&destination={}:7000",
            self.pair.server.v4
        );
        let (code, told) = self.agent.admin("GET", &target, "");
        assert_eq!(code, 200, "{told}");
        let told: Value = serde_json::from_str(&told).expect("JSON");
        let reason = told["path_reason"].as_str().expect("text").to_owned();
        (told["path"].clone(), reason)
    }

    /// Explained like this, soon: the last connection's end may not have been seen yet.
    fn is_told(&self, path: &str, why: &str) {
        let mut last = String::new();
        wait::until(why, Duration::from_secs(10), || {
            let (told, reason) = self.explained();
            last.clone_from(&reason);
            (told == path && reason.contains(why)).then_some(())
        });
    }
}

#[test]
fn event_driven_programs_are_accelerated_once_they_are_known() {
    let scene = Scene::new("event");
    scene.is_told(
        "copy",
        "the client's end is learning: 0 of 8 connections seen",
    );
    assert_eq!(scene.call(7, 20, "event"), ["copy"; 7]);
    scene.is_told(
        "copy",
        "the server's end is learning: 7 of 8 connections seen",
    );
    assert_eq!(scene.call(1, 20, "event"), ["copy"]);
    scene.is_told("handoff", "the server's end is proven");
    assert_eq!(scene.call(5, 20, "event"), ["handoff"; 5]);
    // In the same pod, a program that blocks when it connects: none of those that are known did.
    // Between the agent and the server, which is as it was, bytes may go past TCP.
    let paths = scene.call(5, 20, "blocking");
    let own = |path: &String| path == "copy" || path == "sockmap";
    assert!(paths.iter().all(own), "{paths:?}");
    scene.is_told(
        "handoff",
        "block when they connect: off: a blocking read was seen",
    );
    assert_eq!(scene.call(5, 20, "event"), ["handoff"; 5]);
}

#[test]
fn one_end_that_blocks_keeps_both_from_it() {
    for (server, client) in [
        ("blocking", "event"),
        ("event", "blocking"),
        ("event", "later"),
    ] {
        let scene = Scene::new(server);
        let end = if server == "blocking" {
            "server"
        } else {
            "client"
        };
        for _ in 0..3 {
            assert_eq!(scene.call(8, 20, client), ["copy"; 8]);
        }
        scene.is_told(
            "copy",
            &format!("the {end}'s end is off: a blocking read was seen"),
        );
        wait::until("status tells", Duration::from_secs(10), || {
            (scene.agent.workload(end)["acceleration"]["fault"] == 1).then_some(())
        });
    }
}

#[test]
fn short_connections_are_left_alone() {
    let scene = Scene::new("event");
    assert_eq!(scene.call(20, 1, "event"), ["copy"; 20]);
    scene.is_told(
        "copy",
        "short connections: about 1 reads in each, it pays from 8",
    );
    assert_eq!(scene.call(5, 1, "event"), ["copy"; 5]);
    wait::until("metrics tell", Duration::from_secs(10), || {
        let (_, metrics) = scene.agent.admin("GET", "/stats/prometheus", "");
        let sample = r#"shunt_acceleration_total{path="copy",reason="short"} "#;
        metrics.contains(sample).then_some(())
    });
    // They are watched on.
    scene.call(30, 20, "event");
    scene.is_told("handoff", "the server's end is proven");
}

/// A listed limit: docs/semantics.md. It is noticed, and told, and is the last.
#[test]
fn who_changes_later_is_noticed() {
    let scene = Scene::new("event");
    scene.call(8, 20, "event");
    scene.is_told("handoff", "the server's end is proven");
    assert_eq!(scene.call(1, 20, "later"), ["handoff"]);
    scene.is_told("copy", "1 sockets had been accelerated");
    assert_eq!(scene.call(3, 20, "later"), ["copy"; 3]);
    wait::until("it is in the log", Duration::from_secs(5), || {
        let log = scene.agent.log();
        log.contains("sockets had been accelerated when a program was seen")
            .then_some(())
    });
}
