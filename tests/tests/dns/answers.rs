//! What is asked, and what comes back.

use serde_json::Value;
use shunt_tests::in_both_modes;

use crate::scene::*;

in_both_modes!(
    programs_get_the_answers_that_they_get_without_us,
    any_bytes_come_and_go_as_they_are,
    one_socket_may_ask_several_resolvers,
    only_the_resolvers_answer_to_the_question_is_delivered,
);

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
import ctypes, errno, socket, struct
libc = ctypes.CDLL(None); reached = []
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
    try: s.connect((a, 9)); reached.append('elsewhere')
    except OSError as error: reached.append(errno.errorcode[error.errno])
    # Once it has let go, it goes where it wants.
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
print(*reached)
";
    let script = script
        .replace("A4", &scene.resolver.v4)
        .replace("A6", &scene.resolver.v6)
        .replace("B4", &scene.other.v4)
        .replace("B6", &scene.other.v6)
        .replace("OWN4", &scene.client.v4)
        .replace("OWN6", &scene.client.v6);
    let free = "elsewhere elsewhere elsewhere";
    assert_eq!(scene.client.python(&script), free);
    let agent = scene.agent(mode, "");
    let captured = match mode {
        "ebpf" => "EINVAL elsewhere EINVAL",
        _ => free,
    };
    assert_eq!(scene.client.python(&script), captured);
    // Not all of them: on a busy machine the gate may open for a moment.
    let lines = queries(&agent, 3 * (6 + 6));
    for resolver in [&scene.resolver, &scene.other] {
        let at = format!("{}:53", resolver.v4);
        assert!(lines.iter().any(|line| line["resolver"] == at));
    }
    assert!(
        lines.iter().all(|line| line["outcome"] == "answered"),
        "{lines:#?}"
    );
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
