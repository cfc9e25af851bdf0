//! `on_failure: closed`: without a living agent there is an error at connect, and nothing goes past it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use shunt_tests::agent::{binary, signal};
use shunt_tests::load::{list, program};
use shunt_tests::{
    Agent, AgentBuilder, Bpffs, Load, Pod, Running, World, in_both_modes, require, wait,
};

const PORT: u16 = 7000;
const ANSWERED: i64 = 0;
const REFUSED: i64 = 111;

struct Scene {
    /// First: unmounted before the world's directory goes.
    bpffs: Bpffs,
    world: World,
    client: Pod,
    server: Pod,
    /// Not enrolled.
    stranger: Pod,
    _servers: [Running; 2],
}

fn scene() -> Scene {
    require::everything();
    let world = World::new();
    let (client, server, stranger) = (world.pod(), world.pod(), world.pod());
    let port = PORT.to_string();
    let servers = [&server, &stranger].map(|pod| {
        let running = pod.spawn(
            &program(),
            &["server", "--token", "closed", "--port", &port],
        );
        pod.wait_for_listener(PORT);
        running
    });
    Scene {
        bpffs: Bpffs::mount(world.dir.path()),
        world,
        client,
        server,
        stranger,
        _servers: servers,
    }
}

impl Scene {
    fn agent(&self, mode: &str) -> Agent {
        AgentBuilder::new(&self.world, mode)
            .set(&format!("bpffs: {}/shunt", self.bpffs.0))
            .enrol("client", &self.client, "on_failure: closed")
            .enrol("server", &self.server, "on_failure: closed")
            .start()
    }

    /// Outbound and inbound, both families.
    fn dial(&self) -> Vec<(i64, f64)> {
        let pairs = [
            (&self.client, &self.stranger),
            (&self.stranger, &self.server),
        ];
        let dial = |(from, to): (&Pod, &Pod)| {
            let addresses = [&to.v4, &to.v6].map(|ip| ip.parse().expect("an address"));
            addresses.map(|ip| dial(from, SocketAddr::new(ip, PORT)))
        };
        pairs.into_iter().flat_map(dial).collect()
    }

    fn all(&self, code: i64) -> bool {
        self.dial().iter().all(|(said, _)| *said == code)
    }

    #[track_caller]
    fn refuses(&self, when: &str) {
        for (code, seconds) in self.dial() {
            assert_eq!(code, REFUSED, "{when}, after {seconds} s");
            assert!(seconds < 1.0, "{when}: {seconds} s");
        }
    }

    fn is_served_by(&self, agent: &Agent) {
        wait::until("it serves", Duration::from_secs(5), || {
            let lines = agent.access_log().len();
            (self.all(ANSWERED) && agent.access_log().len() >= lines + 4).then_some(())
        });
    }

    /// Connections without end, outbound and inbound.
    fn load(&self) -> [Load; 2] {
        let pairs = [
            (&self.client, &self.stranger),
            (&self.stranger, &self.server),
        ];
        pairs.map(|(from, to)| {
            let to =
                [&to.v4, &to.v6].map(|ip| SocketAddr::new(ip.parse().expect("an address"), PORT));
            let to = list(&to);
            let args = ["client", "--token", "closed", "--to", &to, "--rate", "100"];
            let more = ["--threads", "1", "--timeout-ms", "1000"];
            Load::start(from, &[&args[..], &more].concat())
        })
    }

    fn states(&self) -> [String; 3] {
        [&self.client, &self.server, &self.stranger].map(Pod::state)
    }

    fn has_pins(&self) -> bool {
        Path::new(&self.bpffs.0).join("shunt").exists()
    }
}

/// What a connect says, and how long that takes: its errno, 0 when it was answered, -1 when it was not.
fn dial(pod: &Pod, to: SocketAddr) -> (i64, f64) {
    let script = format!(
        "import socket, time\nbegun = time.monotonic()\n\
         try:\n    s = socket.create_connection(('{}', {}), 3)\n    code = 0 if s.recv(99) else -1\n\
         except socket.timeout: code = -1\n\
         except OSError as error: code = error.errno\n\
         print(code, time.monotonic() - begun)",
        to.ip(),
        to.port()
    );
    let said = pod.python(&script);
    let (code, seconds) = said.split_once(' ').expect("two words");
    (
        code.parse().expect("a number"),
        seconds.parse().expect("a number"),
    )
}

