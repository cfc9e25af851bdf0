//! A later build of the data plane takes over from the one that serves: nobody is refused, reset or failed, and one that is
//! no good changes nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use shunt_tests::agent::{binary, signal};
use shunt_tests::{Agent, AgentBuilder, Pair, Pod, Script, in_both_modes, wait};

in_both_modes!(
    wrk_at_full_load_notices_no_upgrade,
    wrk_notices_no_upgrade_of_all,
    who_is_to_be_refused_without_us_is_not,
    a_stream_goes_on_in_the_old_one,
    the_old_one_has_its_time_and_no_more,
    who_leaves_meanwhile_leaves_nothing,
);

/// Lines that are numbered, one each 10 ms, until told to end. Of each connection.
const SERVER: &str = "
import socket, sys, threading, time
listening = socket.create_server(('', 7000))
print('ready', flush=True)
over = threading.Event()
def talk(client):
    with client:
        number = 0
        try:
            while not over.is_set():
                client.sendall(b'%d\\n' % number); number += 1; time.sleep(0.01)
            client.sendall(b'end\\n')
        except OSError: pass
def serve():
    while True: threading.Thread(target=talk, args=(listening.accept()[0],), daemon=True).start()
threading.Thread(target=serve, daemon=True).start()
sys.stdin.readline()
over.set(); time.sleep(1)
";
/// Says `begun`, and at the end what was wrong, or how many lines there were.
const CLIENT: &str = "
import socket, sys
lines = socket.create_connection((sys.argv[1], 7000), 10).makefile()
number = 0
try:
    for line in lines:
        if line == 'end\\n': print('whole', number, flush=True); break
        if line != '%d\\n' % number: print('wrong', number, line, flush=True); break
        number += 1
        if number == 1: print('begun', flush=True)
    else: print('cut off', number, flush=True)
except OSError as error: print('failed', error, flush=True)
";

struct Stream {
    server: Script,
    client: Script,
}

impl Stream {
    fn begin(pair: &Pair) -> Self {
        let mut server = Script::start(&pair.server, SERVER, &[]);
        assert_eq!(server.says(), "ready");
        let mut client = Script::start(&pair.client, CLIENT, &[&pair.server.v4]);
        assert_eq!(client.says(), "begun");
        Self { server, client }
    }

    fn end(mut self) -> String {
        self.server.tell("end");
        self.client.says()
    }
}

/// wrk, at full load.
struct Wrk(std::process::Child);

impl Wrk {
    fn start(pod: &Pod, words: &[&str], url: &str) -> Self {
        let mut command = pod.command("wrk");
        command.args(["-t1", "-c10", "-d300s"]).args(words).arg(url);
        Self(command.stdout(Stdio::piped()).spawn().expect("wrk runs"))
    }

    /// Every request was answered.
    fn end(self, least: u64) {
        signal("-INT", self.0.id());
        let said = self.0.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(!said.contains("Socket errors"), "{said}");
        assert!(!said.contains("Non-2xx"), "{said}");
        let words: Vec<&str> = said.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "requests");
        let requests: u64 = words[at.expect("requests") - 1].parse().expect("a number");
        assert!(requests >= least, "{said}");
    }
}

fn upgrade(agent: &Agent, part: &str) -> Output {
    Command::new(binary())
        .args(["upgrade", part, "--socket"])
        .arg(agent.dir.join("admin.sock"))
        .output()
        .expect("runs")
}

#[track_caller]
fn upgraded(agent: &Agent) {
    upgraded_of(agent, "data-plane");
}

