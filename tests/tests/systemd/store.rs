//! What systemd keeps while the agent is dead: who comes meanwhile is neither refused nor forgotten.

use std::time::Duration;

use shunt_tests::{Pod, Script, World, wait};

use super::{CONFIG, SECONDS, Scene, config, scene, scene_with};

/// One connection: says `connected`, then what it was told, or what went wrong.
const ONE: &str = "
import socket, sys
try:
    server = socket.create_connection((sys.argv[1], 80), 20)
    print('connected', flush=True)
    print(server.recv(100).decode() or 'nothing', flush=True)
except OSError as error: print(type(error).__name__, flush=True)
";
/// Connections from four threads, until told to end. Then how they ended, and how often.
const STREAM: &str = "
import collections, socket, sys, threading
over, counts, lock = threading.Event(), collections.Counter(), threading.Lock()
def connect():
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) as server:
            return server.recv(100).decode() or 'nothing'
    except OSError as error: return type(error).__name__
def stream():
    while not over.is_set():
        end = connect()
        with lock: counts[end] += 1
threads = [threading.Thread(target=stream) for _ in range(4)]
for thread in threads: thread.start()
print('begun', flush=True)
sys.stdin.readline()
over.set()
for thread in threads: thread.join()
print(*(f'{end}={count}' for end, count in counts.items()), flush=True)
";
const THREADS: usize = 4;
/// Lines of the access log that three deaths may take along.
const LOST: usize = 20;

struct Stream(Script);

impl Stream {
    fn begin(from: &Pod, ip: &str, port: u16) -> Self {
        let mut script = Script::start(from, STREAM, &[ip, &port.to_string()]);
        assert_eq!(script.says(), "begun");
        Self(script)
    }

    /// How many were answered, cut off, and refused.
    #[track_caller]
    fn end(mut self) -> [usize; 3] {
        self.0.tell("end");
        let said = self.0.says();
        let mut ends = [0; 3];
        for (end, count) in said.split(' ').filter_map(|word| word.split_once('=')) {
            let at = match end {
                "server" => 0,
                "ConnectionResetError" | "nothing" => 1,
                "ConnectionRefusedError" => 2,
                _ => panic!("{said}"),
            };
            ends[at] += count.parse::<usize>().expect("a number");
        }
        ends
    }

    /// All were answered, but for as many as were under way in so many deaths.
    #[track_caller]
    fn was_answered(self, deaths: usize) {
        let [answered, cut, refused] = self.end();
        let said = format!("{answered} answered, {cut} cut off, {refused} refused");
        assert!(
            answered > 100 && cut <= THREADS * deaths && refused == 0,
            "{said}"
        );
    }
}

impl Scene {
    fn kept(&self) -> usize {
        let kept = self
            .systemd
            .property("shunt.service", "NFileDescriptorStore");
        kept.parse().expect("a number")
    }

    fn main_pid(&self) -> String {
        self.systemd.property("shunt.service", "MainPID")
    }

    fn signal(&self, signal: &str, pid: &str) {
        let sent = self.systemd.run(&["kill", signal, pid]);
        assert!(sent.status.success(), "{sent:?}");
    }

    fn worker(&self) -> String {
        let main = self.main_pid();
        let children = self.systemd.run(&["pgrep", "-P", &main]);
        let children = String::from_utf8_lossy(&children.stdout).into_owned();
        children
            .split_whitespace()
            .next()
            .expect("a data plane")
            .to_owned()
    }

    /// Both are killed: the supervisor by us, its data plane by systemd.
    fn kill(&self) {
        let before = self.main_pid();
        self.signal("-KILL", &before);
        self.restarted(&before);
    }

    fn restarted(&self, before: &str) {
        wait::until("another supervisor", SECONDS, || {
            let now = self.main_pid();
            (now != "0" && now != before).then_some(())
        });
        self.is("ActiveState", "active");
    }

    /// Connected to the agent, which does not accept.
    fn somebody_waits(&self, from: &Pod) -> Script {
        self.signal("-STOP", &self.worker());
        let mut one = Script::start(from, ONE, &[&self.server.v4]);
        assert_eq!(one.says(), "connected");
        one
    }
}

/// In eBPF mode nobody is steered any more as soon as the supervisor is dead. Who has come before is not reset.
#[test]
fn who_waits_when_the_agent_dies_is_served_by_the_next() {
    let scene = scene("");
    scene.is_captured();
    assert!(scene.kept() > 0);
    let web = scene.systemd.service("web.service");
    for _ in 0..2 {
        let carried = scene.carried();
        let mut one = scene.somebody_waits(&web);
        scene.kill();
        assert_eq!(one.says(), "server");
        wait::until("it is told of", SECONDS, || {
            (scene.carried() > carried).then_some(())
        });
        scene.is_captured();
    }
    // Withdrawn, and enrolled again.
    let kept = scene.kept();
    scene.systemd.write(CONFIG, "workloads: []\n");
    scene.is("NFileDescriptorStore", "1");
    scene.systemd.write(CONFIG, &config(&scene.world, ""));
    scene.is("NFileDescriptorStore", &kept.to_string());
    scene.systemd.systemctl("stop", "shunt.service");
    assert_eq!(scene.kept(), 0);
    assert_eq!(scene.host.says("ss", &["-Hltn"]), "");
}

