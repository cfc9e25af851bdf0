//! `shunt explain` tells what really happens: a captured connection has its line in the access log, another has none.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use shunt_tests::agent::{binary, signal};
use shunt_tests::{Agent, AgentBuilder, Pod, Running, World, require, wait};

mod ebpf {
    #[test]
    fn what_is_explained_happens() {
        super::what_is_explained_happens("ebpf");
    }
    #[test]
    fn a_stopped_agent_is_told() {
        super::a_stopped_agent_is_told("ebpf");
    }
}

mod iptables {
    #[test]
    fn what_is_explained_happens() {
        super::what_is_explained_happens("iptables");
    }
    #[test]
    fn a_stopped_agent_is_told() {
        super::a_stopped_agent_is_told("iptables");
    }
}

struct Scene {
    world: World,
    client: Pod,
    server: Pod,
    stranger: Pod,
}

fn scene() -> Scene {
    require::everything();
    let world = World::new();
    let (client, server, stranger) = (world.pod(), world.pod(), world.pod());
    Scene {
        world,
        client,
        server,
        stranger,
    }
}

impl Scene {
    fn agent(&self, mode: &str) -> Agent {
        let outbound =
            "outbound: {exclude_ports: [\"81\", \"8000-8100\"], exclude_cidrs: [fd66::/64]}";
        AgentBuilder::new(&self.world, mode)
            .enrol("client", &self.client, outbound)
            .enrol("web", &self.server, "inbound: {exclude_ports: [\"82\"]}")
            .start()
    }
}

/// Greets whoever connects, on ports 80 to 82.
fn greeter(pod: &Pod) -> Running {
    let script = "import selectors, socket\ns = selectors.DefaultSelector()\n\
         for port in (80, 81, 82):\n\
         \x20   l = socket.create_server(('::', port), family=socket.AF_INET6, dualstack_ipv6=True)\n\
         \x20   s.register(l, selectors.EVENT_READ)\n\
         while True:\n\
         \x20   for key, _ in s.select():\n        c, _ = key.fileobj.accept(); c.sendall(b'hello'); c.close()\n";
    let running = pod.spawn("python3", &["-c", script]);
    pod.wait_for_listener(82);
    running
}

/// What a connection brings: the greeting, or the name of the exception.
fn connect(from: &Pod, host: &str, port: u16) -> String {
    from.python(&format!(
        "import socket\n\
         try: print(socket.create_connection(('{host}', {port}), 5).recv(9).decode())\n\
         except OSError as error: print(type(error).__name__)"
    ))
}