#[track_caller]
fn upgraded_of(agent: &Agent, part: &str) {
    let before = agent.worker_pids();
    let output = upgrade(agent, part);
    let (said, wrong) = (output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{wrong}");
    let now = agent.status()["agent"]["worker_pid"].as_u64();
    let now = u32::try_from(now.expect("a number")).expect("a pid");
    assert!(!before.contains(&now), "{}", String::from_utf8_lossy(&said));
    assert_eq!(agent.admin("GET", "/ready", ""), (200, "LIVE\n".into()));
}

#[track_caller]
fn refused(agent: &Agent, reason: &str) {
    let before = agent.worker_pid();
    let output = upgrade(agent, "data-plane");
    let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{wrong}");
    assert!(wrong.contains(reason), "{wrong}");
    assert!(wrong.contains("nothing has changed"), "{wrong}");
    assert_eq!(agent.worker_pid(), before);
    assert_eq!(agent.admin("GET", "/ready", ""), (200, "LIVE\n".into()));
}

fn one_is_left(agent: &Agent) {
    wait::until("earlier data planes end", Duration::from_secs(10), || {
        let shown = &agent.status()["agent"]["retired_pids"];
        (agent.worker_pids().len() == 1 && shown.as_array().is_some_and(Vec::is_empty))
            .then_some(())
    });
}

fn wrk_at_full_load_notices_no_upgrade(mode: &str) {
    let pair = Pair::new();
    let _nginx = pair.server.nginx(&pair.world);
    let agent = pair.both(mode, "").start();
    let url = format!("http://{}/", pair.server.v4);
    let url6 = format!("http://[{}]/", pair.server.v6);
    // nginx closes a connection after a thousand requests.
    let kept = Wrk::start(&pair.client, &[], &url);
    let anew = Wrk::start(&pair.client, &["-H", "Connection: close"], &url6);
    for _ in 0..10 {
        upgraded(&agent);
        // The new one serves, and what it has replaced has not much left to do.
        wait::until("connections through it", Duration::from_secs(20), || {
            let served = agent.workload("client")["connections"]["total"].as_u64();
            (served > Some(20) && agent.worker_pids().len() < 4).then_some(())
        });
    }
    kept.end(1000);
    anew.end(300);
    one_is_left(&agent);
}

fn wrk_notices_no_upgrade_of_all(mode: &str) {
    let pair = Pair::new();
    let _nginx = pair.server.nginx(&pair.world);
    let before = [pair.client.state(), pair.server.state()];
    let mut agent = pair.both(mode, "").start();
    let url = format!("http://{}/", pair.server.v4);
    let url6 = format!("http://[{}]/", pair.server.v6);
    let stream = Stream::begin(&pair);
    let kept = Wrk::start(&pair.client, &[], &url);
    let anew = Wrk::start(&pair.client, &["-H", "Connection: close"], &url6);
    for _ in 0..10 {
        upgraded_of(&agent, "all");
        wait::until("connections through it", Duration::from_secs(20), || {
            let served = agent.workload("client")["connections"]["total"].as_u64();
            (served > Some(20) && agent.worker_pids().len() < 4).then_some(())
        });
    }
    kept.end(1000);
    anew.end(300);
    let told = stream.end();
    assert!(told.starts_with("whole "), "{told}");
    one_is_left(&agent);
    assert!(agent.terminate().success());
    assert_eq!([pair.client.state(), pair.server.state()], before);
}

fn a_stream_goes_on_in_the_old_one(mode: &str) {
    let pair = Pair::new();
    let agent = pair.both(mode, "").start();
    let stream = Stream::begin(&pair);
    let old = agent.worker_pid().expect("a data plane");
    upgraded(&agent);
    upgraded(&agent);
    let shown = &agent.status()["agent"]["retired_pids"];
    assert!(shown.as_array().expect("a list").contains(&old.into()));
    // One that dies is replaced by the same build, and the old one does not notice.
    let serving = agent.status()["agent"]["worker_pid"].as_u64();
    let serving = u32::try_from(serving.expect("a number")).expect("a pid");
    signal("-KILL", serving);
    wait::until("another serves", Duration::from_secs(10), || {
        let (code, _) = agent.admin("GET", "/ready", "");
        (code == 200 && !agent.worker_pids().contains(&serving)).then_some(())
    });
    let told = stream.end();
    assert!(told.starts_with("whole "), "{told}");
    one_is_left(&agent);
    let lines = agent.access_log();
    assert!(
        lines.iter().any(|line| line["close_reason"] == "finished"),
        "{lines:#?}"
    );
}

fn the_old_one_has_its_time_and_no_more(mode: &str) {
    let pair = Pair::new();
    let agent = pair.both(mode, "").set("timeouts: {upgrade: 1s}").start();
    let stream = Stream::begin(&pair);
    upgraded(&agent);
    one_is_left(&agent);
    let told = stream.end();
    assert!(told.starts_with("failed "), "{told}");
}

fn who_leaves_meanwhile_leaves_nothing(mode: &str) {
    let pair = Pair::new();
    let before = [pair.client.state(), pair.server.state()];
    let agent = pair.both(mode, "").start();
    let stream = Stream::begin(&pair);
    upgraded(&agent);
    agent.rewrite(&[]);
    wait::until("both are withdrawn", Duration::from_secs(10), || {
        agent.status()["workloads"]
            .as_array()
            .is_some_and(Vec::is_empty)
            .then_some(())
    });
    let told = stream.end();
    assert!(told.starts_with("whole "), "{told}");
    wait::until("nothing is left", Duration::from_secs(10), || {
        ([pair.client.state(), pair.server.state()] == before).then_some(())
    });
    one_is_left(&agent);
}

#[test]
fn accelerated_and_direct_ones_go_on() {
    for (more, path) in [
        ("acceleration: {default: always, direct: false}", "handoff"),
        ("acceleration: always", "direct"),
    ] {
        let pair = Pair::new();
        let agent = pair.both("ebpf", more).start();
        let stream = Stream::begin(&pair);
        upgraded(&agent);
        if path == "handoff" {
            upgraded_of(&agent, "all");
        }
        let told = stream.end();
        let lines: u64 = told
            .strip_prefix("whole ")
            .expect(&told)
            .parse()
            .expect("a number");
        one_is_left(&agent);
        let logged = wait::until("its line", Duration::from_secs(10), || {
            let mut all = agent.access_log().into_iter();
            all.find(|line| line["close_reason"] == "finished")
        });
        assert_eq!(logged["path"], path, "{logged:#}");
        let numbers: u64 = (0..lines)
            .map(|number| number.to_string().len() as u64 + 1)
            .sum();
        assert_eq!(logged["bytes_sent"], numbers + 4, "{logged:#}");
    }
}

/// Of whoever fails closed nothing may be refused.
fn who_is_to_be_refused_without_us_is_not(mode: &str) {
    let pair = Pair::new();
    let _nginx = pair.server.nginx(&pair.world);
    let agent = pair.both(mode, "on_failure: closed").start();
    let wrk = Wrk::start(
        &pair.client,
        &["-H", "Connection: close"],
        &format!("http://{}/", pair.server.v4),
    );
    for _ in 0..3 {
        upgraded_of(&agent, "all");
    }
    wait::until("the one before is let go", Duration::from_secs(20), || {
        agent
            .log()
            .contains("nothing of the program before is left")
            .then_some(())
    });
    wrk.end(300);
}

/// HTTP on port 80, TCP on port 81, both to nginx.
fn bootstrap(gateway: &Pod, server: &Pod) -> String {
    let (gateway, server) = (&gateway.v4, &server.v4);
    let type_of =
        |name: &str| format!("\"@type\": type.googleapis.com/envoy.extensions.filters.{name}");
    let listener = |name: &str, port: u16, filter: &str| {
        format!(
            "  - name: {name}\n    address: {{socket_address: {{address: {gateway}, port_value: {port}}}}}\n    \
             filter_chains: [{{filters: [{{name: {name}, typed_config: {{{filter}, stat_prefix: {name}"
        )
    };
    let manager = type_of("network.http_connection_manager.v3.HttpConnectionManager");
    let router = type_of("http.router.v3.Router");
    let http = listener("web", 80, &manager)
        + ", route_config: {virtual_hosts: [{name: all, domains: [\"*\"], routes: [{match: {prefix: /}, \
           route: {cluster: server}}]}]}, http_filters: [{name: router, typed_config: {"
        + &router
        + "}}]}}]}]\n";
    let tcp =
        listener("tcp", 81, &type_of("network.tcp_proxy.v3.TcpProxy")) + ", cluster: server}}]}]\n";
    format!(
        "static_resources:\n  listeners:\n{http}{tcp}  clusters:\n  - name: server\n    \
         load_assignment: {{cluster_name: server, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
         {{socket_address: {{address: {server}, port_value: 80}}}}}}}}]}}]}}\n"
    )
}

