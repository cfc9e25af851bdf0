//! Every connection reaches the destination that was dialled: at high rates, from one source port, through reused
//! ports, and with more open at once than loopback has ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use shunt_tests::load::{list, program};
use shunt_tests::{Agent, AgentBuilder, Load, Pair, Pod, Running, in_both_modes, number, wait};

in_both_modes!(
    short_connections_reach_what_they_dialled,
    a_port_in_time_wait_is_no_stall,
    envoy_15305_tuple_clash,
    more_at_once_than_loopback_has_ports,
);

/// Nobody else answers this.
const TOKEN: &str = "shunt-destinations";
const PORT: u16 = 7000;
/// An agent that captures, with the number of connections that it took to see that.
fn agent(scene: &Pair, mode: &str) -> (Agent, u64) {
    let agent = AgentBuilder::new(&scene.world, mode)
        .set("limits: {connections: 100000, connections_per_workload: 100000}")
        .enrol("client", &scene.client, "")
        .start();
    let captured = wait::until("captured", Duration::from_secs(5), || {
        scene
            .client
            .run("curl", &["-s", "-m", "1", "http://10.66.0.250/"]);
        agent.workload("client")["connections"]["total"]
            .as_u64()
            .filter(|total| *total > 0)
    });
    (agent, captured)
}

/// `addresses` of each family, `ports` on each.
fn destinations(scene: &Pair, addresses: u8, ports: u16) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for host in 100..100 + addresses {
        let v4 = IpAddr::from(Ipv4Addr::new(10, 66, 0, host));
        let v6 = IpAddr::from(Ipv6Addr::new(0xfd66, 0, 0, 0, 0, 0, 1, u16::from(host)));
        for address in [v4, v6] {
            scene.server.add_address(address);
            all.extend((PORT..PORT + ports).map(|port| SocketAddr::new(address, port)));
        }
    }
    all
}

fn serve(scene: &Pair, ports: u16, more: &[&str]) -> Running {
    let (first, count) = (PORT.to_string(), ports.to_string());
    let args = [
        "server", "--token", TOKEN, "--port", &first, "--ports", &count,
    ];
    let running = scene.server.spawn(&program(), &[&args[..], more].concat());
    scene.server.wait_for_listener(PORT);
    running
}

fn load(scene: &Pair, to: &[SocketAddr], count: usize, more: &[&str]) -> serde_json::Value {
    let (to, count) = (list(to), count.to_string());
    let args = ["client", "--token", TOKEN, "--to", &to, "--count", &count];
    let load = Load::start(&scene.client, &[&args[..], more].concat());
    load.report(Duration::from_secs(170))
}

#[track_caller]
fn assert_all_arrived(report: &serde_json::Value, count: usize) {
    assert_eq!(report["wrong"], serde_json::json!([]), "{report:#}");
    assert_eq!(report["errors"], serde_json::json!({}), "{report:#}");
    assert_eq!(report["answered"], count, "{report:#}");
    assert_eq!(
        report["destinations_answered"], report["destinations"],
        "{report:#}"
    );
}

/// None went past the agent, beside those that [`agent`] made.
#[track_caller]
fn assert_captured(agent: &Agent, count: usize, before: u64) {
    let total = agent.workload("client")["connections"]["total"].as_u64();
    let captured = total.expect("a number") - before;
    assert_eq!(captured, count as u64, "not all went through the agent");
}

/// `SHUNT_CONNECTIONS=200000 SHUNT_RATE=5000` for the whole load.
fn short_connections_reach_what_they_dialled(mode: &str) {
    let scene = Pair::new();
    let to = destinations(&scene, 5, 5);
    let _server = serve(&scene, 5, &[]);
    let (agent, before) = agent(&scene, mode);
    let count = number("SHUNT_CONNECTIONS", 12_000_usize);
    let rate = number("SHUNT_RATE", 1500_u32).to_string();
    // Late is not lost: how late depends on what else this machine does.
    let report = load(
        &scene,
        &to,
        count,
        &["--rate", &rate, "--timeout-ms", "20000"],
    );
    assert_all_arrived(&report, count);
    assert_captured(&agent, count, before);
}

/// Each port is used again, for another destination, while the agent's end of its last connection is in TIME_WAIT.
/// There a SYN whose timestamp looks old is not answered, and when the next is not either, a third comes a second
/// later. In iptables mode netfilter takes the ports at random: so many that it often meets old ones.
fn a_port_in_time_wait_is_no_stall(mode: &str) {
    let scene = Pair::new();
    let to = destinations(&scene, 5, 2);
    let _server = serve(&scene, 2, &[]);
    let range = "net.ipv4.ip_local_port_range=40000 40399";
    scene.client.says("sysctl", &["-qw", range]);
    let (agent, before) = agent(&scene, mode);
    let report = load(&scene, &to, 8000, &["--rate", "800"]);
    assert_all_arrived(&report, 8000);
    assert_captured(&agent, 8000, before);
    let longest = report["connect_max_ms"].as_f64().expect("a number");
    assert!(longest < 900.0, "a connect took {longest} ms: {report:#}");
}

/// How often two processes dial at the same moment from one port; how many destinations each, in iptables mode. In eBPF
/// mode the tuples are loopback's own, from one port there are as many as the agent has listeners.
const ROUNDS: usize = 60;
const AT_ONCE: u8 = 25;
/// Prints what it saw, and how often a connect took a second.
const DIAL_TOGETHER: &str = "
import json, mmap, os, socket, sys, time
hosts, rounds, line = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
family = socket.AF_INET6 if ':' in hosts[0] else socket.AF_INET
page = mmap.mmap(-1, 4096)

