//! What a node asks its pods: probes from the node's own namespace, as a kubelet makes them, reach enrolled pods and hear
//! the truth about their ports, whatever has become of the agent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::time::Duration;

use shunt_tests::agent::signal;
use shunt_tests::{Agent, AgentBuilder, Pair, Running, in_both_modes, wait};

/// An application with three faces.
const HTTP: u16 = 80;
const HANGS_UP: u16 = 8081;
const NOBODY: u16 = 8082;

/// Accepts and hangs up.
const HANGING_UP: &str = "
import socket
s = socket.socket(socket.AF_INET6); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('::', 8081)); s.listen(64)
while True:
    c, _ = s.accept()
    c.close()
";

/// One probe for each `KIND HOST PORT`, as a kubelet does: `tcp` connects and closes, `http` wants a status of 200 to 399.
const PROBES: &str = "
import http.client, socket, sys
def probe(kind, host, port):
    try:
        if kind == 'tcp':
            socket.create_connection((host, port), 3).close()
            return 'open'
        c = http.client.HTTPConnection(host, port, timeout=3)
        c.request('GET', '/', headers={'User-Agent': 'kube-probe/1.31', 'Connection': 'close'})
        return str(c.getresponse().status)
    except ConnectionRefusedError: return 'refused'
    except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected): return 'hung up'
    except TimeoutError: return 'no answer'
words = sys.argv[1:]
print(*(probe(words[i], words[i + 1], int(words[i + 2])) for i in range(0, len(words), 3)), sep=',')
";

/// Of `tcp` and `http` to each of the application's ports.
const TRUTH: [&str; 6] = ["open", "200", "open", "hung up", "refused", "refused"];

struct Scene {
    pair: Pair,
    _nginx: Running,
    hanging_up: Option<Running>,
}

impl Scene {
    fn new() -> Self {
        let pair = Pair::new();
        // The bridge is the node's: it has an address, and programs that belong to no workload.
        let node = pair.world.label();
        for (address, more) in [("10.66.0.1/24", ""), ("fd66::1/64", "nodad")] {
            let mut ip = Command::new("ip");
            ip.args(["-n", node, "addr", "add", address, "dev", "br0"]);
            ip.args(more.split_whitespace());
            assert!(ip.status().expect("ip runs").success(), "{address}");
        }
        let mut scene = Self {
            _nginx: pair.server.nginx(&pair.world),
            pair,
            hanging_up: None,
        };
        scene.hang_up();
        scene
    }

    fn hang_up(&mut self) {
        let pod = &self.pair.server;
        self.hanging_up = Some(pod.spawn("python3", &["-c", HANGING_UP]));
        pod.wait_for_listener(HANGS_UP);
    }

    fn agent(&self, mode: &str, more: &str) -> Agent {
        AgentBuilder::new(&self.pair.world, mode)
            .enrol("server", &self.pair.server, more)
            .start()
    }

    fn addresses(&self) -> [&str; 2] {
        [&self.pair.server.v4, &self.pair.server.v6]
    }

    /// What the node hears.
    fn probe(&self, host: &str) -> Vec<String> {
        let mut command = Command::new("timeout");
        command.args(["30", "ip", "netns", "exec", self.pair.world.label()]);
        command
            .args(["python3", "-c", PROBES])
            .args(questions(host));
        said(&command.output().expect("runs"))
    }

    /// What a program hears that the node runs inside the pod.
    fn exec(&self, host: &str) -> Vec<String> {
        let questions = questions(host);
        let args: Vec<&str> = ["-c", PROBES]
            .into_iter()
            .chain(questions.iter().map(String::as_str))
            .collect();
        said(&self.pair.server.run("python3", &args))
    }

    #[track_caller]
    fn hears(&self, want: [&str; 6], when: &str) {
        for host in self.addresses() {
            assert_eq!(self.probe(host), want, "{when}: {host}");
        }
    }

    /// The workload with itself is nobody else's business.
    #[track_caller]
    fn exec_hears_the_truth(&self, when: &str) {
        for host in self.addresses().into_iter().chain(["127.0.0.1", "::1"]) {
            assert_eq!(self.exec(host), TRUTH, "{when}: exec, {host}");
        }
    }

    fn waits_for(&self, want: [&str; 6], when: &str) {
        wait::until(when, Duration::from_secs(10), || {
            let all = self.addresses().map(|host| self.probe(host));
            all.iter().all(|heard| heard == &want).then_some(())
        });
    }
}

fn questions(host: &str) -> Vec<String> {
    let ports = [HTTP, HANGS_UP, NOBODY];
    let both = |port: u16| ["tcp", "http"].map(|kind| [kind.into(), host.into(), port.to_string()]);
    ports.into_iter().flat_map(both).flatten().collect()
}

fn said(output: &Output) -> Vec<String> {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().split(',').map(str::to_owned).collect()
}

/// Both gates have opened, or whatever a failed agent leads to is in force.
const NOTICED: Duration = Duration::from_millis(2500);