#[test]
fn listeners_of_the_bootstrap_notice_no_upgrade() {
    let pair = Pair::new();
    let gateway = pair.world.pod();
    let _nginx = pair.server.nginx(&pair.world);
    let file = pair.world.dir.path().join("bootstrap.yaml");
    fs::write(&file, bootstrap(&gateway, &pair.server)).expect("written");
    let agent = AgentBuilder::new(&pair.world, "auto")
        .inside(&gateway)
        .set(&format!("bootstrap: {}", file.display()))
        .start();
    let [web, tcp] = [80, 81].map(|port| format!("http://{}:{port}/", gateway.v4));
    let kept = Wrk::start(&pair.client, &[], &web);
    let anew = Wrk::start(&pair.client, &["-H", "Connection: close"], &web);
    let bytes = Wrk::start(&pair.client, &["-H", "Connection: close"], &tcp);
    for round in 0..10 {
        // In turn: the data plane alone, and all of it.
        upgraded_of(&agent, ["data-plane", "all"][round % 2]);
        wait::until("requests to it", Duration::from_secs(20), || {
            let (_, stats) = agent.admin("GET", "/stats?filter=web.downstream_rq_total", "");
            let served: Option<u64> = stats.trim().rsplit(' ').next()?.parse().ok();
            (served > Some(100) && agent.worker_pids().len() < 4).then_some(())
        });
    }
    kept.end(1000);
    anew.end(300);
    bytes.end(300);
    one_is_left(&agent);
}

