//! What is captured, and when.

use std::time::Duration;

use shunt_tests::{Script, in_both_modes, wait};

use crate::scene::*;

in_both_modes!(
    other_datagrams_are_as_without_us,
    queries_go_directly_without_an_agent,
    closed_workloads_ask_nobody_without_an_agent,
    the_option_is_changed_live,
    more_resolvers_than_there_are_places_for,
    queries_notice_no_upgrade_of_the_data_plane,
);

/// Queries from two sockets, one after the other, until told to end. Then how many were asked, and how many not answered.
const ASKS: &str = "
import socket, sys, threading
over, counts, lock = threading.Event(), [0, 0], threading.Lock()
def ask():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3); s.connect((sys.argv[1], 53))
    number = 0
    while not over.is_set():
        number += 1
        said = b'%06d' % number
        s.send(said)
        try: lost = not s.recv(2048).endswith(said)
        except OSError: lost = True
        with lock: counts[0] += 1; counts[1] += lost
threads = [threading.Thread(target=ask) for _ in range(2)]
for thread in threads: thread.start()
print('begun', flush=True)
sys.stdin.readline()
over.set()
for thread in threads: thread.join()
print(*counts, flush=True)
";

fn queries_notice_no_upgrade_of_the_data_plane(mode: &str) {
    let scene = Scene::new();
    let _echo = python_server(&scene.resolver, ECHO);
    let agent = scene.agent(mode, "");
    let mut asks = Script::start(&scene.client, ASKS, &[&scene.resolver.v4]);
    assert_eq!(asks.says(), "begun");
    for _ in 0..4 {
        let serving = agent.worker_pid();
        let before = queries(&agent, 0).len();
        let (code, said) = agent.admin("POST", "/upgrade/data-plane", "");
        assert_eq!(code, 200, "{said}");
        wait::until("another serves", Duration::from_secs(10), || {
            (agent.worker_pid() != serving && agent.worker_pids().len() == 1).then_some(())
        });
        queries(&agent, before + 50);
    }
    asks.tell("end");
    let said = asks.says();
    let (asked, lost) = said.split_once(' ').expect("two numbers");
    let asked: usize = asked.parse().expect("a number");
    assert!(asked > 200 && lost == "0", "{lost} of {asked} were lost");
    // None of them went past the agent.
    queries(&agent, asked);
    // The agent as a whole is not replaced: it says why.
    let (code, said) = agent.admin("POST", "/upgrade/all", "");
    assert_ne!(code, 200);
    assert!(said.contains("has its DNS queries captured"), "{said}");
    assert_eq!(way(&scene.client, &scene.resolver.v4, 53), Way::ByTheAgent);
}

fn other_datagrams_are_as_without_us(mode: &str) {
    let scene = Scene::new();
    let _echo = [
        python_server(&scene.resolver, ECHO),
        python_server(&scene.other, ECHO),
    ];
    let excluded = format!(
        ", outbound: {{exclude_cidrs: [\"{}/32\", \"{}/128\"]}}",
        scene.other.v4, scene.other.v6
    );
    let agent = scene.agent(mode, &excluded);
    for to in [&scene.resolver.v4, &scene.resolver.v6] {
        assert_eq!(way(&scene.client, to, 53), Way::ByTheAgent, "{to}");
        assert_eq!(way(&scene.client, to, 5353), Way::Directly);
    }
    for to in [&scene.other.v4, &scene.other.v6] {
        assert_eq!(way(&scene.client, to, 53), Way::Directly, "{to}");
        assert_eq!(way(&scene.client, to, 5353), Way::Directly);
    }
    // A resolver on loopback, as systemd-resolved is, is nobody's affair but its own.
    let _own = python_server(&scene.client, ECHO);
    for to in ["127.0.0.1", "::1"] {
        assert_eq!(way(&scene.client, to, 53), Way::Directly, "{to}");
    }
    let bulk = "
import socket
s = socket.socket(); s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); s.connect(('TO', 53))
for first in range(0, 2000, 20):
    sent = {b'%06d' % n + bytes(1200) for n in range(first, first + 20)}
    for data in sent: s.send(data)
    for _ in range(20): sent.remove(s.recv(65536).split(b' ', 2)[2])
print('done')
";
    assert_eq!(
        scene.client.python(&bulk.replace("TO", &scene.other.v4)),
        "done"
    );
    assert_eq!(queries(&agent, 2).len(), 2);
}

