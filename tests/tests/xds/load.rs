//! A configuration that changes all the time.

use std::fs;
use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use shunt_tests::agent::signal;
use shunt_tests::{Agent, wait};

use crate::scene::Scene;

const SWAPS: u32 = 100;
/// Nobody's memory has grown by then.
const MORE_SWAPS: u32 = 300;
/// Bytes by which the two processes together may differ.
const GROWTH: u64 = 8 << 20;

/// Every answer is 200 and says which routes and which listener it took: those of one change. Nobody goes back to what was
/// in force before: only the two workers may differ, by one change, as the next waits for both.
const SCRIPT: &str = "
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init() bad = 0; good = 0; last = 0 end
function response(status, headers)
  local routes = tonumber(string.match(headers['x-version'] or '', '^v(%d+)$'))
  local listener = tonumber(string.match(headers['server'] or '', '^shunt(%d*)$') or '') or 0
  if status == 200 and routes and listener == routes - routes % 10 and routes + 1 >= last then
    good = good + 1
    last = math.max(last, routes)
  else
    bad = bad + 1
  end
end
function done(summary)
  local bad, good = 0, 0
  for _, thread in ipairs(threads) do bad = bad + thread:get('bad'); good = good + thread:get('good') end
  local errors = summary.errors
  io.write(string.format('good %d bad %d connect %d read %d write %d timeout %d\\n',
    good, bad, errors.connect, errors.read, errors.write, errors.timeout))
end
";

/// The routes change each time, endpoints, clusters and listeners now and then.
fn swap(scene: &Scene, agent: &Agent, number: u32) {
    let before = wait::until("all have the last one", Duration::from_secs(10), || {
        generation(agent)
    });
    scene.endpoints(&format!("e{number}"), 1 + number % 7);
    if number.is_multiple_of(3) {
        scene.cluster(&format!("c{number}"), &format!("{}s", 1 + number % 5));
    }
    if number.is_multiple_of(10) {
        let second = if number.is_multiple_of(20) {
            "also"
        } else {
            ""
        };
        scene.listeners_of("web", second, &format!("shunt{number}"));
    }
    scene.routes(&format!("v{number}"));
    wait::until("all have the swap", Duration::from_secs(10), || {
        (generation(agent)? > before).then_some(())
    });
}

/// Of the configuration in force, once every worker has it.
fn generation(agent: &Agent) -> Option<u64> {
    let (_, text) = agent.admin("GET", "/server_info", "");
    let info: Value = serde_json::from_str(&text).ok()?;
    let last = info["generation"].as_u64()?;
    let workers = info["worker_generations"].as_array()?;
    let have_it = workers.iter().all(|seen| seen.as_u64() == Some(last));
    (workers.len() == 2 && have_it).then_some(last)
}

#[test]
fn a_hundred_swaps_under_load_cost_nobody_a_request() {
    let scene = Scene::new();
    let agent = scene.agent();
    let script = scene.at("all.lua");
    fs::write(&script, SCRIPT).expect("written");
    let url = format!("http://{}/", scene.gateway.v4);
    let script = script.display().to_string();
    let mut command = scene.client.command("wrk");
    command.args(["-t1", "-c8", "-d300s", "-s", &script, &url]);
    let mut wrk = command
        .stdout(Stdio::piped())
        .spawn()
        .expect("wrk is there");
    let begun = Instant::now();
    for number in 2..2 + SWAPS {
        swap(&scene, &agent, number);
    }
    println!("{SWAPS} swaps in {:?}", begun.elapsed());
    let ended = wrk.try_wait().expect("a child");
    assert!(
        ended.is_none(),
        "the load ended before the swaps: {ended:?}"
    );
    signal("-INT", wrk.id());
    let mut said = String::new();
    let stdout = wrk.stdout.as_mut().expect("a pipe");
    stdout.read_to_string(&mut said).expect("text");
    wrk.wait().expect("it ended");
    let told = said.lines().find(|line| line.starts_with("good "));
    let told = told.unwrap_or_else(|| panic!("{said}"));
    assert!(
        told.ends_with(" bad 0 connect 0 read 0 write 0 timeout 0"),
        "{told}"
    );
    assert!(!told.starts_with("good 0"), "{told}");
    println!("{told}");
    wait::until("all have the last one", Duration::from_secs(5), || {
        (generation(&agent)? >= u64::from(SWAPS)).then_some(())
    });

    let before = memory(&agent);
    for number in 2 + SWAPS..2 + SWAPS + MORE_SWAPS {
        swap(&scene, &agent, number);
    }
    let after = memory(&agent);
    assert!(after < before + GROWTH, "{before} -> {after} bytes");
    assert_eq!(scene.version(80), format!("v{}", 1 + SWAPS + MORE_SWAPS));
}

/// Resident bytes of both processes.
fn memory(agent: &Agent) -> u64 {
    let of = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        number
            .and_then(|text| text.parse::<u64>().ok())
            .expect("a number")
            << 10
    };
    of(agent.pid()) + of(agent.worker_pid().expect("a data plane"))
}
