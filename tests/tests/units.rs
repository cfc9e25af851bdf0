//! Workloads without a namespace of their own, as the services of a host: each is its cgroup, whoever else is in the
//! namespace is left alone.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use shunt_tests::attachments::held;
use shunt_tests::greeter::{GREETER, at, greeter, reached};
use shunt_tests::{
    Agent, AgentBuilder, Bpffs, Pod, Running, Script, Unit, Way, World, require, wait, world,
};

const SECONDS: Duration = Duration::from_secs(10);
const PORTS: [u16; 3] = [80, 81, 82];
const NONE: [u16; 0] = [];

mod ebpf {
    #[test]
    fn each_has_its_own_policy() {
        super::each_has_its_own_policy(super::Way::EBPF);
    }
    #[test]
    fn a_pods_rules_know_them() {
        super::a_pods_rules_know_them(super::Way::EBPF);
    }
}
mod direct {
    #[test]
    fn each_has_its_own_policy() {
        super::each_has_its_own_policy(super::Way::DIRECT);
    }
    #[test]
    fn a_pods_rules_know_them() {
        super::a_pods_rules_know_them(super::Way::DIRECT);
    }
}

/// A host with two services that are enrolled and one that is not, and a server elsewhere.
struct Scene {
    /// First: unmounted before the world's directory goes.
    bpffs: Bpffs,
    a: Unit,
    b: Unit,
    stranger: Unit,
    server: Pod,
    host: Pod,
    world: World,
}

/// Neither may reach one port of the server, each another one.
fn scene() -> Scene {
    require::everything();
    let world = World::new();
    let (host, server) = (world.pod(), world.pod());
    let [a, b, stranger] =
        ["a.service", "b.service", "c.service"].map(|name| Unit::of(&world, &host, name));
    Scene {
        bpffs: Bpffs::mount(world.dir.path()),
        a,
        b,
        stranger,
        server,
        host,
        world,
    }
}

impl Scene {
    fn builder(&self) -> AgentBuilder<'_> {
        let deny = |name: &str, port: u16| {
            format!(
                "- {{action: deny, direction: outbound, workload: {{name: {name}}}, ports: [\"{port}\"]}}"
            )
        };
        AgentBuilder::new(&self.world, "ebpf")
            .on(&self.host)
            .set(&format!("bpffs: {}/shunt", self.bpffs.0))
            .set(&format!("policy:\n{}\n{}", deny("a", 81), deny("b", 82)))
    }

    fn agent(&self, more: &str) -> Agent {
        self.builder()
            .enrol_unit("a", &self.a, more)
            .enrol_unit("b", &self.b, more)
            .start()
    }

    fn units(&self) -> [&Unit; 3] {
        [&self.a, &self.b, &self.stranger]
    }

    fn server(&self) -> Running {
        greeter(&self.server, "server", &PORTS)
    }

    /// Which ports of the server it reaches, by each family.
    fn reaches(&self, unit: &Unit) -> [Vec<u16>; 2] {
        let reaches = |to: &SocketAddr| reached(unit, *to, 1) == ["server"];
        let of = |family: usize| {
            let ports = PORTS.into_iter();
            ports
                .filter(|port| reaches(&at(&self.server, *port)[family]))
                .collect()
        };
        [of(0), of(1)]
    }

    fn ends_up_reaching(&self, unit: &Unit, ports: &[u16]) {
        wait::until("it reaches these ports alone", SECONDS, || {
            (self.reaches(unit) == [ports, ports]).then_some(())
        });
    }
}

/// How many of the agent's programs are attached to its cgroup.
fn links(agent: &Agent, unit: &Unit) -> usize {
    let id = fs::metadata(&unit.cgroup).expect("there").ino().to_string();
    held(agent.pid(), &[("cgroup_id", &id)], "link_id").len()
}

/// The workloads of the lines, and how each connection ended.
fn told(lines: &[Value]) -> Vec<(String, String)> {
    let field = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
    let mut told: Vec<_> = lines
        .iter()
        .map(|line| (field(line, "workload"), field(line, "close_reason")))
        .collect();
    told.sort();
    told
}