/// Where a test may replace the agent's program.
fn own_program(pair: &Pair) -> PathBuf {
    let own = pair.world.dir.path().join("shunt-under-test");
    fs::copy(binary(), &own).expect("copied");
    own
}

fn replace(own: &Path, by: &Path) {
    let new = own.with_extension("new");
    fs::copy(by, &new).expect("copied");
    fs::rename(new, own).expect("renamed");
}

#[test]
fn one_that_is_no_good_changes_nothing() {
    let pair = Pair::new();
    let _nginx = pair.server.nginx(&pair.world);
    let own = own_program(&pair);
    let agent = pair.both("ebpf", "").program(&own).start();
    let url = format!("http://{}/", pair.server.v4);
    let wrk = Wrk::start(&pair.client, &[], &url);
    let stranger = Path::new(env!("CARGO_BIN_EXE_shunt-stranger"));
    replace(&own, stranger);
    for (how, reason) in [
        ("another version", "speaks version 99 of the protocol"),
        ("dies", "the new data plane ended: exit status: 1"),
        ("silent", "did not make itself ready in time"),
    ] {
        fs::write(own.with_extension("how"), how).expect("written");
        refused(&agent, reason);
    }
    fs::write(&own, "no program at all").expect("written");
    refused(&agent, "cannot start the data plane");
    fs::remove_file(&own).expect("removed");
    refused(&agent, "cannot open the program on disk");
    replace(&own, &binary());
    upgraded(&agent);
    wrk.end(1000);
    one_is_left(&agent);
    // Also when it dies, the program is the later one: the file has gone meanwhile.
    fs::remove_file(&own).expect("removed");
    let serving = agent.worker_pid().expect("a data plane");
    signal("-KILL", serving);
    wait::until("another serves", Duration::from_secs(10), || {
        let pid = agent.worker_pid().filter(|pid| *pid != serving)?;
        (agent.admin("GET", "/ready", "").0 == 200).then_some(pid)
    });
}
