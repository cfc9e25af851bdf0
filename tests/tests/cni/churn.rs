//! Fifty pods a second, each in a namespace of its own that goes with it. `SHUNT_CHURN_SECONDS` says for how long.

use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::json;
use shunt_tests::cni::Network;
use shunt_tests::{Agent, AgentBuilder, World, in_both_modes, kernel, number, require, wait};

use crate::life::descriptors;
use crate::many::{GROWTH, in_parallel, memory, tell};
use crate::{SHUNT, asking, enrolled};

in_both_modes!(pods_that_come_and_go_at_a_pace_leave_nothing);

const EACH_SECOND: u32 = 50;

/// What the agent has in the kernel, and what is in the node's own tables.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    objects: Vec<usize>,
    entries: Vec<(String, usize)>,
    node: String,
}

impl Held {
    fn by(agent: &Agent, world: &World) -> Self {
        let kinds = ["map", "prog", "link"];
        let rules = Command::new("ip")
            .args(["netns", "exec", world.label(), "nft", "list", "ruleset"])
            .output()
            .expect("nft runs");
        Self {
            objects: kinds
                .map(|kind| kernel::held_by(agent.pid(), kind).len())
                .into(),
            entries: kernel::entries(agent.pid()),
            node: String::from_utf8_lossy(&rules.stdout).into_owned(),
        }
    }
}

fn pods_that_come_and_go_at_a_pace_leave_nothing(mode: &str) {
    require::everything();
    let world = World::new();
    let agent = AgentBuilder::new(&world, mode).start();
    let mut network = Network::new(&world, "1.0.0", asking(&agent, &json!({})));
    network.plugins.drain(..SHUNT);
    let container = |name: &str| {
        let mut pod = network.container("shop", name);
        pod.result = json!({"cniVersion": "1.0.0"});
        pod
    };
    let stays = container("stays");
    let untouched = stays.pod.state();
    network.invoke("ADD", 0, &stays).ok().expect("added");
    let live = |seconds: u32| -> (Vec<Duration>, Duration) {
        let times: Mutex<Vec<Duration>> = Mutex::default();
        let start = Instant::now();
        in_parallel((EACH_SECOND * seconds) as usize, |at| {
            let due = start + Duration::from_secs(1) / EACH_SECOND * at as u32;
            wait::pause(due.saturating_duration_since(Instant::now()));
            let pod = container(&format!("pod-{at}"));
            let begin = Instant::now();
            network.invoke("ADD", 0, &pod).ok().expect("added");
            times.lock().expect("whole").push(begin.elapsed());
            network.invoke("DEL", 0, &pod).ok().expect("deleted");
        });
        (times.into_inner().expect("whole"), start.elapsed())
    };
    // What is allocated once.
    live(1);
    let calm = || {
        wait::until("the others are gone", Duration::from_secs(20), || {
            (enrolled(&agent) == ["shop/stays"]).then_some(())
        });
        (Held::by(&agent, &world), descriptors(&agent))
    };
    let (before, grown) = (calm(), memory(&agent));
    let (times, took) = live(number("SHUNT_CHURN_SECONDS", 2));
    let each_second = times.len() as f64 / took.as_secs_f64();
    tell(&format!("{mode}, {each_second:.0} a second"), times);
    let after = wait::until("what was held is let go", Duration::from_secs(20), || {
        let after = calm();
        (after.1 <= before.1).then_some(after)
    });
    assert_eq!(after.0, before.0);
    let now = memory(&agent);
    assert!(now < grown + GROWTH, "{grown} bytes became {now}");
    network.invoke("DEL", 0, &stays).ok().expect("deleted");
    wait::until(
        "the namespace is as it was",
        Duration::from_secs(10),
        || (stays.pod.state() == untouched).then_some(()),
    );
    // A reader of the agent's log sees nothing wrong either.
    let wrong = |line: &&str| line.contains("\"ERROR\"");
    let log = agent.log();
    let wrong: Vec<&str> = log.lines().filter(wrong).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
