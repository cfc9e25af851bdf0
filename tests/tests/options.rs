//! What accelerated sockets cannot have is refused as by a kernel that does not have it; all others, and all other
//! options, are as ever.

use std::time::Duration;

use shunt_tests::{Agent, Pair, Script, wait};

/// Says what each option is answered, on the connection to `host` or, without one, on other sockets.
const ASK: &str = "
import errno, os, select, socket, sys
ULP, REPAIR, ZEROCOPY = (6, 31, b'tls\\0'), (6, 19, 1), (1, 60, 1)
def ask(s, option):
    try: s.setsockopt(*option)
    except OSError as error: return errno.errorcode[error.errno]
    # A socket under repair would end without a word.
    if option == REPAIR: s.setsockopt(6, 19, -1)
    return 'taken'
def three(s): return ' '.join(ask(s, option) for option in (ULP, ZEROCOPY, REPAIR))
def talk(s):
    s.setblocking(False)
    for _ in range(20):
        s.send(b'x'); select.select([s], [], [])
        assert s.recv(10) == b'x'
";

const ECHO: &str = "
import select, socket
l = socket.create_server(('', 7000))
while True:
    s = l.accept()[0]; s.setblocking(False)
    while True:
        select.select([s], [], [])
        try:
            some = s.recv(10)
            if not some: break
            s.send(some)
        except ConnectionResetError: break
    s.close()
";

/// The supervisor tells its counters now and then.
fn are_refused(agent: &Agent, count: u64) {
    let line = format!("kernel.option_refused: {count}");
    wait::until(&line, Duration::from_secs(10), || {
        let stats = agent.admin("GET", "/stats", "").1;
        stats.lines().any(|told| told == line).then_some(())
    });
}

#[test]
fn an_accelerated_socket_is_refused_what_would_harm_it() {
    let scene = Pair::new();
    let _server = scene.server.spawn("python3", &["-c", ECHO]);
    scene.server.wait_for_listener(7000);
    let call = format!(
        "{ASK}
def call(): return socket.create_connection(('{}', 7000))
for line in sys.stdin:
    s = call(); fresh = three(s)
    if line.strip() == 'accelerated': talk(s)
    print(fresh, '|', three(s), '|', three(socket.socket()), flush=True); s.close()
",
        scene.server.v4
    );
    let ask = |how: &str| {
        let mut client = Script::start(&scene.client, &call, &[]);
        client.tell(how);
        let said = client.says();
        client.succeeds();
        said
    };
    let untouched = ask("plain");
    let agent = scene.both("ebpf", "acceleration: always").start();
    let refused = "ENOENT ENOPROTOOPT ENOPROTOOPT";
    let accelerated = ask("accelerated");
    let (on_connections, on_others) = accelerated.rsplit_once(" | ").expect("three parts");
    assert_eq!(on_connections, format!("{refused} | {refused}"));
    // Sockets that are not connected, of the same program.
    assert_eq!(Some(on_others), untouched.rsplit(" | ").next());
    are_refused(&agent, 6);
    drop(agent);

    let agent = scene.both("ebpf", "acceleration: off").start();
    assert_eq!(ask("plain"), untouched);
    are_refused(&agent, 0);
}

#[test]
fn every_other_option_is_as_ever() {
    let scene = Pair::new();
    let script = format!(
        "{ASK}
MPTCP = 262
long = (1).to_bytes(4, sys.byteorder) + bytes(9000)
seen = []
def kinds():
    yield socket.socket()
    yield socket.socket(socket.AF_INET6)
    yield socket.socket(type=socket.SOCK_DGRAM)
    yield socket.socket(socket.AF_UNIX)
    try: yield socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP)
    except OSError: pass
for s in kinds():
    seen += [three(s)]
    # Longer than a page: the kernel reads what it needs.
    seen += [ask(s, (1, socket.SO_KEEPALIVE, long)), str(s.getsockopt(1, socket.SO_KEEPALIVE))]
    seen += [ask(s, (6, socket.TCP_NODELAY, 1)), ask(s, (6, socket.TCP_CONGESTION, b'no such thing'))]
    seen += [ask(s, (6, 31, b'')), ask(s, (1, 9999, 1)), ask(s, (0, socket.IP_TOS, b'')), ask(s, (77, 1, 1))]
    s.close()
print(' '.join(seen))
"
    );
    let untouched = scene.client.python(&script);
    let _agent = scene.both("ebpf", "acceleration: always").start();
    assert_eq!(scene.client.python(&script), untouched);
    assert!(untouched.contains("taken"), "{untouched}");
}
