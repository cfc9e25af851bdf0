//! Connections that need no proxy: the application's own socket goes to the destination, decided in the kernel, and is
//! told of as any other.

use std::time::Duration;

use serde_json::Value;
use shunt_tests::agent::{entry, signal};
use shunt_tests::talks::{self, COMMON, SERVER, paths};
use shunt_tests::{Agent, AgentBuilder, EVENTS, Pair, Script, wait};

/// Default of every workload.
const AUTO: &str = "acceleration: auto";
const ALWAYS: &str = "acceleration: always";
const SECONDS: Duration = Duration::from_secs(10);

fn scene(wish: &str) -> (Pair, Agent) {
    let scene = Pair::new();
    let agent = scene.both("ebpf", wish).start();
    (scene, agent)
}

/// What `shunt explain` says of the server.
fn explained(agent: &Agent, scene: &Pair) -> Value {
    let destination = &scene.server.v4;
    let path = format!("/explain?workload=client&destination={destination}:7000");
    let (_, told) = agent.admin("GET", &path, "");
    serde_json::from_str(&told).expect("JSON")
}

#[test]
fn forty_talks_both_ways_at_once() {
    for (wish, past_the_stack) in [(AUTO, false), (ALWAYS, true)] {
        let (scene, agent) = scene(wish);
        let script = format!("{COMMON}{SERVER}");
        let _server = scene.server.spawn("python3", &["-c", &script]);
        scene.server.wait_for_listener(7000);
        for host in [&scene.server.v4, &scene.server.v6] {
            talks::all(&scene.client, host);
        }
        let lines = agent.lines(80);
        talks::are_told_exactly(&scene.client, &lines);
        assert!(paths(&lines).iter().all(|path| *path == "direct"));
        for line in &lines {
            assert_eq!(line["peer_workload"], "default/server", "{line}");
            assert_eq!(line["direction"], "outbound", "{line}");
            assert_eq!(line["original_dst"], line["upstream"], "{line}");
        }
        for (workload, direction) in [("client", "outbound"), ("server", "inbound")] {
            let counts = agent.workload(workload);
            assert_eq!(counts["connections"]["total"], 80, "{direction} {counts}");
            assert_eq!(counts["connections"]["active"], 0, "{direction} {counts}");
        }
        assert_eq!(agent.count_after("handed_over", 80) > 100, past_the_stack);
    }
}

trait Counts {
    /// An event of the kernel programs, as soon as the agent knows of so many direct connections: it is told by and by.
    fn count_after(&self, event: &str, direct: u64) -> u64;
}

impl Counts for Agent {
    fn count_after(&self, event: &str, direct: u64) -> u64 {
        wait::until("the kernel's counts", SECONDS, || {
            let known = self.kernel_count("outbound_direct")? >= direct;
            self.kernel_count(event).filter(|_| known)
        })
    }
}

/// What an application sees of a connection, and how it ends: as on a host without us.
const CASES: &str = "
import errno, select, socket, struct, sys
V4, V6 = sys.argv[1:]
def code(host, port, family=socket.AF_INET):
    s = socket.socket(family); s.settimeout(5)
    try: s.connect((host, port)); return s
    except OSError as error: return errno.errorcode.get(error.errno, str(error))
print('closed port', code(V4, 9), code(V6, 9, socket.AF_INET6))
for family, host in ((socket.AF_INET, V4), (socket.AF_INET6, V6), (socket.AF_INET6, '::ffff:' + V4)):
    s = code(host, 7000, family); assert s.getpeername()[0] == host, s.getpeername()
    assert s.getsockname()[0] != '127.0.0.1'
    s.sendall(b'echo'); assert s.recv(100) == b'echo'
    s.shutdown(socket.SHUT_WR); assert s.recv(100) == b''; s.close()
s = code(V4, 7000); s.sendall(b'reset me'); print('server resets', end=' ')
try: print(s.recv(100))
except OSError as error: print(errno.errorcode[error.errno])
s.close()
s = code(V4, 7000); s.sendall(b'x'); s.recv(1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); s.close()
s = code(V4, 7000); s.sendall(b'leave'); s.recv(5); s.sendall(b'unread'); 
select.select([s], [], [], 5); s.close()
print('done')
";

