//! Floods, stalls, and what runs out: refused where it can be seen, and nobody else suffers.

use std::fs;
use std::process::Command;
use std::time::Duration;

use shunt_tests::{Agent, AgentBuilder, Pod, Running, World, in_both_modes, require, wait};

in_both_modes!(
    over_the_limit_is_refused_and_said_once,
    without_descriptors_clients_are_refused_and_flows_go_on,
    ztunnel_1629_half_close,
    a_syn_flood_stops_nobody,
);

/// Echoes on port 7; on port 9 it accepts and never reads. Both take as many connections as come.
const SERVER: &str = "
import resource, selectors, socket
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
s = selectors.DefaultSelector()
def listen(port):
    l = socket.socket(); l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    l.bind(('', port)); l.listen(4096); l.setblocking(False); s.register(l, selectors.EVENT_READ, port)
held = []
listen(7); listen(9)
while True:
    for key, _ in s.select():
        if key.data:
            try: c = key.fileobj.accept()[0]
            except BlockingIOError: continue
            held.append(c)
            if key.data == 7: s.register(c, selectors.EVENT_READ, 0)
        else:
            try: b = key.fileobj.recv(65536)
            except ConnectionResetError: b = b''
            if b: key.fileobj.sendall(b)
            else: s.unregister(key.fileobj); key.fileobj.close()
";

/// `HOST`, and `ask(s)`: does the connection answer? A reset is False; silence for ten seconds is an error.
const CLIENT: &str = "
import resource, socket, sys, time
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
def ask(s):
    try:
        s.settimeout(10); s.sendall(b'x'); return s.recv(1) == b'x'
    except (ConnectionResetError, BrokenPipeError): return False
def wait_line(): sys.stdin.readline()
";

struct Scene {
    world: World,
    client: Pod,
    server: Pod,
    _running: Running,
}

fn scene() -> Scene {
    require::everything();
    let world = World::new();
    let (client, server) = (world.pod(), world.pod());
    let running = server.spawn("python3", &["-c", SERVER]);
    server.wait_for_listener(9);
    Scene {
        world,
        client,
        server,
        _running: running,
    }
}

impl Scene {
    fn agent(&self, mode: &str, setting: &str) -> Agent {
        AgentBuilder::new(&self.world, mode)
            .set(setting)
            .enrol("client", &self.client, "")
            .start()
    }

    /// What the script prints; it knows `HOST` and what [`CLIENT`] defines.
    fn python(&self, script: &str) -> String {
        let host = &self.server.v4;
        self.client
            .python(&format!("{CLIENT}\nHOST = '{host}'\n{script}"))
    }
}

fn metric(agent: &Agent, name: &str) -> u64 {
    let text = agent.admin("GET", "/stats/prometheus", "").1;
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let value = value.and_then(|rest| rest.trim().parse().ok());
    value.unwrap_or_else(|| panic!("{name} in\n{text}"))
}

/// Resident memory of the data plane that is its own, in KiB.
fn rss_kib(agent: &Agent) -> u64 {
    let pid = agent.worker_pid().expect("a data plane");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let number = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
    number.expect("a number")
}

fn over_the_limit_is_refused_and_said_once(mode: &str) {
    let scene = scene();
    let agent = scene.agent(mode, "limits: {connections_per_workload: 5}");
    let answers = scene.python(
        "all = [socket.create_connection((HOST, 7)) for _ in range(40)]\nprint([ask(s) for s in all].count(True))",
    );
    assert_eq!(answers, "5");
    let lines = agent.lines(40);
    let refused = lines.iter().filter(|line| line["response_flags"] == "UO");
    assert_eq!(refused.count(), 35);
    assert_eq!(metric(&agent, "shunt_connections_refused_total"), 35);
    let closed = "shunt_connections_closed_total{reason=\"limit\"}";
    assert_eq!(metric(&agent, closed), 35);
    let said = agent.log().matches("connections are refused").count();
    assert!(
        (1..=2).contains(&said),
        "{said} warnings, one a worker at most"
    );
}

