//! Same-node flows past the TCP stack: the same bytes, the same ends, told of as any other.

use std::time::Duration;

use serde_json::Value;
use shunt_tests::agent::{entry, signal};
use shunt_tests::talks::{self, COMMON, SERVER, paths};
use shunt_tests::{Agent, EVENTS, Pair, Running, Script, wait};

/// Always, but by the agent.
const HANDED_OVER: &str = "acceleration: {default: always, direct: false}";

/// Past the TCP stack, but every byte by the agent.
const KEPT: &str = "acceleration: {default: always, direct: false, handoff: false}";

/// The pods, the agent, and the server as long as it is to run.
fn scene(server_script: &str) -> (Pair, Agent, Running) {
    scene_with(server_script, HANDED_OVER)
}

fn scene_with(server_script: &str, acceleration: &str) -> (Pair, Agent, Running) {
    let scene = Pair::new();
    let running = scene.server.spawn("python3", &["-c", server_script]);
    scene.server.wait_for_listener(7000);
    let agent = scene.both("ebpf", acceleration).start();
    (scene, agent, running)
}

#[test]
fn forty_talks_both_ways_at_once() {
    let (scene, agent, _server) = scene(&format!("{COMMON}{SERVER}"));
    // The server listens on `::`: IPv4 reaches it as a mapped address.
    for host in [&scene.server.v4, &scene.server.v6] {
        talks::all(&scene.client, host);
    }
    let lines = agent.lines(80);
    talks::are_told_exactly(&scene.client, &lines);
    let handed_over = paths(&lines)
        .iter()
        .filter(|path| **path == "handoff")
        .count();
    assert!(handed_over > 60, "{:?}", paths(&lines));
}

#[test]
fn what_the_agent_keeps_passes_it() {
    let (scene, agent, _server) = scene_with(&format!("{COMMON}{SERVER}"), KEPT);
    for host in [&scene.server.v4, &scene.server.v6] {
        talks::all(&scene.client, host);
    }
    let lines = agent.lines(80);
    talks::are_told_exactly(&scene.client, &lines);
    assert!(!paths(&lines).contains(&"handoff"), "{:?}", paths(&lines));
    let kept = paths(&lines).into_iter().filter(|path| *path == "sockmap");
    assert!(kept.count() > 60, "{:?}", paths(&lines));
    let bytes = &agent.workload("client")["bytes"];
    assert_eq!(bytes["handoff"], 0, "{bytes:#}");
}

#[test]
fn who_is_not_enrolled_is_served_without() {
    let (scene, agent, _server) = scene(&format!("{COMMON}{SERVER}"));
    talks::all(&scene.world.pod(), &scene.server.v4);
    let lines = agent.lines(40);
    assert!(lines.iter().all(|line| line["direction"] == "inbound"));
    assert!(!paths(&lines).contains(&"sockmap"), "{:?}", paths(&lines));
}

#[test]
fn both_workloads_must_want_it() {
    let (scene, agent, _server) = scene(&format!("{COMMON}{SERVER}"));
    let script = talks::script(&scene.server.v4, 1);
    let always = "acceleration: always";
    let cases = [
        (HANDED_OVER, always, "handoff"),
        (KEPT, always, "sockmap"),
        (always, KEPT, "sockmap"),
        (HANDED_OVER, "acceleration: off", "copy"),
        ("acceleration: {direct: false}", always, "copy"),
        (
            "acceleration: {default: off, direct: false, ports: {7000: always}}",
            always,
            "handoff",
        ),
        (
            HANDED_OVER,
            "acceleration: {default: always, ports: {\"6999-7001\": off}}",
            "copy",
        ),
        ("acceleration: auto", "acceleration: auto", "direct"),
        (always, always, "direct"),
        (always, HANDED_OVER, "handoff"),
        ("acceleration: auto", "acceleration: off", "copy"),
        ("acceleration: {ports: {7000: off}}", always, "copy"),
    ];
    for (client, server, path) in cases {
        agent.rewrite(&[
            entry("client", &scene.client, client),
            entry("server", &scene.server, server),
        ]);
        let what = format!("{client} and {server}: {path}");
        wait::until(&what, Duration::from_secs(5), || {
            let before = agent.access_log().len();
            assert_eq!(scene.client.python(&script), "heard all");
            let lines = agent.lines(before + 1);
            let target = format!(
                "/explain?workload=client&destination={}:7000",
                scene.server.v4
            );
            let (code, told) = agent.admin("GET", &target, "");
            assert_eq!(code, 200, "{told}");
            let told: Value = serde_json::from_str(&told).expect("JSON");
            (lines.last()?["path"] == path && told["path"] == path).then_some(())
        });
    }
}

/// Reads nothing until somebody connects to port 7001, then everything.
const STALLED: &str = "
l, told = socket.create_server(('', 7000)), socket.create_server(('127.0.0.1', 7001))
s = Events(l.accept()[0])
s.send(s.recv(5))
told.accept()
heard, length = hashlib.sha256(), 0
while some := s.recv(1 << 16): heard.update(some); length += len(some)
s.send(f'{length} {heard.hexdigest()}'.encode()); s.s.close()
";