const ECHO: &str = "
import socket, struct, threading
def one(s):
    try:
        while some := s.recv(65536):
            if some == b'reset me': s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); break
            s.sendall(some)
    except OSError: pass
    s.close()
l = socket.create_server(('::', 7000), family=socket.AF_INET6, dualstack_ipv6=True)
while True: threading.Thread(target=one, args=(l.accept()[0],)).start()
";

#[test]
fn applications_see_what_they_would_without_us() {
    let (scene, agent) = scene(AUTO);
    let _server = scene.server.spawn("python3", &["-c", ECHO]);
    scene.server.wait_for_listener(7000);
    let (v4, v6) = (&scene.server.v4, &scene.server.v6);
    let told = scene.client.says("python3", &["-c", CASES, v4, v6]);
    let meshed: Vec<&str> = told.lines().map(str::trim).collect();
    // A pod that is enrolled nowhere, towards one that is not.
    let other = scene.world.pod();
    let _other_server = other.spawn("python3", &["-c", ECHO]);
    other.wait_for_listener(7000);
    let told = scene
        .world
        .pod()
        .says("python3", &["-c", CASES, &other.v4, &other.v6]);
    let unmeshed: Vec<&str> = told.lines().map(str::trim).collect();
    assert_eq!(meshed, unmeshed);
    assert_eq!(meshed[0], "closed port ECONNREFUSED ECONNREFUSED");

    let lines = agent.lines(8);
    let reasons: Vec<&str> = lines
        .iter()
        .map(|line| line["close_reason"].as_str().expect("text"))
        .collect();
    let expected = [
        "connect_failed",
        "connect_failed",
        "finished",
        "finished",
        "finished",
        "upstream_reset",
        "client_reset",
        "client_reset",
    ];
    assert_eq!(reasons, expected, "{lines:#?}");
    assert_eq!(lines[2]["bytes_received"], 4);
    assert_eq!(lines[2]["bytes_sent"], 4);
    assert_eq!(lines[2]["original_dst_source"], "sk_storage");
}

/// Sends each line that it is told to a server which answers the same, and says what came back.
const PARROT: &str = "
import socket, sys
s = socket.create_connection((sys.argv[1], 7000)); print('connected', flush=True)
for line in sys.stdin:
    s.sendall(line.encode()); print(s.recv(65536).decode().strip(), flush=True)
s.close()
";

/// A connection, with the agent that was there when it was made.
fn talking(scene: &Pair) -> Script {
    let mut script = Script::start(&scene.client, PARROT, &[&scene.server.v4]);
    assert_eq!(script.says(), "connected");
    script.tell("before");
    assert_eq!(script.says(), "before");
    script
}

#[test]
fn flows_outlive_every_process_of_the_agent() {
    for wish in [AUTO, ALWAYS] {
        let (scene, mut agent) = scene(wish);
        let _server = scene.server.spawn("python3", &["-c", ECHO]);
        scene.server.wait_for_listener(7000);
        let mut first = talking(&scene);
        let worker = agent.worker_pid().expect("a data plane");
        signal("-KILL", worker);
        wait::until("another data plane", SECONDS, || {
            agent.worker_pid().filter(|pid| *pid != worker)
        });
        first.tell("after the data plane");
        assert_eq!(first.says(), "after the data plane");
        let mut second = talking(&scene);
        // The data plane that has never heard of its beginning tells of its end.
        first.succeeds();
        let line = wait::until("its line", SECONDS, || agent.access_log().pop());
        let bytes = "before\nafter the data plane\n".len();
        assert_eq!(line["bytes_received"], bytes, "{line}");
        assert_eq!(line["path"], "direct", "{line}");
        agent.kill();
        second.tell("after the agent");
        assert_eq!(second.says(), "after the agent");
        second.succeeds();
    }
}