in_both_modes!(
    closed_is_an_error_at_connect_and_never_a_leak,
    a_data_plane_without_a_supervisor_is_no_leak,
);

fn closed_is_an_error_at_connect_and_never_a_leak(mode: &str) {
    let scene = scene();
    let before = scene.states();
    let mut agent = scene.agent(mode);
    let serves = |agent: &Agent| scene.is_served_by(agent);
    serves(&agent);
    let worker = agent.worker_pid().expect("a data plane");
    signal("-STOP", worker);
    wait::pause(Duration::from_millis(2500));
    scene.refuses("the data plane is stuck");
    signal("-CONT", worker);
    serves(&agent);

    assert_eq!(scene.has_pins(), mode == "ebpf");
    let occupied = [&scene.client, &scene.server].map(Pod::occupied);
    agent.kill();
    signal("-KILL", worker);
    scene.refuses("both are dead");
    wait::pause(Duration::from_secs(2));
    scene.refuses("both are long dead");
    // Nothing leaks while the next one starts: whoever is answered is answered through it.
    let lines = agent.access_log().len();
    let served = std::thread::scope(|scope| {
        let dialling = scope.spawn(|| {
            let dials = (0..12).map(|_| {
                dial(
                    &scene.client,
                    SocketAddr::new(scene.stranger.v4.parse().expect("an address"), PORT),
                )
            });
            dials.filter(|(code, _)| *code == ANSWERED).count()
        });
        agent.restart();
        dialling.join().expect("no panic")
    });
    wait::until("all are accounted for", Duration::from_secs(5), || {
        (agent.access_log().len() >= lines + served).then_some(())
    });
    serves(&agent);

    drop(occupied);
    agent.kill();
    wait::until("cleanup takes everything", Duration::from_secs(5), || {
        let mut cleanup = Command::new(binary());
        let cleaned = cleanup
            .args(["cleanup", "-c"])
            .arg(agent.dir.join("shunt.yaml"))
            .output();
        assert!(cleaned.expect("runs").status.success());
        (scene.states() == before && !scene.has_pins()).then_some(())
    });
    assert!(scene.all(ANSWERED), "not open after cleanup");
    // In order, nothing stays.
    agent.restart();
    serves(&agent);
    assert!(agent.terminate().success());
    assert_eq!(scene.states(), before);
    assert!(!scene.has_pins());
    assert!(scene.all(ANSWERED), "not open after the end");
}

/// The data plane serves whoever still reaches it; everybody else has an error at once.
fn a_data_plane_without_a_supervisor_is_no_leak(mode: &str) {
    let scene = scene();
    let mut agent = scene.agent(mode);
    scene.is_served_by(&agent);
    let _occupied = [&scene.client, &scene.server].map(Pod::occupied);
    let served = |agent: &Agent| {
        let lines = agent.access_log().into_iter();
        lines.filter(|line| line["bytes_sent"] != 0).count() as u64
    };
    let before = served(&agent);
    let load = scene.load();
    wait::until("the load is served", Duration::from_secs(10), || {
        (served(&agent) > before + 50).then_some(())
    });
    agent.kill();
    // Through all that may happen: gates open after one second, the data plane ends after one and a half.
    wait::pause(Duration::from_secs(3));
    let (mut answered, mut refused) = (0, 0);
    for load in load {
        let report = load.finish();
        assert_eq!(report["wrong"], serde_json::json!([]), "{report:#}");
        for (error, count) in report["errors"].as_object().expect("a table") {
            let (errno, count) = (
                ["connect: connection ", "read: connection "],
                count.as_u64().expect("a number"),
            );
            // A SYN that meets the listener in the instant it closes is dropped by the kernel: TCP says it again after a second.
            let is_late = error.starts_with("connect: no sign") && count <= 2;
            assert!(
                is_late || errno.iter().any(|errno| error.starts_with(errno)),
                "{report:#}"
            );
            refused += count;
        }
        answered += report["answered"].as_u64().expect("a number");
    }
    assert!(refused > 0, "nobody was refused: this test could not fail");
    // Whoever was answered was answered through the agent.
    wait::until("all are accounted for", Duration::from_secs(5), || {
        (served(&agent) >= before + answered).then_some(())
    });
    scene.refuses("the supervisor is long dead");
    agent.restart();
    scene.is_served_by(&agent);
}
