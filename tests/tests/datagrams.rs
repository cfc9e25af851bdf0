//! What is not TCP is not touched: DNS, bulk UDP, multicast, ping. DNS over TCP is TCP like any other.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use shunt_tests::{Pair, Running, in_both_modes, wait};

in_both_modes!(
    dns_over_udp_goes_directly_and_over_tcp_through_us,
    udp_sockets_are_as_without_us,
    multicast_broadcast_and_ping_work,
);

/// A datagram server that answers each datagram with its sender's address and the datagram.
const ECHO: &str = "
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', 443))
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
while True:
    data, who = s.recvfrom(65536)
    s.sendto(who[0].encode() + b' ' + data, who)
";

/// As QUIC: one connected socket, 4 MB in datagrams that fit a packet, a window of 16, each answer compared.
const BULK: &str = "
import socket, sys
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(5); s.connect((sys.argv[1], 443))
print(s.getsockname()[0], *s.getpeername()[:2])
head = None
for first in range(0, 3200, 16):
    sent = {number: b'%06d' % number + bytes((number + at) % 251 for at in range(1200)) for number in range(first, first + 16)}
    for data in sent.values(): s.send(data)
    for _ in range(16):
        who, data = s.recv(65536).split(b' ', 1)
        assert data == sent.pop(int(data[:6])), 'another datagram'
        head = who
print(head.decode())
";

/// A resolver with one name; its long text does not fit a small datagram.
fn dnsmasq(scene: &Pair) -> Running {
    let mut args: Vec<String> = ["-k", "-h", "-R", "--conf-file=/dev/null", "--pid-file"]
        .map(str::to_owned)
        .into();
    args.push("--user=root".into());
    args.push("--host-record=web.test,192.0.2.7,2001:db8::7".into());
    args.push(format!(
        "--txt-record=long.test{}",
        ",0123456789012345678901234567890123456789".repeat(40)
    ));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let running = scene.server.spawn("dnsmasq", &args);
    scene.server.wait_for_listener(53);
    running
}

fn dns_over_udp_goes_directly_and_over_tcp_through_us(mode: &str) {
    let scene = Pair::new();
    let _dns = dnsmasq(&scene);
    let agent = scene.both(mode, "").start();
    let mut over_tcp = 0;
    for server in [&scene.server.v4, &scene.server.v6] {
        let at = format!("@{server}");
        let dig = |more: &[&str]| {
            let args = [&[at.as_str(), "+tries=1", "+time=5"], more].concat();
            scene.client.says("dig", &args)
        };
        assert_eq!(dig(&["+short", "web.test", "A"]), "192.0.2.7");
        assert_eq!(dig(&["+short", "web.test", "AAAA"]), "2001:db8::7");
        assert_eq!(agent.access_log().len(), over_tcp, "UDP was logged");
        assert_eq!(dig(&["+tcp", "+short", "web.test", "A"]), "192.0.2.7");
        // The answer to 512 bytes is cut off: dig asks again over TCP by itself.
        let long = dig(&["+noedns", "long.test", "TXT"]);
        assert!(
            long.contains("Truncated, retrying in TCP mode") && long.contains("(TCP)"),
            "{long}"
        );
        assert_eq!(
            long.matches("0123456789012345678901234567890123456789")
                .count(),
            40
        );
        over_tcp += 2;
        let lines = agent.lines(over_tcp);
        let want = SocketAddr::new(server.parse().expect("an address"), 53).to_string();
        for line in &lines[over_tcp - 2..] {
            assert_eq!(line["original_dst"], want, "{line:#}");
            assert_eq!(line["close_reason"], "finished", "{line:#}");
        }
    }
}

