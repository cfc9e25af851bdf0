//! Programs that people run, with data and counts that are checked, between enrolled pods.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use shunt_tests::{Agent, AgentBuilder, Pair, Pod, Running, postgres, wait};

macro_rules! in_every_way {
    ($($name:ident),* $(,)?) => {
        mod by_default { $(#[test] fn $name() { super::$name(crate::BY_DEFAULT); })* }
        mod learned { $(#[test] fn $name() { super::$name(crate::LEARNED); })* }
        shunt_tests::in_both_modes!($($name),*);
    };
}

mod languages;

in_every_way!(
    redis_counts_every_command,
    wrk_gets_the_right_answer_each_time,
    pgbench_balances,
    ssh_moves_files_both_ways,
    haproxy_splices_between_us,
    iperf3_moves_many_bytes,
);

/// The mode of those tests in which the agent stays in the way, and has learned what the program's sockets are like.
const LEARNED: &str = "learned";
/// As nobody configures it: connections go directly.
const BY_DEFAULT: &str = "default";

fn in_ebpf_mode(mode: &str) -> &str {
    match mode {
        LEARNED | BY_DEFAULT => "ebpf",
        other => other,
    }
}

/// A field of each workload.
fn wish(mode: &str) -> &'static str {
    match mode {
        LEARNED => "acceleration: {direct: false}",
        BY_DEFAULT => "acceleration: auto",
        _ => "",
    }
}

fn start(scene: &Pair, mode: &str) -> Agent {
    scene.both(in_ebpf_mode(mode), wish(mode)).start()
}

/// How often the program works: until all is learned, and then again.
fn rounds(mode: &str) -> std::ops::Range<u32> {
    0..if mode == LEARNED { 3 } else { 1 }
}

/// Once its sockets are known, bytes of this workload go past the agent, or never do.
fn is_accelerated(agent: &Agent, mode: &str, workload: &str, wanted: bool) {
    if mode != LEARNED {
        return;
    }
    let told = agent.workload(workload);
    let moved = told["bytes"]["handoff"].as_u64().expect("a number");
    assert_eq!(moved > 0, wanted, "{told:#}");
}

fn path(scene: &Pair, name: &str) -> PathBuf {
    scene.world.dir.path().join(name)
}

fn write(scene: &Pair, name: &str, text: &str) -> String {
    let path = path(scene, name);
    fs::write(&path, text).expect("written");
    path.display().to_string()
}

/// Four megabytes that nginx has as `/big`.
fn big(scene: &Pair, of: &Pod) -> PathBuf {
    path(scene, &of.netns).join("big")
}

/// The program has gone through the agent, or by default past it, and nothing of it went wrong there.
fn passed(agent: &Agent, mode: &str, at_least: u64) {
    let total = agent.workload("client")["connections"]["total"].clone();
    assert!(total.as_u64() >= Some(at_least), "{total} connections");
    for line in agent.access_log() {
        let reason = line["close_reason"].as_str().expect("text");
        let in_order = ["finished", "client_reset", "upstream_reset"].contains(&reason);
        assert!(in_order, "{line:#}");
        assert_eq!(line["path"] == "direct", mode == BY_DEFAULT, "{line:#}");
    }
}

fn same(one: &Path, other: &Path) {
    let compared = Command::new("cmp").args([one, other]).output();
    let compared = compared.expect("cmp runs");
    assert!(compared.status.success(), "{compared:?}");
}

fn redis_counts_every_command(mode: &str) {
    let scene = Pair::new();
    let any = ["--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""];
    let _redis = scene.server.spawn("redis-server", &any);
    scene.server.wait_for_listener(6379);
    let agent = start(&scene, mode);
    let host = ["-h", &scene.server.v4];
    let cli = |words: &[&str]| scene.client.says("redis-cli", &[&host, words].concat());
    let load = [
        "-n", "20000", "-c", "20", "-P", "4", "-t", "set,get", "-r", "1000", "-q",
    ];
    for _ in rounds(mode) {
        let words = [&host, &load[..]].concat();
        scene.client.says("redis-benchmark", &words);
    }
    // It asks for the server's configuration first, on a socket that blocks, and nothing tells that from its others.
    is_accelerated(&agent, mode, "server", false);
    let stats = cli(&["info", "commandstats"]);
    for command in ["set", "get"] {
        let counted = format!("cmdstat_{command}:calls={},", 20_000 * rounds(mode).end);
        assert!(stats.contains(&counted), "{counted} in {stats}");
    }
    let long = "0123456789".repeat(10_000);
    assert_eq!(cli(&["set", "long", &long]), "OK");
    assert!(cli(&["get", "long"]) == long, "another value");
    // A client that waits, in recv, for what another one does later.
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| cli(&["blpop", "list", "15"]));
        wait::until("a client waits", Duration::from_secs(10), || {
            let clients = cli(&["info", "clients"]);
            clients.contains("blocked_clients:1").then_some(())
        });
        cli(&["rpush", "list", "word"]);
        waiting.join().expect("an answer")
    });
    assert_eq!(waiting, "list\nword");
    passed(&agent, mode, 26);
}

/// wrk looks at each answer: nginx's `$remote_addr`, so the client's own address.
const WRK: &str = "
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init(args) expected, right, wrong = args[1], 0, 0 end
function response(status, headers, body)
  if status == 200 and body == expected then right = right + 1 else wrong = wrong + 1 end
end
function done(summary, latency, requests)
  local right, wrong, e = 0, 0, summary.errors
  for _, thread in ipairs(threads) do right = right + thread:get('right'); wrong = wrong + thread:get('wrong') end
  print('result ' .. right .. ' ' .. wrong .. ' ' .. (e.connect + e.read + e.write + e.status + e.timeout))
end
";

fn wrk_gets_the_right_answer_each_time(mode: &str) {
    let scene = Pair::new();
    let _nginx = scene.server.nginx(&scene.world);
    let agent = start(&scene, mode);
    let script = write(&scene, "answers.lua", WRK);
    let url = format!("http://{}/", scene.server.v4);
    let words = [
        "-t",
        "2",
        "-c",
        "20",
        "-d",
        "1s",
        "-s",
        &script,
        &url,
        "--",
        &scene.client.v4,
    ];
    for _ in rounds(mode) {
        let said = scene.client.says("wrk", &words);
        let result = said.lines().find_map(|line| line.strip_prefix("result "));
        let numbers: Vec<u64> = result
            .expect("a result")
            .split(' ')
            .map(|number| number.parse().expect("a number"))
            .collect();
        assert!(numbers[0] > 100 && numbers[1..] == [0, 0], "{said}");
    }
    is_accelerated(&agent, mode, "server", true);
    passed(&agent, mode, 20);
}

fn pgbench_balances(mode: &str) {
    let scene = Pair::new();
    let _postgres = postgres::start(&scene.world, &scene.server, &scene.client);
    let agent = start(&scene, mode);
    let to = ["-h", &scene.server.v4, "-U", "postgres"];
    let bench = |words: &[&str]| scene.client.says("pgbench", &[&to, words].concat());
    bench(&["-i", "-q", "postgres"]);
    let protocols = ["simple", "prepared"];
    for protocol in rounds(mode).flat_map(|_| protocols) {
        let said = bench(&["-n", "-c", "4", "-t", "100", "-M", protocol, "postgres"]);
        assert!(said.contains("actually processed: 400/400"), "{said}");
    }
    let sums = "select (select count(*) from pgbench_history) || ' ' || ((select sum(delta) from pgbench_history) = all \
        (array[(select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches), \
        (select sum(tbalance) from pgbench_tellers)]))";
    let said = scene
        .client
        .says("psql", &[&to[..], &["-Atc", sums, "postgres"]].concat());
    assert_eq!(said, format!("{} true", 800 * rounds(mode).end));
    passed(&agent, mode, 10);
}

fn ssh_moves_files_both_ways(mode: &str) {
    let scene = Pair::new();
    let keygen = |name: &str| {
        let file = path(&scene, name).display().to_string();
        scene.client.says(
            "ssh-keygen",
            &["-q", "-t", "ed25519", "-N", "", "-f", &file],
        );
        file
    };
    let (host, user) = (keygen("host"), keygen("user"));
    let config = format!(
        "Port 2222\nHostKey {host}\nAuthorizedKeysFile {user}.pub\nPidFile none\nStrictModes no\nUsePAM no\n\
         PermitRootLogin prohibit-password\nPasswordAuthentication no\n"
    );
    let config = write(&scene, "sshd.conf", &config);
    // sshd wants a directory of its own under /run; the pod's commands have mounts of their own.
    let command = "mount -t tmpfs none /run && mkdir /run/sshd && exec /usr/sbin/sshd -D -f \"$0\"";
    let _sshd = scene.server.spawn("sh", &["-c", command, &config]);
    scene.server.wait_for_listener(2222);
    let agent = start(&scene, mode);
    let known: Vec<u8> = (0..3_000_000_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let (there, back) = (path(&scene, "there"), path(&scene, "back"));
    fs::write(path(&scene, "known"), known).expect("written");
    let ssh = format!(
        "ssh -F none -p 2222 -i {user} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR root@{}",
        scene.server.v4
    );
    let (known, sent, got) = (path(&scene, "known"), there.display(), back.display());
    let script = format!(
        "{ssh} 'cat > {sent}' < {} && {ssh} cat {sent} > {got}",
        known.display()
    );
    // As many connections as it takes to be learned about.
    for _ in rounds(mode).chain(rounds(mode)) {
        scene.client.says("sh", &["-c", &script]);
        same(&known, &there);
        same(&known, &back);
    }
    passed(&agent, mode, 2);
}

/// client -> haproxy, which splices -> nginx: haproxy's sockets are ours at both ends.
fn haproxy_splices_between_us(mode: &str) {
    let scene = Pair::new();
    let middle = scene.world.pod();
    let _nginx = scene.server.nginx(&scene.world);
    let config = format!(
        "global\n maxpipes 64\ndefaults\n timeout connect 5s\n timeout client 15s\n timeout server 15s\n option splice-request\n option splice-response\n\
         listen http\n mode http\n bind :8080\n server nginx {server}:80\n\
         listen tcp\n mode tcp\n bind :8081\n server nginx {server}:80\n",
        server = scene.server.v4
    );
    let config = write(&scene, "haproxy.cfg", &config);
    let _haproxy: Running = middle.spawn("haproxy", &["-db", "-f", &config]);
    middle.wait_for_listener(8081);
    let agent = AgentBuilder::new(&scene.world, in_ebpf_mode(mode))
        .enrol("client", &scene.client, wish(mode))
        .enrol("middle", &middle, wish(mode))
        .enrol("server", &scene.server, wish(mode))
        .start();
    let ports = rounds(mode).flat_map(|_| [8080, 8081, 8080, 8081, 8080, 8081, 8080, 8081]);
    for (number, port) in ports.enumerate() {
        let got = path(&scene, &format!("got{number}"));
        let (file, url) = (
            got.display().to_string(),
            format!("http://{}:{port}/big", middle.v4),
        );
        scene.client.says("curl", &["-sS", "-o", &file, &url]);
        same(&got, &big(&scene, &scene.server));
    }
    is_accelerated(&agent, mode, "middle", false);
    passed(&agent, mode, 6);
}

fn iperf3_moves_many_bytes(mode: &str) {
    let scene = Pair::new();
    let _iperf = scene.server.spawn("iperf3", &["-s"]);
    scene.server.wait_for_listener(5201);
    let agent = start(&scene, mode);
    let directions = [&["-P", "4"][..], &["-P", "4", "-R"]];
    for more in rounds(mode).flat_map(|_| directions) {
        let words = [&["-c", &scene.server.v4, "-n", "100M", "-J"], more].concat();
        let report: Value =
            serde_json::from_str(&scene.client.says("iperf3", &words)).expect("JSON");
        let bytes = |what: &str| report["end"][what]["bytes"].as_u64().expect("a number");
        let (sent, received) = (bytes("sum_sent"), bytes("sum_received"));
        // It looks when the last byte is sent, and then there are some on their way: as many as buffers take.
        assert!(
            sent >= 100 << 20 && received > 5 << 20 && received <= sent,
            "{}",
            report["end"]
        );
    }
    passed(&agent, mode, 10);
}