#[test]
fn a_withdrawn_workload_keeps_its_flows_and_is_told_of() {
    let (scene, agent) = scene(AUTO);
    let _server = scene.server.spawn("python3", &["-c", ECHO]);
    scene.server.wait_for_listener(7000);
    let mut flow = talking(&scene);
    let active = || agent.workload("client")["connections"]["active"].clone();
    assert_eq!(active(), 1);
    agent.rewrite(&[entry("server", &scene.server, AUTO)]);
    let line = wait::until("its line", SECONDS, || agent.access_log().pop());
    assert_eq!(line["close_reason"], "drained", "{line}");
    flow.tell("still there");
    assert_eq!(flow.says(), "still there");
    flow.succeeds();
    // Once more, from a pod that is not enrolled now: it is the server's agent that carries it.
    let mut inbound = talking(&scene);
    inbound.succeeds();
    let line = wait::until("its line", SECONDS, || {
        agent
            .access_log()
            .pop()
            .filter(|line| line["direction"] == "inbound")
    });
    assert_eq!(line["path"], "copy", "{line}");
}

/// A server in iptables mode is reached through the agent: its rules would bring the connection there anyhow, and it
/// would be told of twice. The agent also stays where something needs it.
#[test]
fn the_agent_stays_where_it_is_needed() {
    let scene = Pair::new();
    let _server = scene.server.spawn("python3", &["-c", ECHO]);
    scene.server.wait_for_listener(7000);
    let said = |agent: &Agent, path: &str| {
        let before = agent.access_log().len();
        talking(&scene).succeeds();
        let line = agent.lines(before + 1).pop().expect("a line");
        assert_eq!(line["path"], path, "{line}");
        wait::pause(Duration::from_millis(100));
        assert_eq!(agent.access_log().len(), before + 1, "told of twice");
        line
    };
    let mixed = AgentBuilder::new(&scene.world, "ebpf")
        .enrol("client", &scene.client, AUTO)
        .enrol("server", &scene.server, &format!("mode: iptables, {AUTO}"))
        .start();
    let line = said(&mixed, "copy");
    assert_eq!(line["peer_workload"], "default/server");
    let told = explained(&mixed, &scene);
    assert_eq!(told["path"], "copy", "{told:#}");
    drop(mixed);

    let idle = scene.both("ebpf", AUTO).set("timeouts: {idle: 1h}").start();
    said(&idle, "copy");
    idle.edit("timeouts", "timeouts: {idle: 1h}\n", "");
    wait::until("it is not needed any more", SECONDS, || {
        (explained(&idle, &scene)["path"] == "direct").then_some(())
    });
    said(&idle, "direct");
}

/// Connects from one port, says so, waits for a line, resets the connection; and again.
const SAME_PORT: &str = "
import socket, struct, sys
for _ in range(2):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(('', 40001)); s.connect((sys.argv[1], 7000)); s.sendall(b'x'); assert s.recv(1) == b'x'
    print('connected', flush=True); sys.stdin.readline()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); s.close()
";

/// The hooks of a withdrawn client do not tell when its connection ends. One that looks the same later is not taken for it.
#[test]
fn what_looks_like_a_connection_of_before_is_asked_about() {
    let (scene, agent) = scene(AUTO);
    let _server = scene.server.spawn("python3", &["-c", ECHO]);
    scene.server.wait_for_listener(7000);
    let mut flow = Script::start(&scene.client, SAME_PORT, &[&scene.server.v4]);
    assert_eq!(flow.says(), "connected");
    agent.rewrite(&[entry("server", &scene.server, AUTO)]);
    let line = wait::until("its line", SECONDS, || agent.access_log().pop());
    assert_eq!(line["close_reason"], "drained", "{line}");
    flow.tell("go on");
    assert_eq!(flow.says(), "connected");
    flow.tell("and end");
    let line = wait::until("the server's side", SECONDS, || {
        let last = agent.access_log().pop();
        last.filter(|line| line["direction"] == "inbound")
    });
    assert_eq!(line["workload"], "default/server", "{line}");
}

/// Holds connections to an enrolled server, and then lets somebody in whom only the agent can serve.
const HOLD: &str = "
import socket, sys
held = [socket.create_connection((sys.argv[1], 7000)) for _ in range(5)]; print('held', flush=True); sys.stdin.readline()
";