fn udp_sockets_are_as_without_us(mode: &str) {
    let scene = Pair::new();
    let _echo = scene.server.spawn("python3", &["-c", ECHO]);
    wait::until("the echo", Duration::from_secs(5), || {
        let sockets = scene.server.says("ss", &["-Hlun"]);
        sockets.contains(":443").then_some(())
    });
    let bulk = || {
        [&scene.server.v4, &scene.server.v6]
            .map(|to| scene.client.says("python3", &["-c", BULK, to]))
    };
    let direct = bulk();
    assert!(direct[0].ends_with(&scene.client.v4), "{direct:?}");
    let agent = scene.both(mode, "").start();
    assert_eq!(bulk(), direct);
    assert_eq!(agent.access_log().len(), 0);
    for pod in [&scene.client, &scene.server] {
        for save in ["iptables-save", "ip6tables-save"] {
            let rules = pod.says(save, &["-t", "nat"]);
            let ours = rules
                .lines()
                .filter(|line| line.contains("SHUNT") && line.starts_with("-A"));
            let ours: Vec<&str> = ours.collect();
            // Only TCP comes as far as our chains.
            let hooked = ours
                .iter()
                .filter(|line| line.starts_with("-A OUTPUT") || line.starts_with("-A PREROUTING"));
            let hooked: Vec<_> = hooked.collect();
            assert_eq!(hooked.is_empty(), mode == "ebpf", "{rules}");
            assert!(hooked.iter().all(|line| line.contains("-p tcp")), "{rules}");
        }
    }
}

fn multicast_broadcast_and_ping_work(mode: &str) {
    let scene = Pair::new();
    let listen = "
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 5353))
group = socket.inet_aton('239.1.2.3') + socket.inet_aton('OWN')
s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
t = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); t.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
t.bind(('::', 5353))
group = socket.inet_pton(socket.AF_INET6, 'ff15::7') + struct.pack('I', socket.if_nametoindex('eth0'))
t.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
import select
while True:
    for ready in select.select([s, t], [], [])[0]:
        data, who = ready.recvfrom(2048); ready.sendto(data.upper(), who)
";
    let ask = "
import socket
def ask(family, to, *options):
    s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(5)
    for option in options: s.setsockopt(*option)
    s.sendto(b'hello', to); data, who = s.recvfrom(2048); print(data.decode(), who[0])
device = (socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex('eth0'))
here = socket.inet_aton('OWN')
ask(socket.AF_INET, ('239.1.2.3', 5353), (socket.IPPROTO_IP, socket.IP_MULTICAST_IF, here))
ask(socket.AF_INET, ('10.66.0.255', 5353), (socket.SOL_SOCKET, socket.SO_BROADCAST, 1))
ask(socket.AF_INET6, ('ff15::7', 5353), device)
";
    let listen = listen.replace("OWN", &scene.server.v4);
    let _listener = scene.server.spawn("python3", &["-c", &listen]);
    wait::until("the listener", Duration::from_secs(5), || {
        let groups = scene.server.says("ip", &["maddr"]);
        (groups.contains("239.1.2.3") && groups.contains("ff15::7")).then_some(())
    });
    let ask = ask.replace("OWN", &scene.client.v4);
    let ping = |to: &str| {
        let ping = scene.client.says(
            "ping",
            &["-c", "3", "-i", "0.2", "-W", "5", "-s", "1400", to],
        );
        assert!(ping.contains(" 0% packet loss"), "{ping}");
    };
    let direct = scene.client.python(&ask);
    let agent = scene.both(mode, "").start();
    assert_eq!(scene.client.python(&ask), direct);
    ping(&scene.server.v4);
    ping(&scene.server.v6);
    assert_eq!(agent.access_log().len(), 0);
    // The agent stops, nothing changes.
    drop(agent);
    let gone = Command::new("ip")
        .args([
            "netns",
            "exec",
            &scene.client.netns,
            "iptables-save",
            "-t",
            "nat",
        ])
        .output();
    assert!(!String::from_utf8_lossy(&gone.expect("runs").stdout).contains("SHUNT"));
    assert_eq!(scene.client.python(&ask), direct);
}
