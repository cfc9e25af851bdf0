//! A later build of the data plane takes over from the one that serves: nobody is refused, reset or failed, and one that is
//! no good changes nothing.

mod builds;
mod edges;
mod listeners;
mod no_good;
mod scene;

use std::time::Duration;

use shunt_tests::agent::signal;
use shunt_tests::{Pair, in_both_modes, wait};

use self::scene::{Stream, Wrk, one_is_left, upgraded, upgraded_of};

in_both_modes!(
    wrk_at_full_load_notices_no_upgrade,
    wrk_notices_no_upgrade_of_all,
    who_is_to_be_refused_without_us_is_not,
    a_stream_goes_on_in_the_old_one,
    the_old_one_has_its_time_and_no_more,
    who_leaves_meanwhile_leaves_nothing,
);

fn wrk_at_full_load_notices_no_upgrade(mode: &str) {
    let pair = Pair::new();
    let _nginx = pair.server.nginx(&pair.world);
    let agent = pair.both(mode, "").start();
    let url = format!("http://{}/", pair.server.v4);
    let url6 = format!("http://[{}]/", pair.server.v6);
    // nginx closes a connection after a thousand requests.
    let kept = Wrk::start(&pair.client, &[], &url);
    let anew = Wrk::start(&pair.client, &["-H", "Connection: close"], &url6);
    for _ in 0..10 {
        upgraded(&agent);
        // The new one serves, and what it has replaced has not much left to do.
        wait::until("connections through it", Duration::from_secs(20), || {
            let served = agent.workload("client")["connections"]["total"].as_u64();
            (served > Some(20) && agent.worker_pids().len() < 4).then_some(())
        });
    }
    kept.end(1000);
    anew.end(300);
    one_is_left(&agent);
}

fn wrk_notices_no_upgrade_of_all(mode: &str) {
    let pair = Pair::new();
    let _nginx = pair.server.nginx(&pair.world);
    let before = [pair.client.state(), pair.server.state()];
    let mut agent = pair.both(mode, "").start();
    let url = format!("http://{}/", pair.server.v4);
    let url6 = format!("http://[{}]/", pair.server.v6);
    let stream = Stream::begin(&pair);
    let kept = Wrk::start(&pair.client, &[], &url);
    let anew = Wrk::start(&pair.client, &["-H", "Connection: close"], &url6);
    for _ in 0..10 {
        upgraded_of(&agent, "all");
        wait::until("connections through it", Duration::from_secs(20), || {
            let served = agent.workload("client")["connections"]["total"].as_u64();
            (served > Some(20) && agent.worker_pids().len() < 4).then_some(())
        });
    }
    kept.end(1000);
    let made = anew.end(300);
    let told = stream.end();
    assert!(told.starts_with("whole "), "{told}");
    one_is_left(&agent);
    // None of them went past the agent.
    let to_server = format!("[{}]:80", pair.server.v6);
    let lines = agent.access_log();
    let captured = lines.iter().filter(|line| {
        line["direction"] == "outbound" && line["original_dst"] == to_server.as_str()
    });
    let captured = captured.count() as u64;
    assert!(captured >= made, "{captured} of {made} were captured");
    assert!(agent.terminate().success());
    assert_eq!([pair.client.state(), pair.server.state()], before);
}

fn a_stream_goes_on_in_the_old_one(mode: &str) {
    let pair = Pair::new();
    let agent = pair.both(mode, "").start();
    let stream = Stream::begin(&pair);
    let old = agent.worker_pid().expect("a data plane");
    upgraded(&agent);
    upgraded(&agent);
    let shown = &agent.status()["agent"]["retired_pids"];
    assert!(shown.as_array().expect("a list").contains(&old.into()));
    // One that dies is replaced by the same build, and the old one does not notice.
    let serving = agent.status()["agent"]["worker_pid"].as_u64();
    let serving = u32::try_from(serving.expect("a number")).expect("a pid");
    signal("-KILL", serving);
    wait::until("another serves", Duration::from_secs(10), || {
        let (code, _) = agent.admin("GET", "/ready", "");
        (code == 200 && !agent.worker_pids().contains(&serving)).then_some(())
    });
    let told = stream.end();
    assert!(told.starts_with("whole "), "{told}");
    one_is_left(&agent);
    let lines = agent.access_log();
    assert!(
        lines.iter().any(|line| line["close_reason"] == "finished"),
        "{lines:#?}"
    );
}

fn the_old_one_has_its_time_and_no_more(mode: &str) {
    let pair = Pair::new();
    let agent = pair.both(mode, "").set("timeouts: {upgrade: 1s}").start();
    let stream = Stream::begin(&pair);
    upgraded(&agent);
    one_is_left(&agent);
    let told = stream.end();
    assert!(told.starts_with("failed "), "{told}");
}

fn who_leaves_meanwhile_leaves_nothing(mode: &str) {
    let pair = Pair::new();
    let before = [pair.client.state(), pair.server.state()];
    let agent = pair.both(mode, "").start();
    let stream = Stream::begin(&pair);
    upgraded(&agent);
    agent.rewrite(&[]);
    wait::until("both are withdrawn", Duration::from_secs(10), || {
        agent.status()["workloads"]
            .as_array()
            .is_some_and(Vec::is_empty)
            .then_some(())
    });
    upgraded_of(&agent, "all");
    let told = stream.end();
    assert!(told.starts_with("whole "), "{told}");
    wait::until("nothing is left", Duration::from_secs(20), || {
        ([pair.client.state(), pair.server.state()] == before).then_some(())
    });
    one_is_left(&agent);
}

#[test]
fn accelerated_and_direct_ones_go_on() {
    for (more, path) in [
        ("acceleration: {default: always, direct: false}", "handoff"),
        ("acceleration: always", "direct"),
    ] {
        let pair = Pair::new();
        let agent = pair.both("ebpf", more).start();
        let stream = Stream::begin(&pair);
        upgraded(&agent);
        if path == "handoff" {
            upgraded_of(&agent, "all");
        }
        let told = stream.end();
        let lines: u64 = told
            .strip_prefix("whole ")
            .expect(&told)
            .parse()
            .expect("a number");
        one_is_left(&agent);
        let logged = wait::until("its line", Duration::from_secs(10), || {
            let mut all = agent.access_log().into_iter();
            all.find(|line| line["close_reason"] == "finished")
        });
        assert_eq!(logged["path"], path, "{logged:#}");
        let numbers: u64 = (0..lines)
            .map(|number| number.to_string().len() as u64 + 1)
            .sum();
        assert_eq!(logged["bytes_sent"], numbers + 4, "{logged:#}");
    }
}

/// Of whoever fails closed nothing may be refused.
fn who_is_to_be_refused_without_us_is_not(mode: &str) {
    let pair = Pair::new();
    let _nginx = pair.server.nginx(&pair.world);
    let agent = pair.both(mode, "on_failure: closed").start();
    let wrk = Wrk::start(
        &pair.client,
        &["-H", "Connection: close"],
        &format!("http://{}/", pair.server.v4),
    );
    for _ in 0..3 {
        upgraded_of(&agent, "all");
    }
    wait::until("the one before is let go", Duration::from_secs(20), || {
        agent
            .log()
            .contains("nothing of the program before is left")
            .then_some(())
    });
    wrk.end(300);
}
