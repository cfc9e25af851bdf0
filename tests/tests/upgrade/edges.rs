//! What else happens during an upgrade.

use std::fs;
use std::time::Duration;

use shunt_tests::agent::{entry, signal};
use shunt_tests::{Agent, Pair, in_both_modes, wait};

use crate::scene::{Wrk, one_is_left, upgraded_of};

const SECONDS: Duration = Duration::from_secs(30);

in_both_modes!(
    a_data_plane_that_dies_meanwhile_is_replaced,
    who_is_enrolled_meanwhile_is_captured,
);

/// From here on the supervisor is the next one, which has not loaded its programs yet.
fn begin(agent: &Agent, times: usize) {
    assert_eq!(agent.admin("POST", "/upgrade/all", "").0, 200);
    wait::until("the next supervisor", SECONDS, || {
        let said = agent.log();
        (said.matches("another program goes on from here").count() == times).then_some(())
    });
}

fn has_taken_over(agent: &Agent, times: usize) {
    wait::until("the next one has taken over", SECONDS, || {
        let said = agent.log();
        (said.matches("this program has taken over").count() == times).then_some(())
    });
}

/// Their connections go through the agent.
fn is_carried(pair: &Pair, agent: &Agent) {
    let url = format!("http://{}/", pair.server.v4);
    wait::until("it is carried", SECONDS, || {
        let before = agent.access_log().len();
        pair.client.says("curl", &["-sSf", "-m", "5", &url]);
        wait::pause(Duration::from_millis(20));
        (agent.access_log().len() > before).then_some(())
    });
}

/// The next supervisor is there, its data plane cannot start: here, since the access log cannot be opened.
#[test]
fn a_new_data_plane_that_cannot_start_leaves_the_old_one_to_serve() {
    let pair = Pair::new();
    let _nginx = pair.server.nginx(&pair.world);
    let agent = pair.both("ebpf", "").start();
    let url = format!("http://{}/", pair.server.v4);
    let kept = Wrk::start(&pair.client, &[], &url);
    let anew = Wrk::start(&pair.client, &["-H", "Connection: close"], &url);
    let serving = agent.worker_pid().expect("a data plane");
    let log = agent.dir.join("access.log");
    fs::rename(&log, agent.dir.join("before.log")).expect("renamed");
    fs::create_dir(&log).expect("made");
    begin(&agent, 1);
    wait::until("two of its data planes have failed", SECONDS, || {
        let said = agent.log();
        let failed = said.matches("the data plane is not replaced").count();
        (failed >= 2).then_some(())
    });
    assert!(agent.log().contains("cannot open the access log"));
    assert!(agent.worker_pids().contains(&serving));
    let status = agent.status();
    assert_eq!(status["agent"]["worker_pid"], serving, "{status:#}");
    assert_eq!(agent.admin("GET", "/ready", "").0, 200);
    fs::remove_dir(&log).expect("removed");
    has_taken_over(&agent, 1);
    kept.end(1000);
    anew.end(300);
    one_is_left(&agent);
    assert!(!agent.worker_pids().contains(&serving));
    is_carried(&pair, &agent);
}

fn a_data_plane_that_dies_meanwhile_is_replaced(mode: &str) {
    let pair = Pair::new();
    let _nginx = pair.server.nginx(&pair.world);
    let before = [pair.client.state(), pair.server.state()];
    let mut agent = pair.both(mode, "").start();
    let pid = agent.pid();
    for (times, planes) in [(1, 1), (2, 2)] {
        let serving = agent.worker_pid().expect("a data plane");
        begin(&agent, times);
        // Before there is another, and while another is made ready.
        wait::until("so many data planes", SECONDS, || {
            (agent.worker_pids().len() >= planes).then_some(())
        });
        signal("-KILL", serving);
        has_taken_over(&agent, times);
        wait::until("it is ready", SECONDS, || {
            (agent.admin("GET", "/ready", "").0 == 200).then_some(())
        });
        assert!(!agent.worker_pids().contains(&serving));
        is_carried(&pair, &agent);
        one_is_left(&agent);
    }
    assert_eq!(agent.status()["agent"]["pid"], pid);
    upgraded_of(&agent, "all");
    is_carried(&pair, &agent);
    assert!(agent.terminate().success());
    assert_eq!([pair.client.state(), pair.server.state()], before);
}

/// By the file. By CNI: `tests/cni/upgrade.rs`.
fn who_is_enrolled_meanwhile_is_captured(mode: &str) {
    let pair = Pair::new();
    let _nginx = pair.server.nginx(&pair.world);
    let third = pair.world.pod();
    let agent = pair.both(mode, "").start();
    let url = format!("http://{}/", pair.server.v4);
    let wrk = Wrk::start(&pair.client, &["-H", "Connection: close"], &url);
    let two = [
        entry("client", &pair.client, ""),
        entry("server", &pair.server, ""),
    ];
    let three = [&two[..], &[entry("third", &third, "")]].concat();
    for times in 1..=2 {
        begin(&agent, times);
        agent.rewrite(&three);
        wait::until("it is served", SECONDS, || {
            let status = agent.status();
            let all = status["workloads"].as_array()?;
            let mut all = all.iter();
            all.any(|workload| workload["name"] == "third" && workload["state"] == "ready")
                .then_some(())
        });
        third.says("curl", &["-sSf", "-m", "5", &url]);
        wait::until("its connection is told of", SECONDS, || {
            let lines = agent.access_log();
            let of_third = lines
                .iter()
                .filter(|line| line["workload"] == "default/third");
            (of_third.count() == times).then_some(())
        });
        has_taken_over(&agent, times);
        // Who is taken out meanwhile is not captured afterwards.
        if times == 1 {
            begin_and_take_out(&agent, &two);
        }
    }
    wrk.end(300);
    one_is_left(&agent);
}

fn begin_and_take_out(agent: &Agent, left: &[String]) {
    agent.rewrite(left);
    wait::until("it is withdrawn", SECONDS, || {
        let status = agent.status();
        (status["workloads"].as_array()?.len() == left.len()).then_some(())
    });
    one_is_left(agent);
}