fn without_descriptors_clients_are_refused_and_flows_go_on(mode: &str) {
    let scene = scene();
    let agent = scene.agent(mode, "");
    let pid = agent.worker_pid().expect("a data plane");
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("a process")
        .count();
    let limit = format!("--nofile={0}:{0}", descriptors + 60);
    // The limit comes down once the first connection stands.
    let go = scene.world.dir.path().join("go");
    let script = format!(
        "{CLIENT}\nimport os\nfirst = socket.create_connection(('{host}', 7)); assert ask(first)\n\
         open('{go}.first', 'w')\n\
         while not os.path.exists('{go}'): time.sleep(0.01)\n\
         all = [socket.create_connection(('{host}', 7)) for _ in range(200)]\n\
         answers = [ask(s) for s in all]\n\
         assert ask(first), 'the old flow'\n\
         assert any(answers) and not all_(answers), answers.count(True)\n\
         for s in all: s.close()\n\
         until = time.time() + 5\n\
         while not ask(socket.create_connection(('{host}', 7))): assert time.time() < until, 'no recovery'\n\
         assert ask(first), 'the old flow'\n",
        host = scene.server.v4,
        go = go.display()
    )
    .replace("all_(", "__builtins__.all(");
    let mut command = scene.client.command("python3");
    let client = command.args(["-c", &script]).spawn().expect("it starts");
    let mut client = Running(client);
    let stands = scene.world.dir.path().join("go.first");
    wait::until("the first connection", Duration::from_secs(10), || {
        stands.exists().then_some(())
    });
    let lowered = Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &limit])
        .status();
    assert!(lowered.expect("prlimit runs").success());
    fs::write(&go, "").expect("written");
    let ended = wait::until("the client ends", Duration::from_secs(25), || {
        client.0.try_wait().expect("a status")
    });
    assert!(ended.success(), "{}", agent.log());
    assert_eq!(agent.worker_pid(), Some(pid), "another data plane");
    assert!(metric(&agent, "shunt_accept_errors_total") > 0);
    let refused = "shunt_connections_refused_without_descriptor_total";
    assert!(metric(&agent, refused) > 0);
    assert!(agent.log().matches("cannot accept").count() <= 4);
}

/// A peer that ended holds nothing for longer than its timer, unless the other still says something.
fn ztunnel_1629_half_close(mode: &str) {
    let scene = scene();
    let agent = scene.agent(
        mode,
        "timeouts: {connect: 10s, idle: 0s, half_close: 1s, drain: 30s}",
    );
    // To port 9 nobody answers, nor ends. One sends nothing after its end; one never ends.
    let silent = scene.python(
        "ended = socket.create_connection((HOST, 9)); open_ = socket.create_connection((HOST, 9))\n\
         ended.shutdown(socket.SHUT_WR); ended.settimeout(10); start = time.time()\n\
         try: print(ended.recv(1))\n\
         except ConnectionResetError: print('reset', 0.9 < time.time() - start < 3)\n\
         time.sleep(1.2); open_.settimeout(0.1)\n\
         try: print(open_.recv(1))\n\
         except TimeoutError: print('open')\n",
    );
    assert_eq!(silent, "reset True\nopen");
    let closed = "shunt_connections_closed_total{reason=\"half_close_timeout\"}";
    assert_eq!(metric(&agent, closed), 1);
}

/// SYNs from addresses that never answer, more than any queue holds.
fn a_syn_flood_stops_nobody(mode: &str) {
    let scene = scene();
    let attacker = scene.world.pod();
    let _agent = AgentBuilder::new(&scene.world, mode)
        .enrol("client", &scene.client, "")
        .enrol("server", &scene.server, "")
        .start();
    let flood = format!(
        "import os, random, socket, struct, time\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)\n\
         to = socket.inet_aton('{server}'); own = socket.inet_aton('{own}')\n\
         def total(b):\n\
         \x20   n = sum(struct.unpack('!%dH' % (len(b) // 2), b)); n = (n >> 16) + (n & 0xffff); return ~(n + (n >> 16)) & 0xffff\n\
         end = time.time() + 10\n\
         for n in range(1000000):\n\
         \x20   if time.time() > end: break\n\
         \x20   head = struct.pack('!HHIIBBHHH', 1024 + n % 60000, 7, random.getrandbits(32), 0, 80, 2, 65535, 0, 0)\n\
         \x20   check = total(own + to + struct.pack('!BBH', 0, 6, 20) + head)\n\
         \x20   s.sendto(head[:16] + struct.pack('!H', check) + head[18:], ('{server}', 0))\n",
        server = scene.server.v4,
        own = attacker.v4
    );
    // The attacker's own kernel would reset the answers, and so clear the queue.
    let drop = [
        "-A",
        "OUTPUT",
        "-p",
        "tcp",
        "--tcp-flags",
        "RST",
        "RST",
        "-j",
        "DROP",
    ];
    attacker.says("iptables", &drop);
    let mut attack = attacker.spawn("python3", &["-c", &flood]);
    let answered = scene.python(
        "n = 0; end = time.time() + 2; longest = 0\n\
         while time.time() < end:\n\
         \x20   start = time.time(); s = socket.create_connection((HOST, 7), 5); assert ask(s); s.close()\n\
         \x20   n += 1; longest = max(longest, time.time() - start)\n\
         print(n > 50, longest < 1.5)",
    );
    assert_eq!(answered, "True True", "many answers, none of them late");
    assert!(
        attack.0.try_wait().expect("a status").is_none(),
        "the flood had ended"
    );
}

