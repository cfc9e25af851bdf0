//! Clocks that are set, or that are not the kernel's, open nothing.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use shunt_tests::load::{list, program};
use shunt_tests::{Agent, AgentBuilder, Load, Pod, World, in_both_modes, require, wait};

in_both_modes!(
    the_time_of_day_is_set,
    in_a_time_namespace_of_the_agents_own,
);

const SHORT: u16 = 7000;
const BODY: u16 = 7001;
const BODY_BYTES: &str = "1000000";
/// Longer than any clock is as it is.
const BODY_MS: &str = "3000";
/// Gates that were judged by the wrong clock are stale after one second.
const EACH: Duration = Duration::from_millis(1500);

fn at(pod: &Pod, port: u16) -> Vec<SocketAddr> {
    [&pod.v4, &pod.v6]
        .map(|ip| SocketAddr::new(ip.parse().expect("an address"), port))
        .into()
}

fn total(agent: &Agent) -> u64 {
    let workload = agent.workload("client");
    workload["connections"]["total"].as_u64().expect("a number")
}

/// Traffic of every kind while `happens`; all of it goes through the agent. Gives the access log.
fn all_is_captured(
    agent: impl FnOnce(&World, &Pod) -> Agent,
    happens: impl FnOnce(),
) -> Vec<Value> {
    require::everything();
    let world = World::new();
    let (client, server) = (world.pod(), world.pod());
    let (short, body) = (SHORT.to_string(), BODY.to_string());
    let answer = ["server", "--token", "clock", "--port", &short];
    let bodies = [
        "body", "--port", &body, "--bytes", BODY_BYTES, "--millis", BODY_MS,
    ];
    let _servers = [answer.as_slice(), &bodies].map(|args| server.spawn(&program(), args));
    server.wait_for_listener(SHORT);
    server.wait_for_listener(BODY);
    let agent = agent(&world, &client);
    let (to_short, to_body) = (list(&at(&server, SHORT)), list(&at(&server, BODY)));
    let short = |more: &[&str]| {
        let args = ["client", "--token", "clock", "--to", &to_short];
        Load::start(&client, &[&args[..], more].concat())
    };
    wait::until("the first is captured", Duration::from_secs(5), || {
        short(&["--rate", "100", "--count", "1"]).report(Duration::from_secs(10));
        (total(&agent) > 0).then_some(())
    });
    let before = total(&agent);
    let load = short(&["--rate", "100"]);
    let fetch = ["fetch", "--to", &to_body, "--bytes", BODY_BYTES];
    let fetch = Load::start(&client, &fetch);
    happens();
    let (load, fetch) = (load.finish(), fetch.finish());
    assert_eq!(load["errors"], json!({}), "{load:#}");
    assert_eq!(load["wrong"], json!([]), "{load:#}");
    assert_eq!(load["attempted"], load["answered"], "{load:#}");
    let ends = fetch["ends"].as_object().expect("a table");
    assert_eq!(ends.keys().collect::<Vec<_>>(), ["whole"], "{fetch:#}");
    let answered = load["answered"].as_u64().expect("a number");
    let whole = ends["whole"].as_u64().expect("a number");
    assert_eq!(
        total(&agent) - before,
        answered + whole,
        "some went directly"
    );

    let lines = agent.lines(total(&agent) as usize);
    for line in &lines {
        assert_eq!(line["close_reason"], "finished", "{line:#}");
        let took = line["duration_ms"].as_u64().expect("a number");
        assert!(took < 10_000, "{line:#}");
    }
    let status = agent.status();
    let uptime = status["agent"]["uptime_seconds"].as_u64();
    assert!(uptime.is_some_and(|age| age < 600), "{status:#}");
    let workload = agent.workload("client");
    assert_eq!(workload["state_reason"], "", "{workload:#}");
    let log = agent.log();
    assert!(!log.contains("ERROR"), "{log}");
    let (_, stats) = agent.admin("GET", "/stats/prometheus", "");
    assert!(
        !stats.contains("shunt_interception_repairs_total{"),
        "{stats}"
    );
    lines
}

fn set(file: &Path, time: &str) {
    let new = file.with_extension("new");
    fs::write(&new, time).expect("written");
    fs::rename(new, file).expect("renamed");
}

fn the_time_of_day_is_set(mode: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("time");
    set(&file, "+0");
    let start = |world: &World, client: &Pod| {
        AgentBuilder::new(world, mode)
            .with_time_of_day(&file)
            .enrol("client", client, "")
            .start()
    };
    let lines = all_is_captured(start, || {
        for time in ["-1d", "+0", "+1d"] {
            set(&file, time);
            wait::pause(EACH);
        }
    });
    // It saw the steps.
    let dates: BTreeSet<&str> = lines
        .iter()
        .filter_map(|line| line["time"].as_str()?.split('T').next())
        .collect();
    assert!(dates.len() >= 3, "the clock was not set: {dates:?}");
}

/// As of containers that were moved from another host.
fn in_a_time_namespace_of_the_agents_own(mode: &str) {
    let start = |world: &World, client: &Pod| {
        let agent = AgentBuilder::new(world, mode)
            .in_a_time_namespace()
            .enrol("client", client, "")
            .start();
        let clock = |pid| fs::read_link(format!("/proc/{pid}/ns/time")).expect("a process");
        assert_ne!(clock(agent.pid()), clock(std::process::id()));
        agent
    };
    all_is_captured(start, || wait::pause(EACH));
}
