//! A workload whose DNS is captured, and those whom it asks.

use std::time::Duration;

use serde_json::Value;
use shunt_tests::{Agent, AgentBuilder, Bpffs, Pod, Running, World, require, wait};

/// A client whose DNS is captured, a resolver and another one, which are nobody's workloads.
pub struct Scene {
    /// First: unmounted before the world's directory goes.
    pub bpffs: Bpffs,
    pub world: World,
    pub client: Pod,
    pub resolver: Pod,
    pub other: Pod,
}

impl Scene {
    pub fn new() -> Self {
        require::everything();
        let world = World::new();
        let (client, resolver, other) = (world.pod(), world.pod(), world.pod());
        Self {
            bpffs: Bpffs::mount(world.dir.path()),
            world,
            client,
            resolver,
            other,
        }
    }

    pub fn agent(&self, mode: &str, more: &str) -> Agent {
        AgentBuilder::new(&self.world, mode)
            .set(&format!("bpffs: {}/shunt", self.bpffs.0))
            .enrol(
                "client",
                &self.client,
                &format!("dns: {{capture: true}}{more}"),
            )
            .start()
    }
}

/// Knows one name, and one whose text fits no small datagram.
pub fn dnsmasq(pod: &Pod, address: &str) -> Running {
    let record = format!("--host-record=web.test,{address},2001:db8::7");
    let text = ",0123456789012345678901234567890123456789".repeat(40);
    let text = format!("--txt-record=long.test{text}");
    let args = [
        "-k",
        "-h",
        "-R",
        "--conf-file=/dev/null",
        "--pid-file",
        "--user=root",
        "--local=/test/",
        "--edns-packet-max=4096",
        &record,
        &text,
    ];
    let running = pod.spawn("dnsmasq", &args);
    pod.wait_for_listener(53);
    running
}

/// Answers on ports 53 and 5353 of both families with the sender's port, and the datagram.
pub const ECHO: &str = "
import select, socket
def bound(port):
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', port)); return s
all = [bound(53), bound(5353)]
while True:
    for ready in select.select(all, [], [])[0]:
        data, who = ready.recvfrom(65536)
        ready.sendto(data[:2] + b' %d ' % who[1] + data, who)
";

/// The same by IPv4, from the address that was asked: on a host with many, another would be chosen.
pub const ECHO_FROM: &str = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 53))
s.setsockopt(socket.IPPROTO_IP, 8, 1)
while True:
    data, told, _, who = s.recvmsg(65536, 64)
    s.sendmsg([data[:2] + b' %d ' % who[1] + data], [(socket.IPPROTO_IP, 8, told[0][2])], 0, who)
";

pub fn python_server(pod: &Pod, script: &str) -> Running {
    let running = pod.spawn("python3", &["-c", script]);
    wait::until("the server", Duration::from_secs(10), || {
        pod.says("ss", &["-Hlun"]).contains(":53 ").then_some(())
    });
    running
}

/// Lines about queries, once there are so many.
pub fn queries(agent: &Agent, count: usize) -> Vec<Value> {
    wait::until("lines about queries", Duration::from_secs(8), || {
        let lines = agent.access_log().into_iter();
        let lines: Vec<Value> = lines.filter(|line| line["kind"] == "dns").collect();
        (lines.len() >= count).then_some(lines)
    })
}

pub fn metric(agent: &Agent, start: &str) -> u64 {
    let (_, page) = agent.admin("GET", "/stats/prometheus", "");
    let found = page.lines().find_map(|line| line.strip_prefix(start));
    found.map_or(0, |rest| {
        let (_, number) = rest.rsplit_once(' ').expect("a number");
        number.parse().expect("a number")
    })
}

#[derive(Debug, PartialEq, Eq)]
pub enum Way {
    Directly,
    ByTheAgent,
    /// No answer within a second.
    Nowhere,
}

/// What [`ECHO`] says of the sender's port shows who sent: the agent has a socket of its own for each query.
pub fn way(client: &Pod, to: &str, port: u16) -> Way {
    let script = format!(
        "
import socket
s = socket.socket(socket.AF_INET6 if ':' in '{to}' else socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1)
try:
    s.connect(('{to}', {port})); s.send(b'xyhello')
    print(s.recv(2048).split(b' ')[1] == b'%d' % s.getsockname()[1])
except OSError as error: print(error)
"
    );
    match client.python(&script).as_str() {
        "True" => Way::Directly,
        "False" => Way::ByTheAgent,
        _ => Way::Nowhere,
    }
}