fn each_has_its_own_policy(way: Way) {
    let scene = scene();
    let mut heard = Script::start(&scene.server, GREETER, &["server", "80", "81", "82"]);
    scene.server.wait_for_listener(82);
    let before = scene.host.state();
    let mut agent = scene.agent(way.more);
    for (unit, ports) in scene
        .units()
        .into_iter()
        .zip([&[80, 82][..], &[80, 81], &PORTS])
    {
        assert_eq!(
            scene.reaches(unit),
            [ports, ports],
            "{}",
            unit.cgroup.display()
        );
    }
    let lines = agent.lines(12);
    let times = |workload: &str, reason: &str, count| {
        vec![(format!("default/{workload}"), reason.to_owned()); count]
    };
    let all = [
        times("a", "finished", 4),
        times("a", "policy_denied", 2),
        times("b", "finished", 4),
        times("b", "policy_denied", 2),
    ];
    assert_eq!(told(&lines), all.concat());
    for line in lines
        .iter()
        .filter(|line| line["close_reason"] == "finished")
    {
        assert_eq!(line["path"], way.path, "{line}");
        assert_eq!(line["original_dst"], line["upstream"], "{line}");
    }
    for _ in 0..14 {
        let from = heard.says();
        assert!([&scene.host.v4, &scene.host.v6].contains(&&from), "{from}");
    }
    let reason = agent.workload("a")["mode_reason"].to_string();
    assert!(
        reason.contains("for outbound connections alone"),
        "{reason}"
    );
    assert!(agent.terminate().success());
    assert_eq!(scene.host.state(), before);
    for unit in scene.units() {
        assert_eq!(scene.reaches(unit), [PORTS, PORTS]);
    }
}

/// Hooks that know the workload by its namespace run for the services too, at the root of all cgroups.
fn a_pods_rules_know_them(way: Way) {
    let scene = scene();
    let _server = greeter(&scene.server, "server", &PORTS);
    let agent = scene
        .builder()
        .set("- {action: allow, direction: inbound, workload: {name: server}, peer: {workload: {name: a}}}")
        .set("- {action: deny, direction: inbound, workload: {name: server}, ports: [\"80\"]}")
        .enrol_unit("a", &scene.a, way.more)
        .enrol_unit("b", &scene.b, way.more)
        .enrol_without_cgroup("server", &scene.server)
        .start();
    for (unit, ports) in scene
        .units()
        .into_iter()
        .zip([&[80, 82][..], &[81], &[81, 82]])
    {
        assert_eq!(
            scene.reaches(unit),
            [ports, ports],
            "{}",
            unit.cgroup.display()
        );
    }
    let lines = agent.lines(18);
    let mut said: Vec<_> = lines
        .iter()
        .map(|line| (line["workload"].clone(), line["peer_workload"].clone()))
        .collect();
    said.sort_by_key(|(workload, _)| workload.to_string());
    let [a, b, server] = ["default/a", "default/b", "default/server"].map(Value::from);
    let by_units = [a, b].map(|unit| vec![(unit, server.clone()); 6]).concat();
    assert_eq!(said[..12], by_units);
    assert_eq!(said[12..], vec![(server, Value::Null); 6]);
}

#[test]
fn without_the_agent_each_gets_what_it_chose() {
    let scene = scene();
    let _server = scene.server();
    let build = |of_a: &str| {
        scene
            .builder()
            .enrol_unit(
                "a",
                &scene.a,
                &format!("acceleration: off, on_failure: {of_a}"),
            )
            .enrol_unit("b", &scene.b, "acceleration: off")
    };
    let mut agent = build("closed").start();
    assert_eq!(scene.reaches(&scene.a), [[80, 82]; 2]);
    agent.kill();
    scene.ends_up_reaching(&scene.a, &NONE);
    for unit in [&scene.b, &scene.stranger] {
        assert_eq!(scene.reaches(unit), [PORTS; 2]);
    }
    agent.restart();
    // What the dead one has left refuses a moment longer.
    scene.ends_up_reaching(&scene.a, &[80, 82]);
    let lines = agent.access_log().len();
    assert_eq!(scene.reaches(&scene.a), [[80, 82]; 2]);
    assert_eq!(scene.reaches(&scene.b), [[80, 81]; 2]);
    agent.lines(lines + 12);
    agent.kill();
    scene.ends_up_reaching(&scene.a, &NONE);
    // The next one has it otherwise.
    let mut agent = build("open").start();
    agent.kill();
    scene.ends_up_reaching(&scene.a, &PORTS);
}

#[test]
fn a_service_that_is_started_anew_is_captured_again() {
    let scene = scene();
    let _server = scene.server();
    let agent = scene.agent("acceleration: off");
    scene.a.stop();
    assert_eq!(scene.reaches(&scene.b), [[80, 81]; 2]);
    wait::until("it is missed", SECONDS, || {
        let reason = agent.workload("a")["state_reason"].to_string();
        reason.contains("its service does not run").then_some(())
    });
    scene.a.start();
    scene.ends_up_reaching(&scene.a, &[80, 82]);
    assert_eq!(agent.workload("a")["state_reason"], "");
    // Nobody undoes anything, however often.
    for _ in 0..8 {
        scene.a.stop();
        scene.a.start();
        wait::until("it is hooked", SECONDS, || {
            (links(&agent, &scene.a) == 8).then_some(())
        });
    }
    scene.ends_up_reaching(&scene.a, &[80, 82]);
    assert!(!agent.log().contains("keeps undoing"));
}