def dial(me, hosts):
    seen = {'dialled': 0, 'slow': 0, 'wrong': [], 'errors': []}
    started, kept = time.monotonic(), []
    for number in range(1, rounds + 1):
        if time.monotonic() - started > 8:
            break
        together = []
        for host in hosts:
            s = socket.socket(family)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(('', 20000 + number))
            s.setblocking(False)
            together.append((s, host))
        kept += together
        page[2 * me:2 * me + 2] = number.to_bytes(2, 'big')
        begun = time.monotonic()
        while int.from_bytes(page[2 - 2 * me:4 - 2 * me], 'big') < number and time.monotonic() - begun < 5:
            pass
        begun = time.monotonic()
        for s, host in together:
            s.connect_ex((host, 7000))
        for s, host in together:
            s.settimeout(8)
            seen['dialled'] += 1
            try:
                got = s.recv(200).decode()
                if got != line.format('[' + host + ']' if ':' in host else host):
                    seen['wrong'].append([host, got])
            except OSError as error:
                seen['errors'].append(str(error))
            seen['slow'] += time.monotonic() - begun > 0.9
    page[2 * me:2 * me + 2] = bytes([255, 255])
    return seen

child = os.fork()
seen = dial(0 if child else 1, hosts[::2] if child else hosts[1::2])
os.write(1, (json.dumps(seen) + '\\n').encode())
if child:
    os.waitpid(child, 0)
";

/// What [`DIAL_TOGETHER`] saw in both processes: how many it dialled, how many took a second, and whoever saw worse.
fn together(client: &Pod, hosts: &[IpAddr], line: &str) -> (u64, u64, Vec<serde_json::Value>) {
    let (hosts, rounds) = (serde_json::json!(hosts).to_string(), ROUNDS.to_string());
    let said = client.says("python3", &["-c", DIAL_TOGETHER, &hosts, &rounds, line]);
    let both: Vec<serde_json::Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(both.len(), 2, "{said}");
    let sum = |name| both.iter().filter_map(|side| side[name].as_u64()).sum();
    let (dialled, slow) = (sum("dialled"), sum("slow"));
    let bad = both.into_iter().filter(|side| {
        side["wrong"] != serde_json::json!([]) || side["errors"] != serde_json::json!([])
    });
    (dialled, slow, bad.collect())
}

/// Two connections from one port become one tuple where only the destination's port is left of it. Netfilter drops
/// one of two SYNs that come at the same moment, and it takes a second until the next.
fn envoy_15305_tuple_clash(mode: &str) {
    let scene = Pair::new();
    let _server = serve(&scene, 1, &["--hold"]);
    let stranger = scene.world.pod();
    let both = if mode == "ebpf" { 2 } else { 2 * AT_ONCE };
    let all = destinations(&scene, both, 1);
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) =
        all.iter().map(SocketAddr::ip).partition(IpAddr::is_ipv4);
    if mode == "iptables" {
        // As Envoy's users have it: one port of loopback for all.
        let to_itself = "-t nat -A OUTPUT -p tcp --dport 7000 -j REDIRECT --to-ports 15001";
        stranger.says("iptables", &to_itself.split(' ').collect::<Vec<_>>());
        let answer = ["server", "--token", "plain", "--port", "15001", "--hold"];
        let _plain = stranger.spawn(&program(), &answer);
        stranger.wait_for_listener(15001);
        let clashed = (0..10).any(|_| {
            let (_, slow, bad) = together(&stranger, &v4, "plain 127.0.0.1:15001\n");
            assert!(bad.is_empty(), "{bad:#?}");
            slow > 0
        });
        assert!(clashed, "no clash seen: this test could not fail");
    }
    let (agent, before) = agent(&scene, mode);
    let mut all = 0;
    for hosts in [v4, v6] {
        let (dialled, slow, bad) = together(&scene.client, &hosts, &format!("{TOKEN} {{}}:7000\n"));
        assert!(bad.is_empty(), "{bad:#?}");
        assert_eq!(slow, 0, "of {dialled} connects to {hosts:?} took a second");
        all += dialled;
    }
    assert_captured(&agent, all as usize, before);
}

/// All captured connections of a pod go to loopback, in eBPF mode as loopback's own tuples: one listener there would
/// have room for one range of ephemeral ports a family, four have four. In small, since each connection takes the agent
/// two descriptors: 4,800 with a range of 1,000. With `SHUNT_AT_ONCE=35000`, as it is on hosts. In iptables mode the
/// one port of loopback has room for 64,512 of each family: netfilter draws the source port.
fn more_at_once_than_loopback_has_ports(mode: &str) {
    let scene = Pair::new();
    let to = destinations(&scene, 5, 5);
    let _server = serve(&scene, 5, &["--hold"]);
    let count = number("SHUNT_AT_ONCE", 4800_usize);
    if count < 28_000 {
        let range = "net.ipv4.ip_local_port_range=40000 40999";
        scene.client.says("sysctl", &["-qw", range]);
    }
    let (agent, before) = agent(&scene, mode);
    let more = ["--hold", "--rate", "2000", "--timeout-ms", "30000"];
    let report = load(&scene, &to, count, &more);
    assert_eq!(report["held"], count, "{report:#}");
    // Each answered when it was made, and again when all were open.
    assert_all_arrived(&report, 2 * count);
    assert_captured(&agent, count, before);
}
