//! Builds that differ. They are made of the one under test, by other words in the places of what they say of themselves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::Value;
use shunt_tests::agent::binary;
use shunt_tests::{Agent, Pair};

use crate::no_good::{own_program, replace};
use crate::scene::{Wrk, one_is_left, refused, upgraded, upgraded_of};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The start of what a build says of its line.
const LINE: &str = "shunt-1.";

/// The build under test, saying this instead of that.
fn build(pair: &Pair, name: &str, from: &str, to: &str) -> PathBuf {
    assert_eq!(from.len(), to.len());
    let mut program = fs::read(binary()).expect("the program");
    let (from, to) = (from.as_bytes(), to.as_bytes());
    let starts = memchr(&program, from);
    assert!(!starts.is_empty(), "nothing in it says so");
    for start in starts {
        program[start..start + from.len()].copy_from_slice(to);
    }
    let path = pair.world.dir.path().join(name);
    fs::write(&path, program).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
    path
}

fn memchr(text: &[u8], word: &[u8]) -> Vec<usize> {
    let first = |(at, byte): (usize, &u8)| (*byte == word[0]).then_some(at);
    let starts = text.iter().enumerate().filter_map(first);
    starts.filter(|at| text[*at..].starts_with(word)).collect()
}

/// Of the supervisor and of the data plane that serves.
fn versions(agent: &Agent) -> [String; 2] {
    let status = &agent.status()["agent"];
    ["version", "worker_version"].map(|key| match &status[key] {
        Value::String(version) => version.clone(),
        other => panic!("{other}"),
    })
}

#[test]
fn two_versions_succeed_each_other_both_ways() {
    let pair = Pair::new();
    let _nginx = pair.server.nginx(&pair.world);
    let own = own_program(&pair);
    let later = VERSION.replace(|digit: char| digit.is_ascii_digit(), "9");
    let other = build(&pair, "later", VERSION, &later);
    let agent = pair.both("ebpf", "").program(&own).start();
    let url = format!("http://{}/", pair.server.v4);
    let kept = Wrk::start(&pair.client, &[], &url);
    let anew = Wrk::start(&pair.client, &["-H", "Connection: close"], &url);
    assert_eq!(versions(&agent), [VERSION, VERSION]);
    replace(&own, &other);
    upgraded(&agent);
    assert_eq!(versions(&agent), [VERSION, &later]);
    for (program, version) in [(binary(), VERSION), (other, &later), (binary(), VERSION)] {
        replace(&own, &program);
        upgraded_of(&agent, "all");
        assert_eq!(versions(&agent), [version, version]);
    }
    kept.end(1000);
    anew.end(300);
    one_is_left(&agent);
}

#[test]
fn two_lines_do_not_succeed_each_other_and_say_so() {
    let pair = Pair::new();
    let own = own_program(&pair);
    let other = build(&pair, "other", LINE, "shunt-8.");
    for (runs, wanted, is, wants) in [
        (&binary(), &other, LINE, "shunt-8."),
        (&other, &binary(), "shunt-8.", LINE),
    ] {
        replace(&own, runs);
        let mut agent = pair.both("ebpf", "").program(&own).start();
        replace(&own, wanted);
        let told = format!("the running agent is of line {is}");
        refused(&agent, "all", &told);
        refused(&agent, "all", &format!("this program of line {wants}"));
        refused(&agent, "all", "the agent has to be started anew");
        // So it is.
        assert!(agent.terminate().success());
        agent.restart();
        assert!(agent.terminate().success());
    }
}
