//! `services`: connections to their addresses go to their endpoints, and what changes is in force at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use shunt_tests::greeter::{at, greeter, reached};
use shunt_tests::ongoing::Ongoing;
use shunt_tests::{
    Agent, AgentBuilder, Pair, Pod, Running, Way, World, number, on_every_way, require, wait,
};

on_every_way!(
    connections_go_to_endpoints,
    what_cannot_be_served_is_reset,
    endpoints_change_under_load,
    modes_may_differ,
);

/// Nobody has these.
const VIP: [&str; 2] = ["10.66.0.200:80", "[fd66::200]:80"];
/// Where endpoints listen.
const PORT: u16 = 8080;

struct Scene {
    world: World,
    client: Pod,
    /// The first two are enrolled, as `a` and `b`; `c` is not.
    endpoints: [Pod; 3],
}

fn scene() -> Scene {
    require::everything();
    let world = World::new();
    let client = world.pod();
    let endpoints = [world.pod(), world.pod(), world.pod()];
    Scene {
        world,
        client,
        endpoints,
    }
}

impl Scene {
    fn agent(&self, way: Way, services: &str) -> Agent {
        let [a, b, _] = &self.endpoints;
        AgentBuilder::new(&self.world, way.mode)
            .set(services)
            .enrol("client", &self.client, way.more)
            .enrol("a", a, way.more)
            .enrol("b", b, way.more)
            .start()
    }

    fn greeters(&self) -> Vec<Running> {
        let named = self.endpoints.iter().zip(["a", "b", "c"]);
        named
            .map(|(pod, name)| greeter(pod, name, &[PORT]))
            .collect()
    }
}

fn vip(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn quoted<T: ToString>(addresses: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = addresses
        .into_iter()
        .map(|a| format!("{:?}", a.to_string()))
        .collect();
    format!("[{}]", all.join(", "))
}

/// An entry of `services`, with both families.
fn service(name: &str, addresses: &[&str], endpoints: &[&Pod], balance: &str) -> String {
    let endpoints = quoted(endpoints.iter().flat_map(|pod| at(pod, PORT)));
    let addresses = quoted(addresses);
    format!(
        "  - {{name: {name}, addresses: {addresses}, endpoints: {endpoints}, balance: {balance}}}\n"
    )
}

fn counted(names: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name.as_str()).or_default() += 1;
    }
    counts
}

fn connections_go_to_endpoints(way: Way) {
    let scene = scene();
    let [a, b, c] = &scene.endpoints;
    let _greeters = scene.greeters();
    let spread = ["10.66.0.201:80", "[fd66::201]:80"];
    let all = [a, b, c];
    let services =
        service("web", &VIP, &all, "round_robin") + &service("any", &spread, &all, "random");
    // More than the data plane is told in one message.
    let others: String = (0..3000)
        .map(|at| {
            (
                format!("other-{at}"),
                format!("10.99.{}.{}:80", at / 256, at % 256),
            )
        })
        .map(|(name, address)| service(&name, &[&address], &[], "random"))
        .collect();
    let agent = scene.agent(way, &format!("services:\n{services}{others}"));

    for (family, address) in VIP.into_iter().enumerate() {
        let names = reached(&scene.client, vip(address), 9);
        assert_eq!(
            names,
            ["a", "b", "c", "a", "b", "c", "a", "b", "c"],
            "{address}"
        );
        // Flows that end together may be told in any order.
        let mut lines = agent.lines(9 * (family + 1));
        lines.retain(|line| line["original_dst"] == address);
        for (pod, owner) in all.iter().zip([Some("default/a"), Some("default/b"), None]) {
            let upstream = at(pod, PORT)[family].to_string();
            let there: Vec<_> = lines.iter().filter(|l| l["upstream"] == upstream).collect();
            assert_eq!(there.len(), 3, "{lines:#?}");
            for line in there {
                assert_eq!(line["direction"], "outbound", "{line}");
                assert_eq!(line["peer_workload"], json!(owner), "{line}");
                assert_eq!(line["path"], way.path, "{line}");
                assert_eq!(line["close_reason"], "finished", "{line}");
            }
        }
    }
    // Counted at both ends.
    assert_eq!(agent.workload("client")["connections"]["total"], 18);
    assert_eq!(agent.workload("a")["connections"]["total"], 6);

    let (status, answer) = agent.admin(
        "GET",
        "/explain?workload=client&destination=10.66.0.200:80",
        "",
    );
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let endpoints: Vec<String> = all.iter().map(|pod| at(pod, PORT)[0].to_string()).collect();
    let service = json!({"name": "web", "balance": "round_robin", "endpoints": endpoints});
    assert_eq!(answer["service"], service, "{answer:#}");
    let judged = answer["policy"].as_array().expect("a list");
    // By the client's rules, and by those of each that is enrolled.
    assert_eq!(judged.len(), 3 + 2, "{answer:#}");

    // 1 in 10^10 for one of three to be missed.
    for address in spread {
        let names = reached(&scene.client, vip(address), 60);
        let counts = counted(&names);
        assert_eq!(
            counts.keys().copied().collect::<Vec<_>>(),
            ["a", "b", "c"],
            "{counts:?}"
        );
    }
}

