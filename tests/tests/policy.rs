//! `policy`: who is denied never reaches anybody, who is allowed always does, and what changes is in force at once.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use shunt_tests::agent::{binary, signal};
use shunt_tests::greeter::{GREETER, at, greeter, reached};
use shunt_tests::ongoing::Ongoing;
use shunt_tests::{
    Agent, AgentBuilder, Pair, Pod, Script, Way, World, number, on_every_way, require, wait,
};

on_every_way!(
    the_first_rule_decides,
    endpoints_are_judged,
    labels_are_in_force_once_answered,
    rules_change_under_load,
);

struct Scene {
    world: World,
    web: Pod,
    other: Pod,
    db: Pod,
    /// Not enrolled.
    stranger: Pod,
}

fn scene() -> Scene {
    require::everything();
    let world = World::new();
    let (web, other, db, stranger) = (world.pod(), world.pod(), world.pod(), world.pod());
    Scene {
        world,
        web,
        other,
        db,
        stranger,
    }
}

impl Scene {
    /// Only `app: web` may reach the database; `app: other` may not reach some ports of the stranger. Nobody's
    /// connections to port 5440 are captured when they leave.
    fn agent(&self, way: Way) -> Agent {
        let (v4, v6) = (&self.stranger.v4, &self.stranger.v6);
        let policy = format!(
            "policy:\n\
             - {{action: allow, direction: inbound, workload: {{name: db}}, peer: {{workload: {{labels: {{app: web}}}}}}, ports: [\"5432\", \"5440\"]}}\n\
             - {{action: deny, direction: inbound, workload: {{name: db}}, peer: {{cidr: 0.0.0.0/0}}}}\n\
             - {{action: deny, direction: inbound, workload: {{name: db}}, peer: {{cidr: \"::/0\"}}}}\n\
             - {{action: deny, direction: outbound, workload: {{labels: {{app: other}}}}, peer: {{cidr: {v4}/32}}, ports: [\"81-90\"]}}\n\
             - {{action: deny, direction: outbound, workload: {{labels: {{app: other}}}}, peer: {{cidr: \"{v6}\"}}, ports: [\"81-90\"]}}"
        );
        let labelled = |app: &str| {
            let more = way.more;
            format!("labels: {{app: {app}}}, outbound: {{exclude_ports: [\"5440\"]}}, {more}")
        };
        AgentBuilder::new(&self.world, way.mode)
            .set(&policy)
            .enrol("web", &self.web, &labelled("web"))
            .enrol("other", &self.other, &labelled("other"))
            .enrol("db", &self.db, way.more)
            .start()
    }
}

/// One connection, and the line that it must leave.
struct Attempt<'a> {
    from: &'a Pod,
    to: SocketAddr,
    /// The server's name; `None`: denied.
    says: Option<&'a str>,
    /// Direction, workload and peer.
    told: (&'a str, &'a str, Option<&'a str>),
    /// Of a denied one.
    detail: Option<String>,
}

impl Attempt<'_> {
    fn is_made(&self, agent: &Agent, way: Way, lines: usize) {
        let Self { from, to, .. } = self;
        let said = reached(from, *to, 1).remove(0);
        match self.says {
            Some(name) => assert_eq!(said, name, "{} to {to}", from.v4),
            None => assert!(
                way.denied.contains(&said.as_str()),
                "{} to {to}: {said}",
                from.v4
            ),
        }
        let line = agent.lines(lines + 1).remove(lines);
        let reason = if self.says.is_some() {
            "finished"
        } else {
            "policy_denied"
        };
        let (direction, workload, peer) = self.told;
        assert_eq!(line["direction"], direction, "{line}");
        assert_eq!(line["workload"], format!("default/{workload}"), "{line}");
        let peer = peer.map(|peer| format!("default/{peer}"));
        assert_eq!(line["peer_workload"], json!(peer), "{line}");
        assert_eq!(line["original_dst"], to.to_string(), "{line}");
        assert_eq!(line["close_reason"], reason, "{line}");
        assert_eq!(line["detail"], json!(self.detail), "{line}");
        if self.says.is_none() {
            assert_eq!(line["response_flags"], "UAEX", "{line}");
            assert_eq!(line["upstream"], Value::Null, "{line}");
        }
    }
}

