//! The unit under the real systemd, and services of its own that are enrolled by their cgroups.

mod store;

use std::fs;
use std::time::Duration;

use serde_json::Value;
use shunt_tests::agent::binary;
use shunt_tests::greeter::{GREETER, at, greeter, reached};
use shunt_tests::systemd::Systemd;
use shunt_tests::{Pod, Running, World, require, wait};

const SECONDS: Duration = Duration::from_secs(20);
const UNIT: &str = include_str!("../../../scripts/shunt.service");
const CONFIG: &str = "/etc/shunt/shunt.yaml";
const WEB: &str = "[Service]\nExecStart=/bin/sleep infinity\n";

struct Scene {
    systemd: Systemd,
    host: Pod,
    server: Pod,
    _greeter: Running,
    world: World,
}

/// `more`: of the unit.
fn scene(more: &str) -> Scene {
    scene_with(more, |world, _, _| config(world, ""))
}

/// With what the agent is to serve: made of the world, the host and the server.
fn scene_with(more: &str, config: impl FnOnce(&World, &Pod, &Pod) -> String) -> Scene {
    require::everything();
    let world = World::new();
    let (host, server) = (world.pod(), world.pod());
    let config = config(&world, &host, &server);
    let greeter = greeter(&server, "server", &[80]);
    let systemd = Systemd::boot(&world, &host);
    let etc = "/etc/systemd/system";
    for (unit, text) in [
        ("shunt.service", UNIT),
        ("shunt.service.d/test.conf", &format!("[Service]\n{more}")),
        ("web.service", WEB),
    ] {
        systemd.write(&format!("{etc}/{unit}"), text);
    }
    systemd.write(CONFIG, &config);
    let binary = binary().display().to_string();
    let linked = systemd.run(&["ln", "-s", &binary, "/usr/local/bin/shunt"]);
    assert!(linked.status.success(), "{linked:?}");
    systemd.systemctl("start", "web.service");
    systemd.systemctl("start", "shunt.service");
    Scene {
        systemd,
        host,
        server,
        _greeter: greeter,
        world,
    }
}

fn config(world: &World, more: &str) -> String {
    let at = world.dir.path().display();
    format!(
        "log: {{format: json, access: {at}/access.log}}\n{more}workloads:\n\
         - {{name: web, cgroup: system.slice/web.service, acceleration: off}}\n\
         - {{name: batch, cgroup: batch.slice, acceleration: off}}\n"
    )
}

impl Scene {
    /// Connections of the service that the agent has carried.
    fn carried(&self) -> usize {
        self.carried_for("web")
    }

    fn carried_for(&self, name: &str) -> usize {
        let workload = format!("default/{name}");
        let lines = self.told();
        lines
            .iter()
            .filter(|line| line["workload"] == workload)
            .count()
    }

