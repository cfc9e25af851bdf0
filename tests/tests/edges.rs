//! Programs that wait for edges, on flows past the TCP stack whose queues were full once.

use std::time::Duration;

use shunt_tests::{Agent, EVENTS, Pair, Running, Script, wait};

/// A reader as tokio's and nginx's: it takes a short read for "nothing more", and then waits for the next edge. And a
/// writer that waits for the edge of room.
const EDGES: &str = "
import hashlib, random, select, socket, sys
class Edges:
    def __init__(self, s):
        self.s = s; s.setblocking(False); s.setsockopt(6, 1, 1)
        self.epoll = select.epoll(); self.epoll.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        self.readable = self.writable = True
    def edge(self):
        told = self.epoll.poll(10)
        if not told: raise SystemExit(f'no edge; readable {self.readable} writable {self.writable}')
        if told[0][1] & ~select.EPOLLOUT: self.readable = True
        if told[0][1] & ~select.EPOLLIN: self.writable = True
    def recv(self, most):
        while True:
            while not self.readable: self.edge()
            try: some = self.s.recv(most)
            except BlockingIOError: self.readable = False; continue
            if 0 < len(some) < most: self.readable = False
            return some
    def send(self, bytes):
        while bytes:
            while not self.writable: self.edge()
            try: bytes = bytes[self.s.send(bytes):]
            except BlockingIOError: self.writable = False
    def exactly(self, length):
        heard = b''
        while len(heard) < length:
            some = self.recv(length - len(heard)); assert some; heard += some
        return heard
def data(seed, length): return random.Random(seed).randbytes(length)
";

/// Bytes of the burst: some more than the queue takes.
const BURST: usize = 1_130_000;

/// Answers a word, reads nothing for a while, then a burst by edges, and says what it was.
const SERVER: &str = "
l, told = socket.create_server(('', 7000)), socket.create_server(('127.0.0.1', 7001))
while True:
    s = Edges(l.accept()[0])
    for _ in range(3): s.send(s.exactly(5))
    told.accept()
    # All has come, and all edges have been seen.
    s.edge()
    heard, length = hashlib.sha256(), 0
    while length < BURST: some = s.recv(50_000); assert some; heard.update(some); length += len(some)
    s.send(heard.hexdigest().encode()); assert s.recv(1) == b''; s.s.close()
";

fn scene(server: &str) -> (Pair, Agent, Running) {
    let scene = Pair::new();
    let script = format!("{EDGES}BURST = {BURST}\n{server}");
    let running = scene.server.spawn("python3", &["-c", &script]);
    scene.server.wait_for_listener(7000);
    let agent = scene
        .both("ebpf", "acceleration: {default: always, direct: false}")
        .start();
    (scene, agent, running)
}

/// The queue is overfilled while nobody reads; what did not fit comes another way, and nothing after it.
#[test]
fn a_short_read_behind_a_full_queue_is_not_the_last() {
    let (scene, agent, _server) = scene(SERVER);
    let script = format!(
        "{EDGES}
for seed in range({ROUNDS}):
    s = Edges(socket.create_connection(('{}', 7000)))
    for _ in range(3): s.send(b'hello'); assert s.exactly(5) == b'hello'
    sys.stdin.readline()
    burst = data(seed, {BURST}); s.send(burst)
    print('sent', flush=True)
    assert s.exactly(64).decode() == hashlib.sha256(burst).hexdigest()
    s.s.close(); print('right', flush=True)
",
        scene.server.v4,
        ROUNDS = ROUNDS,
    );
    let mut client = Script::start(&scene.client, &script, &[]);
    for round in 0..ROUNDS {
        client.tell("");
        assert_eq!(client.says(), "sent");
        // What did not fit has gone as far as it goes.
        wait::pause(Duration::from_millis(100));
        scene
            .server
            .python("import socket; socket.create_connection(('127.0.0.1', 7001))");
        assert_eq!(client.says(), "right", "round {round}");
    }
    client.succeeds();
    queues_were_full(&agent);
    for line in agent.lines(ROUNDS) {
        assert_eq!(line["path"], "handoff", "{line}");
        assert_eq!(line["bytes_received"], BURST + 15, "{line}");
    }
}

const ROUNDS: usize = 4;

fn queues_were_full(agent: &Agent) {
    wait::until("a full queue is told of", Duration::from_secs(5), || {
        agent.kernel_count("queue_full").filter(|count| *count > 0)
    });
}

