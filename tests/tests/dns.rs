//! DNS capture: queries of workloads that want it go through the agent and come back as they are. Nothing else does.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use shunt_tests::{Agent, AgentBuilder, Pod, Running, World, in_both_modes, kernel, require, wait};

in_both_modes!(
    programs_get_the_answers_that_they_get_without_us,
    any_bytes_come_and_go_as_they_are,
    one_socket_may_ask_several_resolvers,
    other_datagrams_are_as_without_us,
    only_the_resolvers_answer_to_the_question_is_delivered,
    silent_resolvers_cost_little_and_hold_up_nobody,
    a_closed_port_is_told_at_once,
    queries_go_directly_without_an_agent,
    closed_workloads_ask_nobody_without_an_agent,
    the_option_is_changed_live,
);

/// A client whose DNS is captured, a resolver and another one, which are nobody's workloads.
struct Scene {
    /// First: unmounted before the world's directory goes.
    bpffs: Bpffs,
    world: World,
    client: Pod,
    resolver: Pod,
    other: Pod,
}

/// A bpffs of the test's own, unmounted when dropped.
struct Bpffs(String);

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

impl Scene {
    fn new() -> Self {
        require::everything();
        let world = World::new();
        let (client, resolver, other) = (world.pod(), world.pod(), world.pod());
        let bpffs = world.dir.path().join("bpf");
        std::fs::create_dir(&bpffs).expect("a directory");
        let mounted = Command::new("mount")
            .args(["-t", "bpf", "bpf"])
            .arg(&bpffs)
            .status();
        assert!(mounted.expect("runs").success(), "no bpffs");
        Self {
            bpffs: Bpffs(bpffs.display().to_string()),
            world,
            client,
            resolver,
            other,
        }
    }