#[test]
fn what_is_withdrawn_leaves_nothing() {
    let scene = scene();
    let _server = scene.server();
    let before = scene.host.state();
    let agent = scene.agent("acceleration: off");
    let links = |unit: &Unit| links(&agent, unit);
    assert_eq!(scene.units().map(links), [8, 8, 0]);
    assert_eq!(agent.admin("DELETE", "/workloads/default/a", "").0, 200);
    assert_eq!(scene.units().map(links), [0, 8, 0]);
    assert_eq!(scene.reaches(&scene.a), [PORTS; 2]);
    assert_eq!(scene.reaches(&scene.b), [[80, 81]; 2]);
    agent.lines(6);
    assert_eq!(agent.admin("DELETE", "/workloads/default/b", "").0, 200);
    wait::until("the listeners are gone", SECONDS, || {
        (scene.host.state() == before).then_some(())
    });
    assert_eq!(scene.units().map(links), [0; 3]);
    let cgroup = json!({"cgroup": scene.a.cgroup, "acceleration": "off"}).to_string();
    assert_eq!(agent.admin("PUT", "/workloads/default/a", &cgroup).0, 200);
    assert_eq!(scene.reaches(&scene.a), [[80, 82]; 2]);
}

#[test]
fn what_cannot_be_is_said() {
    let scene = scene();
    let agent = scene.agent("acceleration: off");
    let put = |cgroup: &Path, more: Value| {
        let mut body = json!({"cgroup": cgroup});
        body.as_object_mut()
            .expect("a mapping")
            .extend(more.as_object().expect("a mapping").clone());
        agent.admin("PUT", "/workloads/default/c", &body.to_string())
    };
    let own = &scene.stranger.cgroup;
    let root = world::cgroup2();
    for (cgroup, more, status, reason) in [
        (own, json!({"mode": "iptables"}), 400, "needs eBPF mode"),
        (
            own,
            json!({"inbound": {"exclude_ports": ["22"]}}),
            400,
            "are not captured",
        ),
        (&scene.a.cgroup, json!({}), 409, "of workload `default/a`"),
        (
            &scene.a.cgroup.join("inner"),
            json!({}),
            409,
            "of workload `default/a`",
        ),
        (&root, json!({}), 409, "overlaps with"),
    ] {
        let (said, told) = put(cgroup, more);
        assert!(told.contains(reason), "{told}");
        assert_eq!(said, status, "{told}");
    }
    for name in ["a", "b"] {
        assert_eq!(
            agent
                .admin("DELETE", &format!("/workloads/default/{name}"), "")
                .0,
            200
        );
    }
    let (said, told) = put(&root, json!({}));
    assert!(told.contains("the agent itself runs in"), "{told}");
    assert_eq!(said, 202, "{told}");
}

#[test]
fn their_processes_in_other_namespaces_are_not_theirs() {
    let scene = scene();
    let _server = scene.server();
    let elsewhere = scene.world.pod();
    let agent = scene.agent("acceleration: off");
    let inside = Pod {
        cgroup: scene.a.cgroup.clone(),
        ..elsewhere
    };
    for to in at(&scene.server, 81) {
        assert_eq!(reached(&inside, to, 1), ["server"]);
        assert_ne!(reached(&scene.a, to, 1), ["server"]);
    }
    agent.lines(2);
}

#[test]
fn explain_says_that_nothing_arrives_by_the_agent() {
    let scene = scene();
    let agent = scene.agent("acceleration: off");
    let explained = |question: String| -> Value {
        let (_, told) = agent.admin("GET", &format!("/explain?workload=a&{question}"), "");
        serde_json::from_str(&told).expect("JSON")
    };
    let told = explained(format!("destination={}:80", scene.server.v4));
    assert_eq!(told["outcome"], "captured", "{told:#}");
    assert_eq!(told["drift"], json!([]), "{told:#}");
    let told = explained(format!(
        "destination={}:80&direction=inbound",
        scene.host.v4
    ));
    assert_eq!(told["outcome"], "direct", "{told:#}");
    assert!(
        told.to_string()
            .contains("it cannot tell whose a connection is"),
        "{told:#}"
    );
}