#[test]
fn a_stalled_reader_holds_its_writer_back() {
    let (scene, agent, _server) = scene(&format!("{EVENTS}{STALLED}"));
    let script = format!(
        "{EVENTS}
s = call('{}')
s.turn(b'hello')
data = random.Random(1).randbytes(64 << 20); at = 0
while select.select([], [s.s], [], 2)[1]: at += s.s.send(data[at:at + 65536])
print(at, flush=True); sys.stdin.readline()
s.send(data[at:]); s.s.shutdown(socket.SHUT_WR)
answer = b''
while some := s.recv(1000): answer += some
assert answer.decode() == f'{{len(data)}} {{hashlib.sha256(data).hexdigest()}}', answer
print('right')
",
        scene.server.v4
    );
    let mut client = Script::start(&scene.client, &script, &[]);
    let held: u64 = client.says().parse().expect("bytes");
    assert!(
        held < 12 << 20,
        "{held} bytes wait for a reader that stalls"
    );
    scene
        .server
        .python("import socket; socket.create_connection(('127.0.0.1', 7001))");
    client.told_all();
    assert_eq!(client.says(), "right");
    client.succeeds();
    assert_eq!(agent.lines(1)[0]["bytes_received"], (64_u64 << 20) + 5);
}

/// Answers, then waits for whatever ends the connection.
const ANSWERING: &str = "
l = socket.create_server(('', 7000))
while True:
    s = Events(l.accept()[0])
    try:
        while some := s.recv(1000): s.send(some)
    except ConnectionResetError: pass
    s.s.close()
";

#[test]
fn a_reset_is_a_reset_and_a_living_flow_is_counted() {
    let (scene, agent, _server) = scene(&format!("{EVENTS}{ANSWERING}"));
    let script = format!(
        "{EVENTS}
s = call('{}')
for _ in range(50): s.turn(b'x' * 100)
sys.stdin.readline()
s.s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); s.s.close()
",
        scene.server.v4
    );
    let mut client = Script::start(&scene.client, &script, &[]);
    wait::until("bytes of a living flow", Duration::from_secs(12), || {
        let bytes = &agent.workload("client")["bytes"];
        // The first turns may have come before the agent was out of the way.
        let (handoff, sockmap) = (bytes["handoff"].as_u64()?, bytes["sockmap"].as_u64()?);
        (handoff > 0 && handoff + sockmap == 10_000).then_some(())
    });
    client.told_all();
    client.succeeds();
    let line = agent.lines(1).remove(0);
    assert_eq!(line["close_reason"], "client_reset", "{line}");
    assert_eq!(line["bytes_received"], 5000, "{line}");
    assert_eq!(line["bytes_sent"], 5000, "{line}");
    assert_eq!(line["path"], "handoff", "{line}");
    let messages = |name: &str| line[name].as_u64().expect("a number");
    assert_eq!(
        (messages("messages_received") + messages("messages_sent")) * 100,
        line["bytes_by_path"]["handoff"],
        "{line}"
    );
}

#[test]
fn a_killed_data_plane_resets_and_its_successor_accelerates() {
    let (scene, agent, _server) = scene(&format!("{EVENTS}{ANSWERING}"));
    let call = format!(
        "{EVENTS}
s = call('{}')
for _ in range(3): s.turn(b'x')
",
        scene.server.v4
    );
    let script = format!(
        "{call}
print('turned', flush=True)
try: print('end' if not s.recv(1) else 'byte')
except ConnectionResetError: print('reset')
"
    );
    let mut client = Script::start(&scene.client, &script, &[]);
    assert_eq!(client.says(), "turned");
    let first = agent.worker_pid().expect("a data plane");
    signal("-KILL", first);
    assert_eq!(client.says(), "reset");
    client.succeeds();
    wait::until("accelerated again", Duration::from_secs(10), || {
        scene.client.python(&call);
        let lines = agent.access_log();
        (lines.last()?["path"] == "handoff").then_some(())
    });
}

#[test]
fn a_flow_outlives_its_enrolment_and_the_supervisor() {
    let (scene, mut agent, _server) = scene(&format!("{EVENTS}{ANSWERING}"));
    let script = format!(
        "{EVENTS}
s = call('{}')
for line in sys.stdin: s.turn(b'x' * 50_000); print('turned', flush=True)
s.s.shutdown(socket.SHUT_WR); assert s.recv(1) == b''; print('ended')
",
        scene.server.v4
    );
    let mut client = Script::start(&scene.client, &script, &[]);
    let turn = |client: &mut Script| {
        client.tell("");
        assert_eq!(client.says(), "turned");
    };
    turn(&mut client);
    turn(&mut client);
    agent.rewrite(&[]);
    wait::until("withdrawn", Duration::from_secs(5), || {
        agent.status()["workloads"]
            .as_array()?
            .is_empty()
            .then_some(())
    });
    turn(&mut client);
    agent.kill();
    turn(&mut client);
    client.told_all();
    assert_eq!(client.says(), "ended");
    client.succeeds();
}
