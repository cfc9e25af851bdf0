//! Differences that need an outage to be seen, so that they are no rows: each is listed in docs/semantics.md too.

use std::process::Command;

use shunt_tests::{AgentBuilder, Script, World, agent, in_both_modes, require};

in_both_modes!(a_dead_peer_is_not_noticed, a_reset_before_the_agent_accepts);

const SERVER: &str = "
import socket
l = socket.socket(); l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); l.bind(('', 9)); l.listen(); l.settimeout(5)
print('listening', flush=True)
while True:
    n = 0; input()
    try:
        c, _ = l.accept(); c.settimeout(15)
        while b := c.recv(65536): n += len(b); print(n, 'bytes', flush=True)
        print('end', flush=True)
    except socket.timeout: print('not called', flush=True)
    except ConnectionResetError: print('ECONNRESET', flush=True)
";

/// Sends until `TCP_USER_TIMEOUT` says that nobody acknowledges, for six seconds at most.
const CAREFUL: &str = "
import errno, socket, sys, time
s = socket.create_connection((sys.argv[1], 9), 5); s.setsockopt(socket.IPPROTO_TCP, 18, 1000); s.sendall(b'x')
print('connected', flush=True); input(); end = time.monotonic() + 6
try:
    while time.monotonic() < end: s.sendall(b'x'); time.sleep(.05)
    print('nothing', flush=True)
except OSError as e: print(errno.errorcode[e.errno], flush=True)
";

fn a_dead_peer_is_not_noticed(mode: &str) {
    require::everything();
    let world = World::new();
    let (client, server) = (world.pod(), world.pod());
    let mut listener = Script::start(&server, SERVER, &[]);
    assert_eq!(listener.says(), "listening");
    let lose = |when: &str| {
        let mut careful = Script::start(&client, CAREFUL, &[&server.v4]);
        assert_eq!(careful.says(), "connected", "{when}");
        let link = |what| {
            let words = ["-n", &server.netns, "link", "set", "eth0", what];
            let done = Command::new("ip").args(words).status();
            assert!(done.expect("`ip` runs").success());
        };
        link("down");
        careful.tell("");
        let said = careful.says();
        link("up");
        said
    };
    // The agent first: its flow is its own affair when the link is up again.
    let agent = AgentBuilder::new(&world, mode)
        .enrol("client", &client, "")
        .start();
    assert_eq!(lose("with us"), "nothing");
    drop(agent);
    drop(listener);
    let mut listener = Script::start(&server, SERVER, &[]);
    assert_eq!(listener.says(), "listening");
    assert_eq!(lose("without us"), "ETIMEDOUT");
}

const HASTY: &str = "
import socket, struct, sys
s = socket.create_connection((sys.argv[1], 9), 5); s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
s.sendall(b'x' * 1000); s.close()
";

fn a_reset_before_the_agent_accepts(mode: &str) {
    require::everything();
    let world = World::new();
    let (client, server) = (world.pod(), world.pod());
    let mut listener = Script::start(&server, SERVER, &[]);
    assert_eq!(listener.says(), "listening");
    let mut hasty = |before: &dyn Fn(), after: &dyn Fn()| {
        before();
        client.says("python3", &["-c", HASTY, &server.v4]);
        after();
        listener.tell("");
        let mut said = vec![listener.says()];
        if said[0] == "1000 bytes" {
            said.push(listener.says());
        }
        said.join(", ")
    };
    assert_eq!(hasty(&|| {}, &|| {}), "1000 bytes, ECONNRESET");
    let agent = AgentBuilder::new(&world, mode)
        .enrol("client", &client, "")
        .enrol("server", &server, "")
        .start();
    let worker = agent.worker_pid().expect("a data plane");
    let signal = |name| move || agent::signal(name, worker);
    let seen = hasty(&signal("-STOP"), &signal("-CONT"));
    let expected = match mode {
        "ebpf" => "1000 bytes, ECONNRESET",
        _ => "not called",
    };
    assert_eq!(seen, expected);
}