/// What goes directly costs the agent nothing, and leaves its room to others.
#[test]
fn limits_are_about_what_the_agent_carries() {
    let scene = Pair::new();
    let _server = scene.server.spawn("python3", &["-c", ECHO]);
    scene.server.wait_for_listener(7000);
    let limits = "limits: {connections: 2, connections_per_workload: 2}";
    let agent = scene.both("ebpf", AUTO).set(limits).start();
    let mut holder = Script::start(&scene.client, HOLD, &[&scene.server.v4]);
    assert_eq!(holder.says(), "held");
    wait::until("five are known", SECONDS, || {
        (agent.workload("server")["connections"]["active"] == 5).then_some(())
    });
    let mut inbound = Script::start(&scene.world.pod(), PARROT, &[&scene.server.v4]);
    assert_eq!(inbound.says(), "connected");
    inbound.tell("let in");
    assert_eq!(inbound.says(), "let in");
    inbound.succeeds();
    let line = wait::until("its line", SECONDS, || agent.access_log().pop());
    assert_eq!(line["close_reason"], "finished", "{line}");
}

/// Answers each 64 KiB with a byte, and says what all of it was.
const SINK: &str = "
l = socket.create_server(('', 7000))
while True:
    s, heard, length = Events(l.accept()[0]), hashlib.sha256(), 0
    while some := s.recv(65536 - length % 65536):
        heard.update(some); length += len(some)
        if length % 65536 == 0: s.send(b'.')
    print(length, heard.hexdigest(), flush=True)
";

/// Sends the next one when the last has been taken.
const SOURCE: &str = "
s, said = call(sys.argv[1]), hashlib.sha256()
for seed in range(200):
    data = random.Random(seed).randbytes(1 << 16); s.send(data); said.update(data); assert s.read(1) == b'.'
s.s.close(); print(200 << 16, said.hexdigest())
";

/// TCP is faster for large messages, and the change of the way keeps their order.
#[test]
fn bulk_goes_by_tcp() {
    let (scene, agent) = scene(ALWAYS);
    let source = format!("{EVENTS}{SOURCE}");
    let mut sink = Script::start(&scene.server, &format!("{EVENTS}{SINK}"), &[]);
    scene.server.wait_for_listener(7000);
    let said = scene
        .client
        .says("python3", &["-c", &source, &scene.server.v4]);
    assert_eq!(sink.says(), said.trim());
    let line = agent.lines(1).remove(0);
    assert_eq!(line["bytes_by_path"]["direct"], (200 << 16) + 200, "{line}");
    assert_eq!(agent.count_after("bulk", 1), 1);
    // The answers are small, and go on past the stack.
    assert_eq!(line["messages_sent"], 200, "{line}");
    let large = line["messages_received"].as_u64().expect("a number");
    assert!((1..200).contains(&large), "{line}");
    let (_, metrics) = agent.admin("GET", "/stats/prometheus", "");
    let counted = |line: &str| {
        let of = ["workload=\"client\"", "path=\"direct\"", "flow=\"sent\""];
        line.starts_with("shunt_messages_total{") && of.iter().all(|label| line.contains(label))
    };
    let mut counts = metrics.lines().filter(|line| counted(line));
    assert!(counts.any(|count| count.ends_with(" 200")), "{metrics}");
}

/// Where that is all that connections to a port do, they are not made ready for anything else, but now and then.
#[test]
fn a_bulk_service_is_left_to_tcp() {
    const CONNECTIONS: u64 = 13;
    let (scene, agent) = scene(ALWAYS);
    let source = format!("{EVENTS}{SOURCE}");
    let mut sink = Script::start(&scene.server, &format!("{EVENTS}{SINK}"), &[]);
    scene.server.wait_for_listener(7000);
    let told = explained(&agent, &scene).to_string();
    assert!(told.contains("past the TCP stack"), "{told}");
    for _ in 0..CONNECTIONS {
        let said = scene
            .client
            .says("python3", &["-c", &source, &scene.server.v4]);
        assert_eq!(sink.says(), said.trim());
    }
    let lines = agent.lines(CONNECTIONS as usize);
    assert!(lines.iter().all(|line| line["path"] == "direct"));
    // Four to see what it is, and the eighth of the others.
    assert_eq!(agent.count_after("socket_accelerated", CONNECTIONS), 2 * 5);
    assert_eq!(agent.count_after("bulk", CONNECTIONS), 5);
    assert_eq!(agent.count_after("bulk_service", CONNECTIONS), 8);
    let told = explained(&agent, &scene).to_string();
    assert!(told.contains("which is faster"), "{told}");
}