fn the_first_rule_decides(way: Way) {
    let scene = scene();
    let (web, other, db, stranger) = (&scene.web, &scene.other, &scene.db, &scene.stranger);
    let mut heard = Script::start(db, GREETER, &["db", "5432", "5433", "5440"]);
    db.wait_for_listener(5440);
    let _stranger = greeter(stranger, "stranger", &[80, 81]);
    let agent = scene.agent(way);
    let mut lines = 0;
    for (family, about_db, about_stranger) in [(0, 1, 3), (1, 2, 4)] {
        let ip = |pod: &Pod| at(pod, 1)[family].ip().to_string();
        let to = |pod: &Pod, port| at(pod, port)[family];
        let by_db = || Some(format!("policy[{about_db}] denies, inbound of default/db"));
        let by_other = Some(format!(
            "policy[{about_stranger}] denies, outbound of default/other"
        ));
        let out = |workload, peer| ("outbound", workload, peer);
        // What is not captured when it leaves comes from outside; its address says who it is.
        let into_db = |peer| ("inbound", "db", peer);
        let there = Some("stranger");
        for (from, to, says, told, detail) in [
            (web, to(db, 5432), Some("db"), out("web", Some("db")), None),
            (web, to(db, 5433), None, out("web", Some("db")), by_db()),
            (web, to(db, 5440), Some("db"), into_db(Some("web")), None),
            (other, to(db, 5432), None, out("other", Some("db")), by_db()),
            (other, to(db, 5440), None, into_db(Some("other")), by_db()),
            (stranger, to(db, 5432), None, into_db(None), by_db()),
            (other, to(stranger, 80), there, out("other", None), None),
            (other, to(stranger, 81), None, out("other", None), by_other),
            (web, to(stranger, 81), there, out("web", None), None),
        ] {
            Attempt {
                from,
                to,
                says,
                told,
                detail,
            }
            .is_made(&agent, way, lines);
            lines += 1;
        }
        // Who was denied was never connected: the database has heard of nobody else.
        assert_eq!([heard.says(), heard.says()], [ip(web), ip(web)]);
    }
    counters_tell(&agent);
    explained(&agent, &scene);

    // A new data plane knows the rules before it serves anybody.
    let old = agent.worker_pid().expect("a data plane");
    signal("-KILL", old);
    wait::until("another data plane", Duration::from_secs(10), || {
        let new = agent.worker_pid().filter(|new| *new != old);
        (new.is_some() && agent.admin("GET", "/ready", "").0 == 200).then_some(())
    });
    for to in at(db, 5433) {
        let said = reached(web, to, 1).remove(0);
        assert!(way.denied.contains(&said.as_str()), "{said}");
    }
}

/// 5 in 9 connections were denied, for each family.
fn counters_tell(agent: &Agent) {
    let metrics = agent.admin("GET", "/stats/prometheus", "").1;
    let denied = "shunt_connections_closed_total{reason=\"policy_denied\"} 10";
    assert!(metrics.lines().any(|line| line == denied), "{metrics}");
    // Once at each end that it reached: 2 of 4 connections each, of two families.
    assert_eq!(agent.workload("web")["connections"]["total"], 6);
    assert_eq!(agent.workload("other")["connections"]["total"], 6);
    assert_eq!(agent.workload("db")["connections"]["total"], 8);
}

