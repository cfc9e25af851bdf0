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
/// There a SYN whose timestamp looks old is not answered, and the next comes a second later.
fn a_port_in_time_wait_is_no_stall(mode: &str) {
    let scene = Pair::new();
    let to = destinations(&scene, 5, 2);
    let _server = serve(&scene, 2, &[]);
    let range = "net.ipv4.ip_local_port_range=40000 40399";
    scene.client.says("sysctl", &["-qw", range]);
    let (agent, before) = agent(&scene, mode);
    let report = load(&scene, &to, 4000, &["--rate", "800"]);
    assert_all_arrived(&report, 4000);
    assert_captured(&agent, 4000, before);
    let longest = report["connect_max_ms"].as_f64().expect("a number");
    assert!(longest < 900.0, "a connect took {longest} ms: {report:#}");
}

const PAIRS: usize = 400;
/// From each port in turn, to two destinations at the same moment. Prints how often a connect took a second.
const DIAL_PAIRS: &str = "
import json, os, socket, sys, time, mmap
hosts, pairs, line = sys.argv[1:3], int(sys.argv[3]), sys.argv[4]
page = mmap.mmap(-1, 4096)

def dial(me):
    seen = {'dialled': 0, 'slow': 0, 'wrong': [], 'errors': []}
    started = time.monotonic()
    kept = []
    for number in range(1, pairs + 1):
        if time.monotonic() - started > 8:
            break
        seen['dialled'] += 1
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(('', 20000 + number))
        s.settimeout(8)
        page[2 * me:2 * me + 2] = number.to_bytes(2, 'big')
        begun = time.monotonic()
        while int.from_bytes(page[2 - 2 * me:4 - 2 * me], 'big') < number and time.monotonic() - begun < 5:
            pass
        begun = time.monotonic()
        try:
            s.connect((hosts[me], 7000))
            got = s.recv(200).decode()
            seen['slow'] += time.monotonic() - begun > 0.9
            if got != line.format(hosts[me]):
                seen['wrong'].append([hosts[me], got])
        except OSError as error:
            seen['errors'].append(str(error))
        kept.append(s)
    page[2 * me:2 * me + 2] = bytes([255, 255])
    return seen

child = os.fork()
seen = dial(0 if child else 1)
os.write(1, (json.dumps(seen) + '\\n').encode())
if child:
    os.waitpid(child, 0)
";

/// What [`DIAL_PAIRS`] saw on both sides: how many it dialled, how many took a second, and whoever saw worse.
fn pairs(client: &Pod, hosts: [&str; 2], line: &str) -> (u64, u64, Vec<serde_json::Value>) {
    let said = client.says(
        "python3",
        &[
            "-c",
            DIAL_PAIRS,
            hosts[0],
            hosts[1],
            &PAIRS.to_string(),
            line,
        ],
    );
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
    destinations(&scene, 2, 1);
    let hosts = ["10.66.0.100", "10.66.0.101"];
    if mode == "iptables" {
        // As Envoy's users have it: one port of loopback for all.
        let to_itself = "-t nat -A OUTPUT -p tcp --dport 7000 -j REDIRECT --to-ports 15001";
        stranger.says("iptables", &to_itself.split(' ').collect::<Vec<_>>());
        let answer = ["server", "--token", "plain", "--port", "15001", "--hold"];
        let _plain = stranger.spawn(&program(), &answer);
        stranger.wait_for_listener(15001);
        let (_, slow, bad) = pairs(&stranger, hosts, "plain 127.0.0.1:15001\n");
        assert!(bad.is_empty(), "{bad:#?}");
        assert!(slow > 0, "no clash seen: this test could not fail");
    }
    let (agent, before) = agent(&scene, mode);
    let (dialled, slow, bad) = pairs(&scene.client, hosts, &format!("{TOKEN} {{}}:7000\n"));
    assert!(bad.is_empty(), "{bad:#?}");
    assert_captured(&agent, dialled as usize, before);
    // In iptables mode there is the same second now and then; the destination is right all the same.
    let most = if mode == "ebpf" { 0 } else { PAIRS as u64 / 10 };
    assert!(slow <= most, "{slow} connects took a second");
}

/// All captured connections of a pod go to loopback, in eBPF mode as loopback's own tuples: one listener there would
/// have room for one range of ephemeral ports a family, four have four. In small, since each connection takes the agent
/// two descriptors: 4,800 with a range of 1,000. With `SHUNT_AT_ONCE=35000`, as it is on hosts. In iptables mode the
/// tuple is the dialled one; where the one port of loopback makes two the same, netfilter takes another source port.
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
