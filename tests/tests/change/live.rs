//! Enrolments, policies and modes change under load: nobody notices, and what was acknowledged is in force.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shunt_tests::load::{list, program};
use shunt_tests::{Agent, AgentBuilder, Load, Pod, Prober, World, require, wait};

/// How often everything changes; `SHUNT_CHANGES` says another number.
const ROUNDS: u16 = 15;
/// Ports of the load, of long transfers, and the first of those which are probed once each.
const LOAD: u16 = 7000;
const BODY: u16 = 7100;
const PROBES: u16 = 10_000;
/// One in so many connections may be a crossing that was not recognised.
const RARE: usize = 50;
/// A long transfer outlives several changes.
const BODY_BYTES: &str = "4000000";
const BODY_MILLIS: &str = "3000";

/// What is wished of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Off,
    Mode(&'static str),
    /// The probed ports are excluded.
    Excluded(&'static str),
}

impl Wish {
    /// How captured connections are recognised in the access log; `None`: they go directly.
    fn mode(self) -> Option<&'static str> {
        match self {
            Self::Off | Self::Excluded(_) => None,
            Self::Mode("auto") => Some("ebpf"),
            Self::Mode(mode) => Some(mode),
        }
    }
}

/// One round, for the client; the server is two steps ahead.
fn round(mode: &'static str) -> [Wish; 6] {
    let other = if mode == "ebpf" { "iptables" } else { "ebpf" };
    [
        Wish::Mode(mode),
        Wish::Excluded(mode),
        Wish::Mode(mode),
        Wish::Mode(other),
        Wish::Mode("auto"),
        Wish::Off,
    ]
}

struct Story {
    world: World,
    client: Pod,
    server: Pod,
    stranger: Pod,
}

fn story() -> Story {
    require::everything();
    let world = World::new();
    let (client, server, stranger) = (world.pod(), world.pod(), world.pod());
    Story {
        world,
        client,
        server,
        stranger,
    }
}

fn both(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    [&pod.v4, &pod.v6].map(|ip| SocketAddr::new(ip.parse().expect("an address"), port))
}

/// Makes `wish` true, as far as the agent says so.
fn change(agent: &Agent, name: &str, pod: &Pod, ports: &str, wish: Wish) {
    let path = format!("/workloads/default/{name}");
    let (mode, excluded) = match wish {
        Wish::Off => {
            let (status, answer) = agent.admin("DELETE", &path, "");
            assert_eq!(status, 200, "{answer}");
            return;
        }
        Wish::Mode(mode) => (mode, vec![]),
        Wish::Excluded(mode) => (mode, vec![ports]),
    };
    let policy = json!({ "exclude_ports": excluded });
    let body = json!({"netns": pod.netns, "cgroup": pod.cgroup, "mode": mode, "outbound": policy, "inbound": policy});
    let (status, answer) = agent.admin("PUT", &path, &body.to_string());
    assert_eq!(status, 200, "{answer}");
}

/// Direction of a line, and source of its original destination.
type Seen = (&'static str, &'static str);

/// The line that a probe must leave.
fn expected(client: Wish, server: Wish) -> Option<Seen> {
    match (client.mode(), server.mode()) {
        (Some("ebpf"), _) => Some(("outbound", "sk_storage")),
        (Some(_), _) => Some(("outbound", "conntrack")),
        (None, Some("ebpf")) => Some(("inbound", "local_addr")),
        (None, Some(_)) => Some(("inbound", "conntrack")),
        (None, None) => None,
    }
}

/// Lines by the destination's port, for those that were probed.
fn probed(agent: &Agent) -> BTreeMap<u16, Vec<Value>> {
    let mut lines: BTreeMap<u16, Vec<Value>> = BTreeMap::new();
    for line in agent.access_log() {
        let destination = line["original_dst"].as_str().and_then(|at| at.parse().ok());
        if let Some(port) = destination.map(|at: SocketAddr| at.port())
            && port >= PROBES
        {
            lines.entry(port).or_default().push(line);
        }
    }
    lines
}