/// As many as 20,000; fewer where descriptors, two each, cannot be had.
#[test]
fn twenty_thousand_idle_connections_cost_little() {
    let hard = Command::new("sh").args(["-c", "ulimit -Hn"]).output();
    let hard = String::from_utf8(hard.expect("sh runs").stdout).expect("text");
    let most = hard
        .trim()
        .parse()
        .map_or(u64::MAX, |hard: u64| hard / 2 - 500);
    let count = most.min(20_000);
    let scene = scene();
    let agent = scene.agent("ebpf", "limits: {connections_per_workload: 30000}");
    scene.python("assert ask(socket.create_connection((HOST, 7)))");
    let before = rss_kib(&agent);
    let script = format!(
        "{CLIENT}\nall = []\nfor _ in range({count}): all.append(socket.create_connection(('{}', 7)))\n\
         print([ask(s) for s in all].count(True), flush=True)\ntime.sleep(60)",
        scene.server.v4
    );
    let mut command = scene.client.command("python3");
    let out = scene.world.dir.path().join("out");
    let file = fs::File::create(&out).expect("a file");
    let client = command.args(["-c", &script]).stdout(file).spawn();
    let _client = Running(client.expect("it starts"));
    wait::until("all connections answer", Duration::from_secs(40), || {
        let text = fs::read_to_string(&out).expect("readable");
        (text.trim() == count.to_string()).then_some(())
    });
    assert_eq!(agent.workload("client")["connections"]["active"], count);
    let each = (rss_kib(&agent) - before) * 1024 / count;
    println!("{each} bytes of the data plane's memory for each of {count} idle connections");
    assert!(each < 16 << 10, "{each} bytes each");
}

#[test]
fn five_hundred_stalled_readers_hold_little_and_nobody_up() {
    let scene = scene();
    let agent = scene.agent("ebpf", "splice_after: 64KiB");
    scene.python("assert ask(socket.create_connection((HOST, 7)))");
    let before = rss_kib(&agent);
    let answered = scene.python(
        "all = [socket.create_connection((HOST, 9)) for _ in range(500)]\n\
         for s in all: s.setblocking(False)\n\
         end = time.time() + 5; block = b'y' * 262144; sent = 0\n\
         while time.time() < end:\n\
         \x20   before = sent\n\
         \x20   for s in all:\n\
         \x20       try: sent += s.send(block)\n\
         \x20       except BlockingIOError: pass\n\
         \x20   if sent == before: break\n\
         s = socket.create_connection((HOST, 7)); start = time.time(); assert ask(s)\n\
         print(sent > 100000000, time.time() - start < 2)",
    );
    assert_eq!(answered, "True True");
    let grown = rss_kib(&agent).saturating_sub(before) >> 10;
    println!("{grown} MiB for 500 stalled readers");
    assert!(grown < 160, "{grown} MiB");
}

/// The 99th percentile, in microseconds, of a quiet pod's questions: alone, and beside a pod that floods.
fn quiet_p99(scene: &Scene, flooder: &Pod) -> [f64; 2] {
    let questions = "s = socket.create_connection((HOST, 7)); s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n\
         t = []; end = time.time() + 1.5\n\
         while time.time() < end:\n\
         \x20   a = time.perf_counter(); assert ask(s); t.append(time.perf_counter() - a)\n\
         t.sort(); print(t[len(t) * 99 // 100] * 1e6)";
    let ask = || scene.python(questions).parse().expect("a number");
    let alone = ask();
    let args = ["-c", &scene.server.v4, "-P", "8", "-t", "3"];
    let mut flood = flooder.spawn("iperf3", &args);
    let beside = ask();
    flood.0.wait().expect("ended");
    [alone, beside]
}

/// Eight bulk flows of a neighbour. Cores are shared without us too, hence the comparison.
#[test]
fn a_flooding_pod_beside_a_quiet_one() {
    let scene = scene();
    let flooder = scene.world.pod();
    let _iperf = scene.server.spawn("iperf3", &["-s"]);
    scene.server.wait_for_listener(5201);
    let without = quiet_p99(&scene, &flooder);
    let agent = AgentBuilder::new(&scene.world, "ebpf")
        .enrol("client", &scene.client, "")
        .enrol("flooder", &flooder, "")
        .start();
    let with = quiet_p99(&scene, &flooder);
    println!("p99 in us, alone and beside a flood: {without:.0?} without us, {with:.0?} with us");
    assert!(agent.workload("flooder")["connections"]["total"].as_u64() >= Some(8));
    assert!(with[1] < 50_000.0, "{with:.0?}");
}