/// Who is refused without the agent is not let past by what is kept either.
#[test]
fn who_fails_closed_waits_or_is_refused_and_is_not_let_past() {
    let scene = scene_with("", |world, _, _| {
        let closed = "acceleration: off, on_failure: closed}";
        config(world, "").replace("acceleration: off}", closed)
    });
    scene.is_captured();
    let web = scene.systemd.service("web.service");
    let before = scene.carried();
    let stream = Stream::begin(&web, &scene.server.v4, 80);
    for _ in 0..2 {
        scene.kill();
        let served = scene.carried();
        wait::until("they are carried again", SECONDS, || {
            (scene.carried() > served + 20).then_some(())
        });
    }
    let mut one = scene.somebody_waits(&web);
    scene.kill();
    assert_eq!(one.says(), "server");
    let [answered, ..] = stream.end();
    // A line may die with the data plane that has it; past the agent there would be thousands.
    wait::until("all but a few are told of", SECONDS, || {
        (scene.carried() + LOST > before + answered).then_some(())
    });
}

/// What cannot serve those who wait does not let them wait: here, a start with a file that has become wrong.
#[test]
fn a_start_that_fails_lets_nobody_wait() {
    let scene = scene("");
    scene.is_captured();
    let web = scene.systemd.service("web.service");
    let mut one = scene.somebody_waits(&web);
    scene.systemd.write(CONFIG, "mode: fast\n");
    scene.signal("-KILL", &scene.main_pid());
    assert_eq!(one.says(), "ConnectionResetError");
    scene.web_connects();
    scene.systemd.write(CONFIG, &config(&scene.world, ""));
    scene.is("ActiveState", "active");
    scene.is_captured();
}

/// In iptables mode rules go on steering for a second.
#[test]
fn nobody_is_refused_by_the_rules_of_a_dead_agent() {
    let mut client = None;
    let scene = scene_with("", |world, _, _| {
        let client = client.insert(world.pod());
        format!(
            "{}- {{name: client, netns: {}, mode: iptables, acceleration: off}}\n",
            config(world, ""),
            client.netns
        )
    });
    let client = client.expect("a pod");
    let is_captured = || {
        wait::until("its connections are carried", SECONDS, || {
            let carried = scene.carried_for("client");
            let mut one = Script::start(&client, ONE, &[&scene.server.v4]);
            assert_eq!(
                (one.says(), one.says()),
                ("connected".into(), "server".into())
            );
            wait::pause(Duration::from_millis(100));
            (scene.carried_for("client") > carried).then_some(())
        });
    };
    is_captured();
    let stream = Stream::begin(&client, &scene.server.v4, 80);
    let deaths = 3;
    for _ in 0..deaths {
        scene.kill();
        is_captured();
    }
    stream.was_answered(deaths);
    let carried = scene.carried_for("client");
    let mut one = scene.somebody_waits(&client);
    scene.kill();
    assert_eq!(one.says(), "server");
    wait::until("it is told of", SECONDS, || {
        (scene.carried_for("client") > carried).then_some(())
    });
    scene.systemd.systemctl("stop", "shunt.service");
    assert_eq!(scene.kept(), 0);
    assert_eq!(client.says("ss", &["-Hltn"]), "");
}

/// TCP on port 8080 of the host, to the server.
fn bootstrap(world: &World, host: &Pod, server: &Pod) -> String {
    let file = world.dir.path().join("bootstrap.yaml");
    let (host, server) = (&host.v4, &server.v4);
    let text = format!(
        "static_resources:\n  listeners:\n  - name: tcp\n    address: {{socket_address: {{address: {host}, \
         port_value: 8080}}}}\n    filter_chains: [{{filters: [{{name: tcp, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: \
         server}}}}]}}]\n  clusters:\n  - name: server\n    load_assignment: {{cluster_name: server, endpoints: \
         [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {server}, port_value: 80}}}}}}}}]}}]}}\n"
    );
    std::fs::write(&file, text).expect("written");
    config(world, &format!("bootstrap: {}\n", file.display()))
}

/// They are nobody's but the node's, who comes there has no other way.
#[test]
fn nobody_is_refused_at_the_nodes_own_listeners() {
    let scene = scene_with("", bootstrap);
    scene.is_captured();
    let stranger = scene.world.pod();
    let stream = Stream::begin(&stranger, &scene.host.v4, 8080);
    scene.kill();
    scene.is_captured();
    let before = scene.main_pid();
    scene.systemd.systemctl("restart", "shunt.service");
    scene.restarted(&before);
    scene.is_captured();
    scene.kill();
    scene.is_captured();
    stream.was_answered(3);
    // Taken out of the bootstrap, it is not kept either.
    scene.systemd.write(CONFIG, "workloads: []\n");
    wait::until("it is closed", SECONDS, || {
        (!scene.host.says("ss", &["-Hltn"]).contains(":8080")).then_some(())
    });
    scene.systemd.systemctl("stop", "shunt.service");
    assert_eq!(scene.kept(), 0);
    assert_eq!(scene.host.says("ss", &["-Hltn"]), "");
}