fn shunt(agent: &Agent, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(binary())
        .arg("explain")
        .arg("--socket")
        .arg(agent.dir.join("admin.sock"))
        .args(args)
        .output()
        .expect("shunt runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn explained(agent: &Agent, args: &[&str]) -> Value {
    let (code, stdout, stderr) = shunt(agent, &[&["-o", "json"], args].concat());
    assert_eq!(code, Some(0), "{args:?}: {stderr}");
    let answer: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(answer["drift"], serde_json::json!([]), "{answer:#}");
    assert_eq!(answer["doubts"], serde_json::json!([]), "{answer:#}");
    assert_eq!(answer["gate"]["holds"], true, "{answer:#}");
    answer
}

fn at(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn what_is_explained_happens(mode: &str) {
    let scene = scene();
    let (client, server, stranger) = (&scene.client, &scene.server, &scene.stranger);
    let _servers = (greeter(server), greeter(client), greeter(stranger));
    let agent = scene.agent(mode);
    let mut captured = Vec::new();

    for (host, port, rule) in [
        (&stranger.v4, 80, "capture"),
        (&stranger.v4, 81, "excluded_port"),
        (&stranger.v6, 80, "excluded_address"),
        (&client.v4, 80, "own_address"),
        (&client.v6, 80, "own_address"),
        (&"127.0.0.1".to_owned(), 80, "loopback"),
        (&stranger.v4, 82, "capture"),
    ] {
        let to = at(host, port);
        let answer = explained(&agent, &["client", &to]);
        assert_eq!(answer["rule"], rule, "{answer:#}");
        assert_eq!(connect(client, host, port), "hello", "{to}");
        if answer["outcome"] == "captured" {
            captured.push(to);
        }
    }
    for (host, port, rule) in [
        (&server.v4, 80, "capture"),
        (&server.v6, 81, "capture"),
        (&server.v4, 82, "excluded_port"),
        (&server.v4, 83, "not_listening"),
    ] {
        let to = at(host, port);
        let from = if host.contains(':') {
            &stranger.v6
        } else {
            &stranger.v4
        };
        let answer = explained(&agent, &["--inbound", "--from", from, "default/web", &to]);
        assert_eq!(answer["rule"], rule, "{answer:#}");
        assert_eq!(answer["listening"]["holds"], port != 83, "{answer:#}");
        let said = connect(stranger, host, port);
        assert_eq!(said == "hello", port != 83, "{to}: {said}");
        if answer["outcome"] == "captured" {
            captured.push(to);
        }
    }
    assert!(captured.len() >= 4, "{captured:?}");
    let mut logged: Vec<String> = agent
        .lines(captured.len())
        .iter()
        .map(|line| line["original_dst"].as_str().expect("text").to_owned())
        .collect();
    logged.sort();
    captured.sort();
    assert_eq!(logged, captured);
    words_for_people(&agent, stranger, mode);
}

/// Tables, and what is not answerable.
fn words_for_people(agent: &Agent, other: &Pod, mode: &str) {
    let (code, table, _) = shunt(agent, &["client", &at(&other.v4, 8050)]);
    assert_eq!(code, Some(0));
    for word in [
        mode,
        "direct, by rule excluded_port",
        "exclude_ports: 8000-8100",
        "gate: fresh",
    ] {
        assert!(table.contains(word), "{word} in\n{table}");
    }
    let evidence = if mode == "ebpf" {
        "SHUNT_RULES[set"
    } else {
        "--dport 8000:8100"
    };
    assert!(table.contains(evidence), "{evidence} in\n{table}");
    let (code, _, stderr) = shunt(agent, &["nobody", "10.0.0.1:80"]);
    assert_eq!(
        (code, stderr.contains("no workload nobody")),
        (Some(1), true),
        "{stderr}"
    );
    for wrong in [
        &["client"][..],
        &["client", "10.0.0.1"],
        &["--from", "10.0.0.1", "client", "10.0.0.1:80"],
        &["--inbound", "--from", "10.0.0.1", "client", "[fd00::1]:80"],
    ] {
        assert_eq!(shunt(agent, wrong).0, Some(64), "{wrong:?}");
    }
}

/// Nobody can answer then; the command must not hang.
fn a_stopped_agent_is_told(mode: &str) {
    let scene = scene();
    let _server = greeter(&scene.server);
    let agent = scene.agent(mode);
    let to = at(&scene.server.v4, 80);
    explained(&agent, &["client", &to]);
    for pid in [agent.worker_pid().expect("a data plane"), agent.pid()] {
        signal("-STOP", pid);
        let start = Instant::now();
        let (code, _, stderr) = shunt(&agent, &["client", &to]);
        let took = start.elapsed();
        signal("-CONT", pid);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains("did not answer within 4 s"), "{stderr}");
        assert!(took < Duration::from_secs(10), "{took:?}");
        wait::until("it answers again", Duration::from_secs(10), || {
            let (code, stdout, _) = shunt(&agent, &["-o", "json", "client", &to]);
            let answer: Value = serde_json::from_str(&stdout).unwrap_or_default();
            (code == Some(0) && answer["outcome"] == "captured").then_some(())
        });
    }
    let socket = scene.world.dir.path().join("nobody.sock");
    let nobody = Command::new(binary())
        .args(["explain", "--socket"])
        .arg(socket)
        .args(["client", &to])
        .output()
        .expect("shunt runs");
    assert_eq!(nobody.status.code(), Some(1));
}