/// Behind REDIRECT all ports of a destination are one: conntrack gives a crossing another source port when its own is
/// taken there. Then it is not recognised, and goes on as a flow into and one out of the node, with a line for each.
fn is_unrecognised_crossing(lines: &[Value]) -> bool {
    let ways: BTreeSet<_> = lines
        .iter()
        .map(|line| line["direction"].as_str())
        .collect();
    let inbound = lines.iter().find(|line| line["direction"] == "inbound");
    lines.len() == 2
        && ways.len() == 2
        && inbound.is_some_and(|line| line["original_dst_source"] == "conntrack")
}

/// Connections that did not end in order.
fn cut_off(agent: &Agent) -> Vec<Value> {
    let mut lines = agent.access_log();
    lines.retain(|line| line["close_reason"] != "finished");
    lines
}

/// Each probe has left its line, or none.
fn check_probes(agent: &Agent, want: &BTreeMap<u16, (Option<Seen>, String)>) {
    let logged = want.values().filter(|(line, _)| line.is_some()).count();
    // The last lines may still be on their way.
    for _ in 0..1000 {
        if probed(agent).len() >= logged {
            break;
        }
        wait::pause(Duration::from_millis(10));
    }
    let lines = probed(agent);
    let (mut wrong, mut unrecognised) = (Vec::new(), 0);
    for (port, (want, when)) in want {
        let seen = lines.get(port).map(Vec::as_slice).unwrap_or_default();
        let text = |line: &Value, field: &str| line[field].as_str().unwrap_or_default().to_owned();
        let kinds = seen
            .iter()
            .map(|line| (text(line, "direction"), text(line, "original_dst_source")));
        let wanted = want.map(|(way, source)| (way.to_owned(), source.to_owned()));
        if is_unrecognised_crossing(seen) {
            unrecognised += 1;
        } else if !kinds.eq(wanted) {
            wrong.push(format!("{port}, {when}: not {want:?}: {seen:?}"));
        }
    }
    let rare = want.len() / RARE + 1;
    assert!(
        unrecognised <= rare,
        "{unrecognised} crossings were not recognised"
    );
    assert!(wrong.is_empty(), "{} probes: {wrong:#?}", wrong.len());
}