/// How long nobody reads, in seconds, and what a writer has room for.
const STALL: u64 = 4;
const FLOWS: usize = 12;

/// A receive buffer of the program's own, which comes late and is smaller than our queues. Nobody reads for a while, then
/// everybody does, and says how long the longest wait for more was.
const SMALL: &str = "
l = socket.create_server(('', 7000), backlog=64)
def read(s):
    s.s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    for _ in range(3): s.send(s.read(5))
    time.sleep(STALL)
    length, longest = 0, 0
    while True:
        begun = time.monotonic(); some = s.recv(65536); longest = max(longest, time.monotonic() - begun)
        if not some: break
        length += len(some)
    sys.stdout.write(f'{length} {longest}\\n'); sys.stdout.flush()
while True: threading.Thread(target=read, args=[Events(l.accept()[0])]).start()
";

/// Sends until nothing is taken any more, then the rest when there is room.
const FILLING: &str = "
def fill():
    s = call(sys.argv[1]); s.s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    for _ in range(3): s.turn(b'hello')
    epoll = select.epoll(); epoll.register(s.s, select.EPOLLOUT | select.EPOLLET)
    sent = 0
    while sent < TOTAL:
        try: sent += s.s.send(bytes(min(65536, TOTAL - sent)))
        except BlockingIOError:
            if not epoll.poll(60): raise SystemExit('no edge')
    s.s.shutdown(socket.SHUT_WR); s.recv(1)
threads = [threading.Thread(target=fill) for _ in range(FLOWS)]
for thread in threads: thread.start()
for thread in threads: thread.join()
";

/// What TCP drops at a buffer that our queue has filled comes again after as long as nobody read: it must not be dropped.
#[test]
fn a_small_buffer_that_stalled_goes_on_at_once() {
    const TOTAL: usize = 2_000_000;
    let scene = Pair::new();
    let reader = format!("STALL = {STALL}\n{EVENTS}{SMALL}");
    let mut server = Script::start(&scene.server, &reader, &[]);
    scene.server.wait_for_listener(7000);
    let agent = scene.both("ebpf", "acceleration: always").start();
    let writer = format!("FLOWS, TOTAL = {FLOWS}, {TOTAL}\n{EVENTS}{FILLING}");
    let mut client = Script::start(&scene.client, &writer, &[&scene.server.v4.to_string()]);
    for _ in 0..FLOWS {
        let said = server.says();
        let (length, longest) = said.split_once(' ').expect("two numbers");
        assert_eq!(length, TOTAL.to_string());
        let longest: f64 = longest.parse().expect("a number");
        assert!(longest < STALL as f64 / 2.0, "waited {longest} s for more");
    }
    client.succeeds();
    queues_were_full(&agent);
}

/// Sends bytes one by one to somebody who does not read yet.
const TINY: &str = "
s = call(sys.argv[1]); s.turn(b'hello')
for at in range(TOTAL): s.send(bytes([at % 251]))
s.s.shutdown(socket.SHUT_WR); print('sent', flush=True); assert s.recv(1) == b''
";

const LATE: &str = "
s = Events(socket.create_server(('', 7000)).accept()[0]); s.send(s.read(5)); sys.stdin.readline()
heard = b''
while some := s.recv(65536): heard += some
assert heard == bytes(at % 251 for at in range(TOTAL)), len(heard)
print('right', flush=True)
";

/// The kernel takes a KiB for each message that waits, and charges nobody.
#[test]
fn tiny_messages_do_not_pile_up() {
    const TOTAL: u64 = 6000;
    let scene = Pair::new();
    let mut server = Script::start(
        &scene.server,
        &format!("TOTAL = {TOTAL}\n{EVENTS}{LATE}"),
        &[],
    );
    scene.server.wait_for_listener(7000);
    let agent = scene.both("ebpf", "acceleration: always").start();
    let script = format!("TOTAL = {TOTAL}\n{EVENTS}{TINY}");
    let mut client = Script::start(&scene.client, &script, &[&scene.server.v4]);
    assert_eq!(client.says(), "sent");
    server.tell("");
    assert_eq!(server.says(), "right");
    client.succeeds();
    let line = agent.lines(1).remove(0);
    assert_eq!(line["bytes_received"], TOTAL + 5, "{line}");
    let queued = line["messages_received"].as_u64().expect("a number");
    // `MOST_MESSAGES` of ebpf/src/sk_msg.rs, and those of the beginning.
    assert!((2000..2200).contains(&queued), "{line}");
}