    fn agent(&self, mode: &str, more: &str) -> Agent {
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
fn dnsmasq(pod: &Pod, address: &str) -> Running {
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
const ECHO: &str = "
import select, socket
def bound(port):
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', port)); return s
all = [bound(53), bound(5353)]
while True:
    for ready in select.select(all, [], [])[0]:
        data, who = ready.recvfrom(65536)
        ready.sendto(data[:2] + b' %d ' % who[1] + data, who)
";

fn python_server(pod: &Pod, script: &str) -> Running {
    let running = pod.spawn("python3", &["-c", script]);
    wait::until("the server", Duration::from_secs(10), || {
        pod.says("ss", &["-Hlun"]).contains(":53 ").then_some(())
    });
    running
}

/// Lines about queries, once there are so many.
fn queries(agent: &Agent, count: usize) -> Vec<Value> {
    wait::until("lines about queries", Duration::from_secs(8), || {
        let lines = agent.access_log().into_iter();
        let lines: Vec<Value> = lines.filter(|line| line["kind"] == "dns").collect();
        (lines.len() >= count).then_some(lines)
    })
}

fn metric(agent: &Agent, start: &str) -> u64 {
    let (_, page) = agent.admin("GET", "/stats/prometheus", "");
    let found = page.lines().find_map(|line| line.strip_prefix(start));
    found.map_or(0, |rest| {
        let (_, number) = rest.rsplit_once(' ').expect("a number");
        number.parse().expect("a number")
    })
}

fn programs_get_the_answers_that_they_get_without_us(mode: &str) {
    let scene = Scene::new();
    let _dns = dnsmasq(&scene.resolver, "192.0.2.7");
    let ask = || {
        let mut said = Vec::new();
        for server in [&scene.resolver.v4, &scene.resolver.v6] {
            let at = format!("@{server}");
            for words in [
                "web.test A",
                "web.test AAAA",
                "none.test A",
                "web.test MX",
                "+bufsize=4096 long.test TXT",
                "+noedns long.test TXT",
                "+tcp web.test A",
                "+dnssec web.test A",
            ] {
                let all = ["+tries=1", "+time=5", "+nostats", "+nocookie", &at];
                let all: Vec<&str> = all.into_iter().chain(words.split(' ')).collect();
                let answer = scene.client.says("dig", &all);
                let kept = answer.lines().filter(|line| !line.starts_with("; <<>>"));
                let kept = kept.map(|line| line.split(", id: ").next().unwrap_or_default());
                said.push(kept.collect::<Vec<_>>().join("\n"));
            }
            let getent = format!(
                "echo nameserver {server} > $0/resolv && mount --bind $0/resolv /etc/resolv.conf && \
                 getent -s dns ahosts web.test && ! getent -s dns ahosts none.test"
            );
            let dir = scene.world.dir.path().display().to_string();
            said.push(
                scene
                    .client
                    .says("unshare", &["-m", "sh", "-c", &getent, &dir]),
            );
            said.push(
                scene
                    .client
                    .says("busybox", &["nslookup", "web.test", server]),
            );
        }
        said
    };
    let direct = ask();
    assert!(
        direct[0].contains("192.0.2.7") && direct[2].contains("NXDOMAIN"),
        "{direct:#?}"
    );
    let long = &direct[4];
    assert!(
        long.contains("0123456789") && !long.contains("Truncated"),
        "{long}"
    );
    let cut = &direct[5];
    assert!(cut.contains("Truncated, retrying in TCP mode"), "{cut}");
    let agent = scene.agent(mode, "");
    let captured = ask();
    for (direct, captured) in direct.iter().zip(&captured) {
        assert_eq!(direct, captured);
    }
    let lines = queries(&agent, 22);
    let first = &lines[0];
    assert_eq!(first["workload"], "default/client", "{first:#}");
    assert_eq!(
        first["resolver"],
        format!("{}:53", scene.resolver.v4),
        "{first:#}"
    );
    assert_eq!(first["name"], "web.test.", "{first:#}");
    assert_eq!(first["type"], "A", "{first:#}");
    assert_eq!(first["rcode"], "NOERROR", "{first:#}");
    let v6 = format!("[{}]:53", scene.resolver.v6);
    assert!(
        lines
            .iter()
            .any(|line| line["resolver"] == v6 && line["rcode"] == "NXDOMAIN")
    );
    assert!(lines.iter().any(|line| line["truncated"] == true));
    assert!(
        lines.iter().all(|line| line["outcome"] == "answered"),
        "{lines:#?}"
    );
    // By TCP as any connection: those that were cut off, and those who wanted it.
    let tcp = agent.access_log().into_iter();
    let tcp: Vec<Value> = tcp.filter(|line| line["kind"].is_null()).collect();
    assert_eq!(tcp.len(), 4, "{tcp:#?}");
    let labels = "{workload=\"client\",namespace=\"default\",rcode=\"NXDOMAIN\"";
    assert!(metric(&agent, &format!("shunt_dns_answers_total{labels}")) >= 4);
}

/// Sizes from nothing at all to the longest, of which only some are DNS.
fn any_bytes_come_and_go_as_they_are(mode: &str) {
    let scene = Scene::new();
    let _echo = python_server(&scene.resolver, ECHO);
    let script = "
import os, socket
for family, to in ((socket.AF_INET, 'V4'), (socket.AF_INET6, 'V6')):
    s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(5)
    for size in (2, 3, 11, 12, 40, 512, 513, 1400, 4000, 20000):
        sent = os.urandom(size)
        s.sendto(sent, (to, 53))
        data, who = s.recvfrom(65536)
        head, port, rest = data.split(b' ', 2) if size > 2 and b' ' not in sent[:2] else (None, None, data[-size:])
        assert data.endswith(sent), (size, sent, data)
        assert who[:2] == (to, 53), who
    s.sendto(b'', (to, 53))
    data, who = s.recvfrom(65536)
    assert who[:2] == (to, 53) and data.startswith(b' '), (data, who)
print('done')
";
    let script = script
        .replace("V4", &scene.resolver.v4)
        .replace("V6", &scene.resolver.v6);
    assert_eq!(scene.client.python(&script), "done");
    let agent = scene.agent(mode, "");
    assert_eq!(scene.client.python(&script), "done");
    let lines = queries(&agent, 22);
    assert!(
        lines.iter().all(|line| line["outcome"] == "answered"),
        "{lines:#?}"
    );
    let odd =
        "shunt_dns_odd_total{workload=\"client\",namespace=\"default\",what=\"malformed_query\"";
    assert!(metric(&agent, odd) >= 16);
}

fn one_socket_may_ask_several_resolvers(mode: &str) {
    let scene = Scene::new();
    let _dns = [
        dnsmasq(&scene.resolver, "192.0.2.7"),
        dnsmasq(&scene.other, "192.0.2.8"),
    ];
    // As musl does: the same question to all of them at once, from one socket that is not connected.
    let script = "
import ctypes, socket, struct
libc = ctypes.CDLL(None)
def query(id): return struct.pack('>6H', id, 0x100, 1, 0, 0, 0) + b'\\3web\\4test\\0\\0\\1\\0\\1'
def both(s, to):
    for at in to: s.sendto(query(7), at)
    return sorted((who[:2], data[-4:]) for data, who in (s.recvfrom(2048) for _ in to))
def said(who, last): return ((who, 53), bytes([192, 0, 2, last]))
for kind, a, b in ((socket.AF_INET, 'A4', 'B4'), (socket.AF_INET6, 'A6', 'B6'), (socket.AF_INET6, '::ffff:A4', '::ffff:B4')):
    s = socket.socket(kind, socket.SOCK_DGRAM); s.settimeout(5)
    want = sorted([said(a, 7), said(b, 8)])
    for _ in range(3): assert both(s, [(a, 53), (b, 53)]) == want
    # The same one connects, to one and to the other, and asks the first by name all the same.
    for at, last in ((a, 7), (b, 8)):
        s.connect((at, 53))
        assert s.getpeername()[:2] == (at, 53), s.getpeername()
        s.send(query(9)); data, who = s.recvfrom(2048)
        assert (who[:2], data[-4:]) == said(at, last), (who, data)
        s.send(query(9)); assert s.recv(2048)[-4:] == bytes([192, 0, 2, last])
        s.sendto(query(9), (at, 53)); assert s.recv(2048)[-4:] == bytes([192, 0, 2, last])
    # Elsewhere it goes where it wants, once it has let go.
    assert libc.connect(s.fileno(), bytes(16), 16) == 0
    s.connect((a, 9))
    assert s.getpeername()[:2] == (a, 9), s.getpeername()
    # From an address and a port of its own.
    t = socket.socket(kind, socket.SOCK_DGRAM); t.settimeout(5)
    t.bind((('::ffff:' if a.startswith('::f') else '') + ('OWN4' if '.' in a else 'OWN6'), 5300))
    assert both(t, [(a, 53), (b, 53)]) == want
    # Many sockets at once.
    many = [socket.socket(kind, socket.SOCK_DGRAM) for _ in range(40)]
    for n, m in enumerate(many): m.settimeout(5); m.sendto(query(n), (a, 53))
    for n, m in enumerate(many): assert m.recv(2048)[:2] == struct.pack('>H', n)
print('done')
";
    let script = script
        .replace("A4", &scene.resolver.v4)
        .replace("A6", &scene.resolver.v6)
        .replace("B4", &scene.other.v4)
        .replace("B6", &scene.other.v6)
        .replace("OWN4", &scene.client.v4)
        .replace("OWN6", &scene.client.v6);
    assert_eq!(scene.client.python(&script), "done");
    let agent = scene.agent(mode, "");
    assert_eq!(scene.client.python(&script), "done");
    let lines = queries(&agent, 3 * (6 + 6 + 2 + 40));
    for resolver in [&scene.resolver, &scene.other] {
        let at = format!("{}:53", resolver.v4);
        assert!(lines.iter().any(|line| line["resolver"] == at));
    }
    assert!(
        lines.iter().all(|line| line["outcome"] == "answered"),
        "{lines:#?}"
    );
}

#[derive(Debug, PartialEq, Eq)]
enum Way {
    Directly,
    ByTheAgent,
    /// No answer within a second.
    Nowhere,
}

/// What [`ECHO`] says of the sender's port shows who sent: the agent has a socket of its own for each query.
fn way(client: &Pod, to: &str, port: u16) -> Way {
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

fn other_datagrams_are_as_without_us(mode: &str) {
    let scene = Scene::new();
    let _echo = [
        python_server(&scene.resolver, ECHO),
        python_server(&scene.other, ECHO),
    ];
    let excluded = format!(
        ", outbound: {{exclude_cidrs: [\"{}/32\", \"{}/128\"]}}",
        scene.other.v4, scene.other.v6
    );
    let agent = scene.agent(mode, &excluded);
    for to in [&scene.resolver.v4, &scene.resolver.v6] {
        assert_eq!(way(&scene.client, to, 53), Way::ByTheAgent, "{to}");
        assert_eq!(way(&scene.client, to, 5353), Way::Directly);
    }
    for to in [&scene.other.v4, &scene.other.v6] {
        assert_eq!(way(&scene.client, to, 53), Way::Directly, "{to}");
        assert_eq!(way(&scene.client, to, 5353), Way::Directly);
    }
    // A resolver on loopback, as systemd-resolved is, is nobody's affair but its own.
    let _own = python_server(&scene.client, ECHO);
    for to in ["127.0.0.1", "::1"] {
        assert_eq!(way(&scene.client, to, 53), Way::Directly, "{to}");
    }
    let bulk = "
import socket
s = socket.socket(); s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); s.connect(('TO', 53))
for first in range(0, 2000, 20):
    sent = {b'%06d' % n + bytes(1200) for n in range(first, first + 20)}
    for data in sent: s.send(data)
    for _ in range(20): sent.remove(s.recv(65536).split(b' ', 2)[2])
print('done')
";
    assert_eq!(
        scene.client.python(&bulk.replace("TO", &scene.other.v4)),
        "done"
    );
    assert_eq!(queries(&agent, 2).len(), 2);
}

fn only_the_resolvers_answer_to_the_question_is_delivered(mode: &str) {
    let scene = Scene::new();
    // From another port, from another address, with another id, to another question; then the true one.
    let server = "
import socket, time
def bound(*at):
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(at); return s
s = bound('::', 53); other = bound('::', 5353)
while True:
    data, who = s.recvfrom(2048)
    def answer(query, last): return query[:2] + b'\\x81\\x80\\0\\1\\0\\1\\0\\0\\0\\0' + query[12:] + b'\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\1\\0\\4\\1\\2\\3' + last
    other.sendto(answer(data, b'\\1'), who)
    s.sendto(bytes([data[0] ^ 1]) + answer(data, b'\\2')[1:], who)
    s.sendto(answer(data.replace(b'web', b'wab'), b'\\3'), who)
    s.sendto(data, who)
    s.sendto(answer(data, b'\\4'), who)
    s.sendto(answer(data, b'\\5'), who)
";
    let _server = python_server(&scene.resolver, server);
    let agent = scene.agent(mode, "");
    for (nth, to) in [&scene.resolver.v4, &scene.resolver.v6]
        .into_iter()
        .enumerate()
    {
        let script = format!(
            "
import socket, struct
s = socket.socket(socket.AF_INET6 if ':' in '{to}' else socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
s.sendto(struct.pack('>6H', 7, 0x100, 1, 0, 0, 0) + b'\\3web\\4test\\0\\0\\1\\0\\1', ('{to}', 53))
data, who = s.recvfrom(2048); s.settimeout(0.3)
try: print('another', s.recv(2048))
except TimeoutError: print(data[-1], who[:2] == ('{to}', 53))
"
        );
        assert_eq!(scene.client.python(&script), "4 True");
        queries(&agent, nth + 1);
        let odd = "shunt_dns_odd_total{workload=\"client\",namespace=\"default\",what=\"mismatched_answer\"";
        assert_eq!(metric(&agent, odd), 3 * (nth as u64 + 1));
    }
}

fn silent_resolvers_cost_little_and_hold_up_nobody(mode: &str) {
    let scene = Scene::new();
    let silent = "
import socket, time
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', 53))
while True: time.sleep(60)
";
    let _silent = python_server(&scene.resolver, silent);
    let _dns = dnsmasq(&scene.other, "192.0.2.8");
    let agent = scene.agent(mode, "");
    let at = format!("@{}", scene.other.v4);
    let dig = || {
        let args = ["+short", "+tries=1", "+time=5", &at, "web.test", "A"];
        scene.client.run("dig", &args)
    };
    assert!(dig().status.success());
    let worker = agent.status()["agent"]["worker_pid"]
        .as_u64()
        .expect("a number");
    let worker = u32::try_from(worker).expect("a process id");
    let (files, memory) = (kernel::descriptors(worker).len(), kernel::resident(worker));
    let flood = "
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(3000): s.sendto(struct.pack('>6H', n, 0x100, 1, 0, 0, 0) + b'\\3web\\4test\\0\\0\\1\\0\\1', ('TO', 53))
";
    scene
        .client
        .python(&flood.replace("TO", &scene.resolver.v4));
    let lost =
        "shunt_dns_queries_total{workload=\"client\",namespace=\"default\",outcome=\"limit\"";
    wait::until("the limit is reached", Duration::from_secs(5), || {
        (metric(&agent, lost) > 0).then_some(())
    });
    let more = kernel::descriptors(worker).len() - files;
    // 256 that wait, and the stock beside them.
    assert!(more < 256 + 400, "{more} more descriptors");
    // None of them is answered, and the client hears nothing.
    let late =
        "shunt_dns_queries_total{workload=\"client\",namespace=\"default\",outcome=\"timed_out\"";
    wait::until("they are given up", Duration::from_secs(12), || {
        (metric(&agent, late) >= 256).then_some(())
    });
    wait::until("others are answered", Duration::from_secs(10), || {
        dig().status.success().then_some(())
    });
    let grown = kernel::resident(worker).saturating_sub(memory);
    assert!(grown < 16 << 20, "{grown} bytes more");
    let active = "shunt_dns_queries_active{workload=\"client\"";
    assert_eq!(metric(&agent, active), 0);
}

fn a_closed_port_is_told_at_once(mode: &str) {
    let scene = Scene::new();
    let agent = scene.agent(mode, "");
    for to in [&scene.resolver.v4, &scene.resolver.v6] {
        let script = format!(
            "
import socket, struct
s = socket.socket(socket.AF_INET6 if ':' in '{to}' else socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(4)
s.connect(('{to}', 53)); s.send(struct.pack('>6H', 7, 0x100, 1, 0, 0, 0) + b'\\3web\\4test\\0\\0\\1\\0\\1')
print(s.recv(2048)[:12].hex())
"
        );
        assert_eq!(scene.client.python(&script), "000781020001000000000000");
    }
    let lines = queries(&agent, 2);
    assert!(
        lines
            .iter()
            .all(|line| line["outcome"] == "unreachable" && line["rcode"] == "SERVFAIL"),
        "{lines:#?}"
    );
}

fn queries_go_directly_without_an_agent(mode: &str) {
    let scene = Scene::new();
    let _echo = python_server(&scene.resolver, ECHO);
    let both = |wanted: Way| {
        let all = [&scene.resolver.v4, &scene.resolver.v6].into_iter();
        all.filter(|to| way(&scene.client, to, 53) == wanted)
            .count()
            == 2
    };
    let mut agent = scene.agent(mode, "");
    assert!(both(Way::ByTheAgent));
    agent.kill();
    wait::until("queries go directly", Duration::from_secs(8), || {
        both(Way::Directly).then_some(())
    });
    agent.restart();
    wait::until("it captures again", Duration::from_secs(8), || {
        both(Way::ByTheAgent).then_some(())
    });
    // In order.
    agent.terminate();
    assert!(both(Way::Directly));
}

fn closed_workloads_ask_nobody_without_an_agent(mode: &str) {
    let scene = Scene::new();
    let _echo = python_server(&scene.resolver, ECHO);
    let to = [&scene.resolver.v4, &scene.resolver.v6];
    let ways = |port| to.map(|to| way(&scene.client, to, port));
    let mut agent = scene.agent(mode, ", on_failure: closed");
    assert_eq!(ways(53), [Way::ByTheAgent, Way::ByTheAgent]);
    agent.kill();
    // The data plane may answer for a moment yet; nothing goes past it.
    wait::until("queries are refused", Duration::from_secs(8), || {
        let now = ways(53);
        assert!(!now.contains(&Way::Directly), "{now:?}");
        (now == [Way::Nowhere, Way::Nowhere]).then_some(())
    });
    for _ in 0..3 {
        assert_eq!(ways(53), [Way::Nowhere, Way::Nowhere]);
        assert_eq!(ways(5353), [Way::Directly, Way::Directly]);
    }
    agent.restart();
    wait::until("it is served again", Duration::from_secs(10), || {
        let now = ways(53);
        assert!(!now.contains(&Way::Directly), "{now:?}");
        (now == [Way::ByTheAgent, Way::ByTheAgent]).then_some(())
    });
}

fn the_option_is_changed_live(mode: &str) {
    let scene = Scene::new();
    let _echo = python_server(&scene.resolver, ECHO);
    let agent = scene.agent(mode, "");
    let way = || way(&scene.client, &scene.resolver.v4, 53);
    assert_eq!(way(), Way::ByTheAgent);
    for (from, to) in [("true", "false"), ("false", "true")] {
        let file = std::fs::read_to_string(agent.dir.join("shunt.yaml")).expect("a file");
        agent.rewrite_text(&file.replace(&format!("capture: {from}"), &format!("capture: {to}")));
        wait::until("the change is in force", Duration::from_secs(10), || {
            let wanted = if to == "true" {
                Way::ByTheAgent
            } else {
                Way::Directly
            };
            (way() == wanted).then_some(())
        });
    }
}
