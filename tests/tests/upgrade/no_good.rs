//! Programs that are no good.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use shunt_tests::agent::{binary, signal};
use shunt_tests::{Agent, Pair, wait};

use crate::scene::{Wrk, one_is_left, refused, upgraded};

/// Where a test may replace the agent's program.
pub fn own_program(pair: &Pair) -> PathBuf {
    let own = pair.world.dir.path().join("shunt-under-test");
    fs::copy(binary(), &own).expect("copied");
    own
}

pub fn replace(own: &Path, by: &Path) {
    let new = own.with_extension("new");
    fs::copy(by, &new).expect("copied");
    fs::rename(new, own).expect("renamed");
}

#[test]
fn supervisors_of_another_line_do_not_succeed_each_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("shunt.yaml");
    fs::write(&file, "mode: auto\n").expect("written");
    let mut command = Command::new(binary());
    command.args(["run", "--could-succeed", "0.0.0", "-c"]);
    let output = command.arg(&file).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the agent has to be started anew"), "{said}");
}

/// Whoever has tried to become another program goes on as what it was.
#[test]
fn one_that_cannot_be_run_at_the_last_moment_changes_nothing() {
    let pair = Pair::new();
    let _nginx = pair.server.nginx(&pair.world);
    let own = own_program(&pair);
    let agent = pair.both("ebpf", "").program(&own).start();
    let wrk = Wrk::start(&pair.client, &[], &format!("http://{}/", pair.server.v4));
    let before = (agent.worker_pids(), ignored_signals(&agent));
    replace(&own, Path::new(env!("CARGO_BIN_EXE_shunt-stranger")));
    fs::write(own.with_extension("how"), "locks itself").expect("written");
    assert_eq!(agent.admin("POST", "/upgrade/all", "").0, 200);
    wait::until("it has tried", Duration::from_secs(20), || {
        agent
            .log()
            .contains("the agent is not replaced, and goes on")
            .then_some(())
    });
    assert_eq!((agent.worker_pids(), ignored_signals(&agent)), before);
    assert_eq!(agent.admin("GET", "/ready", "").0, 200);
    replace(&own, &binary());
    upgraded(&agent);
    wrk.end(1000);
    one_is_left(&agent);
}

/// Of the supervisor, in the kernel's notation. Writing to a pipe that nobody reads would else end it.
fn ignored_signals(agent: &Agent) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("it runs");
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    line.expect("a line").trim().to_owned()
}

#[test]
fn one_that_is_no_good_changes_nothing() {
    let pair = Pair::new();
    let _nginx = pair.server.nginx(&pair.world);
    let own = own_program(&pair);
    let agent = pair.both("ebpf", "").program(&own).start();
    let url = format!("http://{}/", pair.server.v4);
    let wrk = Wrk::start(&pair.client, &[], &url);
    let stranger = Path::new(env!("CARGO_BIN_EXE_shunt-stranger"));
    replace(&own, stranger);
    for (how, reason) in [
        ("another version", "speaks version 99 of the protocol"),
        ("dies", "the new data plane ended: exit status: 1"),
        ("silent", "did not make itself ready in time"),
    ] {
        fs::write(own.with_extension("how"), how).expect("written");
        refused(&agent, "data-plane", reason);
    }
    fs::write(own.with_extension("how"), "dies").expect("written");
    refused(
        &agent,
        "all",
        "the new program: Error: this one ends at once",
    );
    fs::write(&own, "no program at all").expect("written");
    refused(&agent, "data-plane", "cannot start the data plane");
    refused(&agent, "all", "cannot start the program on disk");
    fs::remove_file(&own).expect("removed");
    for part in ["data-plane", "all"] {
        refused(&agent, part, "cannot open the program on disk");
    }
    replace(&own, &binary());
    upgraded(&agent);
    wrk.end(1000);
    one_is_left(&agent);
    // Also when it dies, the program is the later one: the file has gone meanwhile.
    fs::remove_file(&own).expect("removed");
    let serving = agent.worker_pid().expect("a data plane");
    signal("-KILL", serving);
    wait::until("another serves", Duration::from_secs(10), || {
        let pid = agent.worker_pid().filter(|pid| *pid != serving)?;
        (agent.admin("GET", "/ready", "").0 == 200).then_some(pid)
    });
}
