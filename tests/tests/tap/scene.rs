//! The pods, a server that answers what it is sent the other way round, and the agent.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shunt_tests::tap::{packets, stream};
use shunt_tests::{Agent, EVENTS, Pair, Running, Tap, wait};

pub const SECONDS: Duration = Duration::from_secs(10);
pub const ALWAYS: &str = "acceleration: always";
/// Always, but by the agent.
pub const HANDED_OVER: &str = "acceleration: {default: always, direct: false}";

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
pub const MANY_SIZES: &str = "[5, 1, 100, 252, 253, 4096, 300, 10_000, 3, 30_000, 7, 1000, 500]";

pub struct Scene {
    pub pair: Pair,
    pub agent: Agent,
    _server: Running,
}

impl Scene {
    pub fn new(mode: &str, wish: &str) -> Self {
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
    pub fn talk(&self, host: &str, sizes: &str) -> (Vec<u8>, Vec<u8>) {
        let script = format!("{EVENTS}SIZES = {sizes}\n{CLIENT}");
        let dir = self.agent.dir.display().to_string();
        self.pair
            .client
            .says("python3", &["-c", &script, host, &dir]);
        let read = |name| fs::read(self.agent.dir.join(name)).expect("a file");
        (read("sent"), read("heard"))
    }

    pub fn file(&self) -> PathBuf {
        self.agent.dir.join("tap.pcapng")
    }

    /// A tap that writes [`Scene::file`].
    pub fn copying(&self, args: &[&str]) -> Tap {
        let file = self.file().display().to_string();
        let tap = Tap::start(&self.agent, &[&["-w", &file], args].concat());
        assert!(tap.says().contains("go to"), "{}", tap.says());
        tap
    }

    pub fn kernel_count(&self, event: &str) -> u64 {
        // Nothing is counted before the programs are loaded.
        self.agent.kernel_count(event).unwrap_or(0)
    }
}

/// Both directions of the one connection in a file.
pub fn streams(file: &Path, host: &str) -> (Vec<u8>, Vec<u8>) {
    let server = SocketAddr::new(host.parse().expect("an address"), 7000);
    let packets = packets(file);
    for packet in &packets {
        let ends = [packet.source, packet.destination];
        // What goes between an application and the agent is not in it a second time.
        assert!(ends.iter().any(|end| end.port() == 7000), "{packet:?}");
    }
    let sent = packets.iter().filter(|packet| packet.destination == server);
    let heard = packets.iter().filter(|packet| packet.source == server);
    (stream(sent), stream(heard))
}

/// The same, as soon as there is so much.
pub fn copied(file: &Path, host: &str, length: (usize, usize)) -> (Vec<u8>, Vec<u8>) {
    wait::until("the copies", SECONDS, || {
        let (sent, heard) = streams(file, host);
        (sent.len() >= length.0 && heard.len() >= length.1).then_some((sent, heard))
    })
}