fn explained(agent: &Agent, scene: &Scene) {
    let ask = |workload: &str, destination: &str, more: &str| -> Value {
        let path = format!("/explain?workload={workload}&destination={destination}{more}");
        let (status, body) = agent.admin("GET", &path, "");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    };
    let Scene { db, stranger, .. } = scene;
    let said = |server: &str,
                direction,
                workload,
                peer: Option<&str>,
                action,
                rule: Option<&str>| {
        json!({"server": server, "direction": direction, "workload": workload, "peer": peer, "action": action, "rule": rule})
    };
    let (web, to_db) = (Some("default/web"), Some("default/db"));
    let at = format!("{}:5433", db.v4);
    let expected = [
        said(&at, "outbound", "default/web", to_db, "allow", None),
        said(&at, "inbound", "default/db", web, "deny", Some("policy[1]")),
    ];
    assert_eq!(ask("web", &at, "")["policy"], json!(expected));
    let at = format!("[{}]:81", stranger.v6);
    let expected = [said(
        &at,
        "outbound",
        "default/other",
        None,
        "deny",
        Some("policy[4]"),
    )];
    let encoded = at.replace('[', "%5B").replace(']', "%5D");
    assert_eq!(ask("other", &encoded, "")["policy"], json!(expected));
    let at = format!("{}:5432", db.v4);
    let inbound = format!("&direction=inbound&from={}", stranger.v4);
    let expected = [said(
        &at,
        "inbound",
        "default/db",
        None,
        "deny",
        Some("policy[1]"),
    )];
    assert_eq!(ask("db", &at, &inbound)["policy"], json!(expected));
    // Nobody judges what is not captured.
    assert_eq!(
        ask("web", &format!("{}:5440", db.v4), "")["policy"],
        json!([])
    );
}

fn endpoints_are_judged(way: Way) {
    let pair = Pair::new();
    let (client, server) = (&pair.client, &pair.server);
    let _greeter = greeter(server, "server", &[8080, 8081]);
    // The service's own port is nobody's; the endpoint's is judged, and so is its owner.
    let settings = format!(
        "services:\n\
         - {{name: good, addresses: [\"10.66.0.200:80\"], endpoints: [\"{v4}:8080\"]}}\n\
         - {{name: bad, addresses: [\"10.66.0.200:81\"], endpoints: [\"{v4}:8081\"]}}\n\
         policy:\n\
         - {{action: deny, direction: outbound, peer: {{cidr: 10.66.0.200}}}}\n\
         - {{action: deny, direction: inbound, workload: {{name: server}}, peer: {{cidr: {client}}}, ports: [\"80-81\", \"8081\"]}}",
        v4 = server.v4,
        client = client.v4,
    );
    let agent = pair.both(way.mode, way.more).set(&settings).start();
    let to = |port| SocketAddr::new("10.66.0.200".parse().expect("an address"), port);
    assert_eq!(reached(client, to(80), 1), ["server"]);
    let said = reached(client, to(81), 1).remove(0);
    assert!(way.denied.contains(&said.as_str()), "{said}");
    let mut lines = agent.lines(2);
    lines.retain(|line| line["close_reason"] == "policy_denied");
    assert_eq!(lines[0]["original_dst"], "10.66.0.200:81", "{lines:?}");
    assert_eq!(lines[0]["peer_workload"], "default/server", "{lines:?}");
    assert_eq!(
        lines[0]["detail"],
        "policy[1] denies, inbound of default/server"
    );

    let output = Command::new(binary())
        .args(["explain", "client", "10.66.0.200:81", "--socket"])
        .arg(agent.dir.join("admin.sock"))
        .output()
        .expect("shunt runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let (at, from) = (
        format!("{}:8081", server.v4),
        "of default/client, peer default/server",
    );
    for line in [
        format!("service: bad, round robin over {at}"),
        format!("policy: {at} allowed by default, outbound {from}"),
        format!("policy: {at} DENIED by policy[1], inbound of default/server, peer default/client"),
    ] {
        assert!(text.lines().any(|told| told == line), "{line} in\n{text}");
    }
}