fn changes_under_load(mode: &'static str) {
    let rounds =
        std::env::var("SHUNT_CHANGES").map_or(ROUNDS, |count| count.parse().expect("a number"));
    let story = story();
    let (client, server, stranger) = (&story.client, &story.server, &story.stranger);
    let steps = round(mode);
    let ports = rounds * 2 * steps.len() as u16;
    let serve = |pod: &Pod, first: u16, count: u16| {
        let (first, count) = (first.to_string(), count.to_string());
        pod.spawn(
            &program(),
            &[
                "server", "--token", "here", "--port", &first, "--ports", &count,
            ],
        )
    };
    let _servers = [
        serve(server, LOAD, 1),
        serve(server, PROBES, ports),
        serve(stranger, LOAD, 1),
    ];
    let _body = server.spawn(
        &program(),
        &[
            "body",
            "--port",
            &BODY.to_string(),
            "--bytes",
            BODY_BYTES,
            "--millis",
            BODY_MILLIS,
        ],
    );
    server.wait_for_listener(PROBES);
    server.wait_for_listener(BODY);
    stranger.wait_for_listener(LOAD);
    let agent = AgentBuilder::new(&story.world, mode).start();

    let load = |from: &Pod, to: &Pod, rate: &str| {
        let to = list(&both(to, LOAD));
        Load::start(
            from,
            &[
                "client",
                "--token",
                "here",
                "--to",
                &to,
                "--rate",
                rate,
                "--threads",
                "1",
            ],
        )
    };
    let loads = [
        load(client, server, "120"),
        load(stranger, server, "80"),
        load(server, stranger, "60"),
    ];
    let fetch = |from: &Pod| {
        let to = list(&both(server, BODY));
        Load::start(
            from,
            &[
                "fetch",
                "--to",
                &to,
                "--bytes",
                BODY_BYTES,
                "--parallel",
                "2",
            ],
        )
    };
    let transfers = [fetch(client), fetch(stranger)];

    let mut probers = [Prober::start(client), Prober::start(stranger)];
    let (mut wishes, mut want) = ([Wish::Off; 2], BTreeMap::new());
    let (mut port, mut slowest) = (PROBES, Duration::ZERO);
    for number in 0..usize::from(rounds) * steps.len() {
        for (who, (name, pod)) in [("client", client), ("web", server)]
            .into_iter()
            .enumerate()
        {
            let wish = steps[(number + 2 * who) % steps.len()];
            if wish == wishes[who] {
                continue;
            }
            let begun = Instant::now();
            change(&agent, name, pod, &format!("{PROBES}-65535"), wish);
            slowest = slowest.max(begun.elapsed());
            wishes[who] = wish;
        }
        for (who, prober) in probers.iter_mut().enumerate() {
            let to = both(server, port)[number % 2];
            let answer = prober.ask(to);
            assert_eq!(answer, format!("here {to}"), "prober {who}, {wishes:?}");
            let seen_client = if who == 0 { wishes[0] } else { Wish::Off };
            let line = expected(seen_client, wishes[1]);
            want.insert(port, (line, format!("{wishes:?} prober {who}")));
            port += 1;
        }
    }
    check_probes(&agent, &want);
    for load in loads {
        let report = load.finish();
        assert_eq!(
            report["errors"],
            json!({}),
            "{report:#} {:#?}",
            cut_off(&agent)
        );
        assert_eq!(report["wrong"], json!([]), "{report:#}");
        assert_eq!(report["attempted"], report["answered"], "{report:#}");
    }
    for transfer in transfers {
        let report = transfer.finish();
        let ends = report["ends"].as_object().expect("a table");
        assert_eq!(ends.keys().collect::<Vec<_>>(), ["whole"], "{report:#}");
    }
    let log = agent.log();
    assert!(
        !log.contains("\"ERROR\"") && !log.contains("panicked"),
        "{log}"
    );
    super::tell(&format!(
        "{rounds} rounds, {ports} probes, the slowest change took {slowest:?}"
    ));
}

/// Also what an earlier mode has left.
#[test]
fn after_every_mode_nothing_is_left() {
    let story = story();
    let server = &story.server;
    let _nginx = server.nginx(&story.world);
    let before = server.state();
    let agent = AgentBuilder::new(&story.world, "auto").start();
    let slow = format!("http://{}/slow", server.v4);
    for modes in [["iptables", "ebpf"], ["ebpf", "iptables"]] {
        let mut flow = None;
        for mode in modes {
            change(&agent, "web", server, "", Wish::Mode(mode));
            assert_eq!(agent.workload("web")["mode"], mode);
            // It outlives its mode.
            flow.get_or_insert_with(|| {
                let flow = story
                    .stranger
                    .spawn("curl", &["-sS", "-o", "/dev/null", &slow]);
                wait::until("the flow runs", Duration::from_secs(5), || {
                    (agent.workload("web")["connections"]["active"] == 1).then_some(())
                });
                flow
            });
        }
        let ended = flow.expect("a flow").0.wait().expect("an end");
        assert!(ended.success(), "{modes:?}: the flow was cut off");
        change(&agent, "web", server, "", Wish::Off);
        for _ in 0..500 {
            if server.state() == before {
                break;
            }
            wait::pause(Duration::from_millis(10));
        }
        assert_eq!(server.state(), before, "{modes:?}");
    }
}

#[test]
fn ebpf() {
    changes_under_load("ebpf");
}

#[test]
fn iptables() {
    changes_under_load("iptables");
}