    fn told(&self) -> Vec<Value> {
        let log = fs::read_to_string(self.world.dir.path().join("access.log"));
        let log = log.unwrap_or_default();
        // The last piece is empty, or a line that is still being written.
        let (whole, _) = log.rsplit_once('\n').unwrap_or_default();
        let lines = whole.lines();
        lines
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    fn web_connects(&self) {
        let web = self.systemd.service("web.service");
        assert_eq!(reached(&web, at(&self.server, 80)[0], 1), ["server"]);
    }

    fn is_captured(&self) {
        wait::until("the service's connections are carried", SECONDS, || {
            let before = self.carried();
            self.web_connects();
            let after = || (self.carried() > before).then_some(());
            (0..20).find_map(|_| {
                wait::pause(Duration::from_millis(10));
                after()
            })
        });
    }

    fn is(&self, name: &str, value: &str) {
        wait::until(&format!("{name} is {value}"), SECONDS, || {
            (self.systemd.property("shunt.service", name) == value).then_some(())
        });
    }
}

#[test]
fn starts_reloads_restarts_and_stops() {
    let scene = scene("");
    let systemd = &scene.systemd;
    scene.is("ActiveState", "active");
    scene.is("StatusText", "1 of 2 workloads served");
    scene.is_captured();
    // A file that is wrong is told of, and what was in force stays.
    systemd.write(CONFIG, "mode: fast\n");
    let reload = systemd.run(&["systemctl", "reload", "shunt.service"]);
    assert!(!reload.status.success());
    scene.is_captured();
    systemd.write(CONFIG, &config(&scene.world, "concurrency: 1\n"));
    systemd.systemctl("reload", "shunt.service");
    scene.is("ActiveState", "active");
    for unit in ["web.service", "shunt.service"] {
        systemd.systemctl("restart", unit);
        scene.is_captured();
    }
    assert_eq!(systemd.property("shunt.service", "NRestarts"), "0");
    systemd.systemctl("stop", "shunt.service");
    assert_eq!(systemd.property("shunt.service", "Result"), "success");
    let carried = scene.carried();
    scene.web_connects();
    assert_eq!(scene.carried(), carried);
    let listening = scene.host.says("ss", &["-Hltn"]);
    assert_eq!(listening, "");
}

/// What it does first of all is captured, every time.
#[test]
fn a_service_in_a_slice_of_its_own_is_never_missed() {
    let scene = scene("");
    let systemd = &scene.systemd;
    let server = &scene.server.v4;
    let connects = format!(
        "[Service]\nType=oneshot\nSlice=batch.slice\n\
         ExecStart=/usr/bin/python3 -c \"import socket; socket.create_connection(('{server}', 80)).recv(9)\"\n"
    );
    systemd.write("/etc/systemd/system/batch.service", &connects);
    systemd.systemctl("daemon-reload", "--no-pager");
    // With it the slice is there.
    systemd.systemctl("start", "batch.service");
    scene.is("StatusText", "2 of 2 workloads served");
    let before = scene.carried_for("batch");
    for times in 1..=5 {
        systemd.systemctl("start", "batch.service");
        wait::until("its connection is told of", SECONDS, || {
            (scene.carried_for("batch") == before + times).then_some(())
        });
    }
}

/// With a namespace of its own a service is captured in both directions; the unit's hardening leaves both modes whole.
#[test]
fn services_with_namespaces_are_captured_both_ways() {
    let scene = scene("");
    let systemd = &scene.systemd;
    let web = systemd.service("web.service");
    let _host = greeter(&web, "host", &[8000]);
    let at = scene.world.dir.path().display();
    let mut file = format!("log: {{format: json, access: {at}/access.log}}\nworkloads:\n");
    let modes = [("ebpf", "10.77.1"), ("iptables", "10.77.2")];
    for (mode, net) in modes {
        let made = format!(
            "set -e; ip netns add {mode}; ip link add {mode} type veth peer name eth0 netns {mode}\n\
             ip addr add {net}.1/24 dev {mode}; ip link set {mode} up; ip -n {mode} link set lo up\n\
             ip -n {mode} addr add {net}.2/24 dev eth0; ip -n {mode} link set eth0 up\n"
        );
        let made = systemd.run(&["sh", "-c", &made]);
        assert!(made.status.success(), "{made:?}");
        let script = format!("{}/greeter.py", scene.world.dir.path().display());
        fs::write(&script, GREETER).expect("written");
        let unit = format!(
            "[Service]\nNetworkNamespacePath=/run/netns/{mode}\nExecStart=/usr/bin/python3 {script} {mode} 80\n"
        );
        systemd.write(&format!("/etc/systemd/system/{mode}.service"), &unit);
        systemd.systemctl("daemon-reload", "--no-pager");
        systemd.systemctl("start", &format!("{mode}.service"));
        file += &format!(
            "  - {{name: {mode}, netns: {mode}, cgroup: system.slice/{mode}.service, mode: {mode}, acceleration: off}}\n"
        );
    }
    systemd.write(CONFIG, &file);
    scene.is("StatusText", "2 of 2 workloads served");
    for (mode, net) in modes {
        let connects = format!(
            "import socket; print(socket.create_connection(('{net}.1', 8000), 5).recv(9).decode())"
        );
        let inside = format!(
            "echo 0 > /sys/fs/cgroup/system.slice/{mode}.service/cgroup.procs; exec \"$@\""
        );
        let netns = format!("--net=/run/netns/{mode}");
        let command = [
            "sh", "-c", &inside, "sh", "nsenter", &netns, "python3", "-c", &connects,
        ];
        let said = systemd.run(&command);
        assert_eq!(String::from_utf8_lossy(&said.stdout), "host\n", "{said:?}");
        let to = format!("{net}.2:80").parse().expect("an address");
        wait::until("it listens", SECONDS, || {
            (reached(&web, to, 1) == [mode]).then_some(())
        });
        wait::until("both are told of", SECONDS, || {
            let told = |direction| {
                scene.told().iter().any(|line| {
                    line["workload"] == format!("default/{mode}") && line["direction"] == direction
                })
            };
            (told("outbound") && told("inbound")).then_some(())
        });
    }
}

#[test]
fn a_supervisor_that_hangs_is_replaced() {
    let scene = scene("WatchdogSec=2\n");
    scene.is_captured();
    let main = || scene.systemd.property("shunt.service", "MainPID");
    let before = main();
    let stopped = scene.systemd.run(&["kill", "-STOP", &before]);
    assert!(stopped.status.success(), "{stopped:?}");
    scene.is("NRestarts", "1");
    scene.is("ActiveState", "active");
    assert_ne!(main(), before);
    scene.is_captured();
}