fn labels_are_in_force_once_answered(way: Way) {
    let pair = Pair::new();
    let _greeter = greeter(&pair.server, "server", &[8080]);
    let settings = "policy: [{action: deny, direction: inbound, workload: {labels: {a: s}}, peer: {workload: {labels: {a: c}}}}]";
    let agent = pair.both(way.mode, way.more).set(settings).start();
    let put = |name: &str, pod: &Pod, label: &str| {
        let (netns, cgroup) = (&pod.netns, pod.cgroup.display());
        let body = format!(
            "{{netns: {netns}, cgroup: {cgroup}, labels: {{a: {label}}}, {}}}",
            way.more
        );
        let (status, answer) = agent.admin("PUT", &format!("/workloads/default/{name}"), &body);
        assert_eq!(status, 200, "{answer}");
    };
    for (client, server, denied) in [("c", "x", false), ("c", "s", true), ("x", "s", false)] {
        put("client", &pair.client, client);
        put("server", &pair.server, server);
        for to in at(&pair.server, 8080) {
            let said = reached(&pair.client, to, 1).remove(0);
            let wanted = if denied { way.denied } else { &["server"] };
            assert!(
                wanted.contains(&said.as_str()),
                "{client} to {server}: {said}"
            );
        }
    }
}

/// Says back what it hears, on port 8081.
const ECHO: &str = "import socket\n\
     listener = socket.create_server(('', 8081))\n\
     c, _ = listener.accept()\n\
     while said := c.recv(100): c.sendall(said)\n";

/// Asks the echo for each line that it is told.
const ASK: &str = "import socket, sys\n\
     s = socket.create_connection((sys.argv[1], 8081), 10)\n\
     for line in sys.stdin: s.sendall(line.encode()); print(s.recv(100).decode(), end='', flush=True)\n";

fn rules_change_under_load(way: Way) {
    let pair = Pair::new();
    let (client, server) = (&pair.client, &pair.server);
    let _greeter = greeter(server, "server", &[8080]);
    let _echo = server.spawn("python3", &["-c", ECHO]);
    server.wait_for_listener(8081);
    let allow = "policy: []".to_owned();
    let deny = [
        "policy: [{action: deny, direction: inbound, workload: {name: server}, peer: {workload: {labels: {app: client}}}}]".to_owned(),
        "policy: [{action: deny, direction: outbound, peer: {workload: {name: server}}, ports: [\"8000-8100\"]}]".to_owned(),
        format!(
            "policy: [{{action: deny, direction: inbound, peer: {{cidr: {}}}}}, {{action: deny, direction: outbound, peer: {{cidr: {}}}}}]",
            client.v4, server.v6
        ),
    ];
    let agent = AgentBuilder::new(&pair.world, way.mode)
        .set(&allow)
        .enrol(
            "client",
            client,
            &format!("labels: {{app: client}}, {}", way.more),
        )
        .enrol("server", server, way.more)
        .start();
    let mut held = Script::start(client, ASK, &[&server.v4]);
    let mut still_talks = |line: &str| {
        held.tell(line);
        assert_eq!(held.says(), line);
    };
    still_talks("before");
    let mut loads = at(server, 8080).map(|to| Ongoing::start(client, to));
    for _ in 0..number("SHUNT_CHANGES", 1_usize) {
        for deny in &deny {
            for (now, next, word) in [(&allow, deny, "denied"), (deny, &allow, "allowed")] {
                loads.iter_mut().for_each(|load| load.call("between"));
                agent.edit("policy", now, next);
                for load in &mut loads {
                    load.call(word);
                    load.goes_on(30);
                }
                still_talks(word);
            }
        }
    }
    let mut denied = 0;
    for load in loads {
        let counts = load.counts();
        for (what, count) in &counts {
            let (word, said) = what.split_once(' ').expect("two words");
            let is_denied = way.denied.contains(&said);
            let right = match word {
                "allowed" => said == "server",
                "denied" => is_denied,
                _ => said == "server" || is_denied,
            };
            assert!(right, "{count} times {what}: {counts:?}");
            denied += if is_denied { *count } else { 0 };
        }
    }
    // Each left its line, and nothing else went wrong.
    wait::until("the last lines", Duration::from_secs(10), || {
        let lines = agent.access_log();
        let of = |reason: &str| {
            lines
                .iter()
                .filter(|line| line["close_reason"] == reason)
                .count()
        };
        let finished = of("finished");
        (of("policy_denied") as u64 == denied && finished + of("policy_denied") == lines.len())
            .then_some(())
    });
}