fn queries_go_directly_without_an_agent(mode: &str) {
    let scene = Scene::new();
    let _echo = python_server(&scene.resolver, ECHO);
    let both = |wanted: Way| {
        let all = [&scene.resolver.v4, &scene.resolver.v6].into_iter();
        all.filter(|to| way(&scene.client, to, 53) == wanted)
            .count()
            == 2
    };
    let mut agent = scene.agent(mode, "");
    assert!(both(Way::ByTheAgent));
    agent.kill();
    wait::until("queries go directly", Duration::from_secs(8), || {
        both(Way::Directly).then_some(())
    });
    agent.restart();
    wait::until("it captures again", Duration::from_secs(8), || {
        both(Way::ByTheAgent).then_some(())
    });
    // In order.
    agent.terminate();
    assert!(both(Way::Directly));
}

fn closed_workloads_ask_nobody_without_an_agent(mode: &str) {
    let scene = Scene::new();
    let _echo = python_server(&scene.resolver, ECHO);
    let to = [&scene.resolver.v4, &scene.resolver.v6];
    let ways = |port| to.map(|to| way(&scene.client, to, port));
    let mut agent = scene.agent(mode, ", on_failure: closed");
    assert_eq!(ways(53), [Way::ByTheAgent, Way::ByTheAgent]);
    let occupied = scene.client.occupied();
    agent.kill();
    // The data plane may answer for a moment yet; nothing goes past it.
    wait::until("queries are refused", Duration::from_secs(8), || {
        let now = ways(53);
        assert!(!now.contains(&Way::Directly), "{now:?}");
        (now == [Way::Nowhere, Way::Nowhere]).then_some(())
    });
    for _ in 0..3 {
        assert_eq!(ways(53), [Way::Nowhere, Way::Nowhere]);
        assert_eq!(ways(5353), [Way::Directly, Way::Directly]);
    }
    drop(occupied);
    agent.restart();
    wait::until("it is served again", Duration::from_secs(10), || {
        let now = ways(53);
        assert!(!now.contains(&Way::Directly), "{now:?}");
        (now == [Way::ByTheAgent, Way::ByTheAgent]).then_some(())
    });
}

fn the_option_is_changed_live(mode: &str) {
    let scene = Scene::new();
    let _echo = python_server(&scene.resolver, ECHO);
    let agent = scene.agent(mode, "");
    let way = || way(&scene.client, &scene.resolver.v4, 53);
    assert_eq!(way(), Way::ByTheAgent);
    for (from, to) in [("true", "false"), ("false", "true")] {
        let file = std::fs::read_to_string(agent.dir.join("shunt.yaml")).expect("a file");
        agent.rewrite_text(&file.replace(&format!("capture: {from}"), &format!("capture: {to}")));
        wait::until("the change is in force", Duration::from_secs(10), || {
            let wanted = if to == "true" {
                Way::ByTheAgent
            } else {
                Way::Directly
            };
            (way() == wanted).then_some(())
        });
    }
}

/// In eBPF mode eight of each family go through the agent, the others directly. Rules know any number.
fn more_resolvers_than_there_are_places_for(mode: &str) {
    let scene = Scene::new();
    let more: Vec<String> = (100..110).map(|host| format!("10.66.0.{host}")).collect();
    for address in &more {
        let address = address.parse().expect("an address");
        scene.resolver.add_address(address);
    }
    let _echo = python_server(&scene.resolver, ECHO_FROM);
    let agent = scene.agent(mode, "");
    // Who was first keeps its place.
    for _ in 0..2 {
        let ways: Vec<Way> = more.iter().map(|to| way(&scene.client, to, 53)).collect();
        let captured = if mode == "ebpf" { 8 } else { 10 };
        assert!(
            ways[..captured].iter().all(|way| *way == Way::ByTheAgent),
            "{ways:?}"
        );
        assert!(
            ways[captured..].iter().all(|way| *way == Way::Directly),
            "{ways:?}"
        );
    }
    if mode == "ebpf" {
        wait::until("it is counted", Duration::from_secs(5), || {
            (agent.kernel_count("resolvers_full") == Some(4)).then_some(())
        });
        // A change of routes is announced, and the agent looks closely.
        let route = ["route", "add", "203.0.113.0/24", "dev", "lo"];
        assert!(scene.client.run("ip", &route).status.success());
        wait::until("it is told", Duration::from_secs(8), || {
            let notes = agent.workload("client")["notes"].to_string();
            notes
                .contains("further ones are asked directly")
                .then_some(())
        });
    }
}