in_both_modes!(
    probes_hear_the_truth_whatever_becomes_of_the_agent,
    probes_of_a_workload_that_fails_closed,
    a_port_is_open_exactly_while_somebody_listens,
);

fn probes_hear_the_truth_whatever_becomes_of_the_agent(mode: &str) {
    let scene = Scene::new();
    scene.hears(TRUTH, "without an agent");
    let mut agent = scene.agent(mode, "");
    let worker = agent.worker_pid().expect("a data plane");
    scene.hears(TRUTH, "served");
    // The open ports' probes went through the agent: two ports, two kinds, two families.
    let lines = agent.lines(8);
    assert!(
        lines.iter().all(|line| line["direction"] == "inbound"),
        "{lines:#?}"
    );
    scene.exec_hears_the_truth("served");
    agent.lines(8);

    signal("-STOP", worker);
    wait::pause(NOTICED);
    scene.hears(TRUTH, "the data plane is stuck");
    scene.exec_hears_the_truth("the data plane is stuck");
    signal("-CONT", worker);
    wait::until("it serves again", Duration::from_secs(10), || {
        let before = agent.access_log().len();
        scene.hears(TRUTH, "it goes on");
        (agent.access_log().len() >= before + 8).then_some(())
    });
    wait::until("that it was late is told", Duration::from_secs(5), || {
        let (_, stats) = agent.admin("GET", "/stats/prometheus", "");
        let told = "shunt_interception_repairs_total{what=\"late_gates\"} 1";
        stats.contains(told).then_some(())
    });
    let log = agent.log();
    assert!(log.contains("gates were kept too late"), "{log}");

    signal("-STOP", agent.pid());
    wait::pause(NOTICED);
    scene.hears(TRUTH, "the supervisor is stuck");
    signal("-CONT", agent.pid());
    agent.kill();
    wait::pause(NOTICED);
    scene.hears(TRUTH, "the agent is dead");
    agent.restart();
    assert!(agent.terminate().success());
    scene.hears(TRUTH, "the agent ended in order");
}

/// Nobody gets past an agent that is missing, the node neither: its probes say that the workload cannot be reached.
fn probes_of_a_workload_that_fails_closed(mode: &str) {
    const UNREACHABLE: [&str; 6] = ["refused"; 6];
    let scene = Scene::new();
    let mut agent = scene.agent(mode, "on_failure: closed");
    let worker = agent.worker_pid().expect("a data plane");
    scene.hears(TRUTH, "served");
    agent.lines(8);
    signal("-STOP", worker);
    wait::pause(NOTICED);
    scene.hears(UNREACHABLE, "the data plane is stuck");
    scene.exec_hears_the_truth("the data plane is stuck");
    signal("-CONT", worker);
    scene.waits_for(TRUTH, "it serves again");
    assert!(agent.terminate().success());
    scene.hears(TRUTH, "the agent ended in order");
}

/// Ports that begin and cease to be listened on while the agent is there.
fn a_port_is_open_exactly_while_somebody_listens(mode: &str) {
    const ONLY_HTTP: [&str; 6] = ["open", "200", "refused", "refused", "refused", "refused"];
    let mut scene = Scene::new();
    let _agent = scene.agent(mode, "");
    scene.hears(TRUTH, "served");
    for _ in 0..3 {
        drop(scene.hanging_up.take());
        scene.waits_for(ONLY_HTTP, "nobody listens any more");
        scene.hang_up();
        scene.hears(TRUTH, "somebody listens again");
    }
}

/// T-CLOSED-PORT of docs/semantics.md: on a kernel without xt_socket.
#[test]
fn closed_ports_without_the_socket_match() {
    const ACCEPTED: [&str; 6] = ["open", "200", "open", "hung up", "open", "hung up"];
    let scene = Scene::new();
    let dir = scene.pair.world.dir.path().join("programs");
    fs::create_dir(&dir).expect("a directory");
    for program in ["iptables-nft-restore", "ip6tables-nft-restore"] {
        let script = format!(
            "#!/bin/sh\nrules=$(cat)\ncase $rules in *'-m socket'*) echo no such match >&2; exit 2;; esac\n\
             PATH=${{PATH#*:}}\nprintf '%s\\n' \"$rules\" | {program} \"$@\"\n"
        );
        let path = dir.join(program);
        fs::write(&path, script).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    }
    let agent = AgentBuilder::new(&scene.pair.world, "iptables")
        .with_programs(&dir)
        .enrol("server", &scene.pair.server, "")
        .start();
    let reason = agent.workload("server")["mode_reason"].to_string();
    assert!(reason.contains("no `socket` match"), "{reason}");
    for host in scene.addresses() {
        let heard = scene.probe(host);
        // The reset of a closed port may overtake the probe's own connect.
        let mut heard: Vec<&str> = heard.iter().map(String::as_str).collect();
        if heard[4] == "hung up" {
            heard[4] = "open";
        }
        assert_eq!(heard, ACCEPTED, "{host}");
    }
    scene.exec_hears_the_truth("served");
}