fn what_cannot_be_served_is_reset(way: Way) {
    let scene = scene();
    let [a, b, _] = &scene.endpoints;
    let _greeters = [greeter(a, "a", &[PORT])];
    // Nobody listens at b. Another endpoint is not tried for the connection that was to go there.
    let services = service("half", &VIP, &[a, b], "round_robin")
        + &service("none", &["10.66.0.201:80"], &[], "round_robin")
        + &service(
            "itself",
            &["10.66.0.202:80", "[fd66::202]:80"],
            &[&scene.client],
            "random",
        );
    let agent = scene.agent(way, &format!("services:\n{services}"));
    for address in VIP {
        let names = reached(&scene.client, vip(address), 4);
        assert_eq!(names[0], "a");
        assert_eq!(names[0], names[2]);
        assert!(names[1].ends_with("Error"), "{names:?}");
        assert_eq!(names[1], names[3]);
    }
    let mut lines = agent.lines(8);
    lines.retain(|line| line["close_reason"] != "finished");
    assert_eq!(lines.len(), 4, "{lines:#?}");
    for line in lines {
        assert_eq!(line["close_reason"], "connect_failed", "{line}");
        let detail = line["detail"].as_str().expect("a detail");
        assert!(
            detail.contains(&format!(":{PORT}: cannot connect")),
            "{line}"
        );
    }
    let names = reached(&scene.client, vip("10.66.0.201:80"), 1);
    assert!(names[0].ends_with("Error"), "{names:?}");
    let mut lines = agent.lines(9);
    lines.retain(|line| line["original_dst"] == "10.66.0.201:80");
    assert_eq!(lines[0]["close_reason"], "connect_failed", "{lines:?}");
    assert_eq!(
        lines[0]["detail"], "service none has no endpoint",
        "{lines:?}"
    );

    // A workload may be an endpoint of a service that it calls.
    let _itself = greeter(&scene.client, "itself", &[PORT]);
    for address in ["10.66.0.202:80", "[fd66::202]:80"] {
        assert_eq!(
            reached(&scene.client, vip(address), 2),
            ["itself", "itself"]
        );
    }
}

fn endpoints_change_under_load(way: Way) {
    let scene = scene();
    let [a, b, c] = &scene.endpoints;
    let _greeters = scene.greeters();
    let sets: [(&str, &[&Pod]); 3] = [("ab", &[a, b]), ("c", &[c]), ("abc", &[a, b, c])];
    let text = |pods: &[&Pod]| format!("services:\n{}", service("web", &VIP, pods, "round_robin"));
    let agent = scene.agent(way, &text(sets[0].1));
    let mut loads = VIP.map(|address| Ongoing::start(&scene.client, vip(address)));
    let mut now = text(sets[0].1);
    for round in 0..number("SHUNT_CHANGES", 3_usize) {
        for (name, pods) in sets {
            let next = text(pods);
            if round > 0 || name != "ab" {
                loads.iter_mut().for_each(|load| load.call("between"));
                agent.edit("services", &now, &next);
            }
            for load in &mut loads {
                load.call(name);
                load.goes_on(30);
            }
            now = next;
        }
    }
    for load in loads {
        let counts = load.counts();
        for (what, count) in &counts {
            let (word, said) = what.split_once(' ').expect("two words");
            let any = word == "between";
            let right = ["a", "b", "c"].contains(&said) && (any || word.contains(said));
            assert!(right, "{count} times {what}: {counts:?}");
        }
    }
    let mut lines = agent.access_log();
    lines.retain(|line| line["close_reason"] != "finished");
    assert!(lines.is_empty(), "{lines:#?}");
}

/// The client is served in one mode, its endpoint in the other; who is denied is reset here too.
fn modes_may_differ(way: Way) {
    let pair = Pair::new();
    let (client, server) = (&pair.client, &pair.server);
    let _greeter = greeter(server, "server", &[PORT]);
    let other = if way.mode == "ebpf" {
        "iptables"
    } else {
        "ebpf"
    };
    let web = service("web", &VIP, &[server], "random");
    let agent = AgentBuilder::new(&pair.world, way.mode)
        .set(&format!("services:\n{web}policy: []"))
        .enrol("client", client, way.more)
        .enrol("server", server, &format!("mode: {other}, {}", way.more))
        .start();
    // An application may ask by IPv6 for an IPv4 address.
    let addresses = [VIP[0], VIP[1], "[::ffff:10.66.0.200]:80"].map(vip);
    for address in addresses {
        assert_eq!(reached(client, address, 3), ["server"; 3], "{address}");
    }
    let deny = "policy: [{action: deny, direction: inbound, workload: {name: server}, peer: {workload: {name: client}}}]";
    agent.edit("policy", "policy: []", deny);
    for address in addresses {
        let said = reached(client, address, 1).remove(0);
        assert!(way.denied.contains(&said.as_str()), "{address}: {said}");
    }
    // A socket that was made ready before the programs were loaded is a stranger at an eBPF-mode server: more lines there.
    wait::until("a line for each", Duration::from_secs(5), || {
        let lines = agent.access_log();
        let made = lines.iter().filter(|line| line["direction"] == "outbound");
        (made
            .filter(|line| line["peer_workload"] == "default/server")
            .count()
            == 12)
            .then_some(())
    });
}
