//! What goes on while somebody upgrades, and the upgrade.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use shunt_tests::agent::{binary, signal};
use shunt_tests::{Agent, Pair, Pod, Script, wait};

/// Lines that are numbered, one each 10 ms, until told to end. Of each connection.
pub const SERVER: &str = "
import socket, sys, threading, time
listening = socket.create_server(('', 7000))
print('ready', flush=True)
over = threading.Event()
def talk(client):
    with client:
        number = 0
        try:
            while not over.is_set():
                client.sendall(b'%d\\n' % number); number += 1; time.sleep(0.01)
            client.sendall(b'end\\n')
        except OSError: pass
def serve():
    while True: threading.Thread(target=talk, args=(listening.accept()[0],), daemon=True).start()
threading.Thread(target=serve, daemon=True).start()
sys.stdin.readline()
over.set(); time.sleep(1)
";
/// Says `begun`, and at the end what was wrong, or how many lines there were.
pub const CLIENT: &str = "
import socket, sys
lines = socket.create_connection((sys.argv[1], 7000), 10).makefile()
number = 0
try:
    for line in lines:
        if line == 'end\\n': print('whole', number, flush=True); break
        if line != '%d\\n' % number: print('wrong', number, line, flush=True); break
        number += 1
        if number == 1: print('begun', flush=True)
    else: print('cut off', number, flush=True)
except OSError as error: print('failed', error, flush=True)
";

pub struct Stream {
    server: Script,
    client: Script,
}

impl Stream {
    pub fn begin(pair: &Pair) -> Self {
        let mut server = Script::start(&pair.server, SERVER, &[]);
        assert_eq!(server.says(), "ready");
        let mut client = Script::start(&pair.client, CLIENT, &[&pair.server.v4]);
        assert_eq!(client.says(), "begun");
        Self { server, client }
    }

    pub fn end(mut self) -> String {
        self.server.tell("end");
        self.client.says()
    }
}

/// wrk, at full load. It has patience: while a supervisor succeeds itself, who needs a fresh socket waits for it, and on a slow machine
/// for longer than wrk's two seconds.
pub struct Wrk(std::process::Child);

impl Wrk {
    pub fn start(pod: &Pod, words: &[&str], url: &str) -> Self {
        let mut command = pod.command("wrk");
        command
            .args(["-t1", "-c10", "-d300s", "--timeout", "10s"])
            .args(words)
            .arg(url);
        Self(command.stdout(Stdio::piped()).spawn().expect("wrk runs"))
    }

    /// Every request was answered. Says how many.
    pub fn end(self, least: u64) -> u64 {
        signal("-INT", self.0.id());
        let said = self.0.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(!said.contains("Socket errors"), "{said}");
        assert!(!said.contains("Non-2xx"), "{said}");
        let words: Vec<&str> = said.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "requests");
        let requests: u64 = words[at.expect("requests") - 1].parse().expect("a number");
        assert!(requests >= least, "{said}");
        requests
    }
}

pub fn upgrade(agent: &Agent, part: &str) -> Output {
    Command::new(binary())
        .args(["upgrade", part, "--socket"])
        .arg(agent.dir.join("admin.sock"))
        .output()
        .expect("runs")
}

#[track_caller]
pub fn upgraded(agent: &Agent) {
    upgraded_of(agent, "data-plane");
}

#[track_caller]
pub fn upgraded_of(agent: &Agent, part: &str) {
    let before = agent.worker_pids();
    let output = upgrade(agent, part);
    let (said, wrong) = (output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{wrong}");
    let now = agent.status()["agent"]["worker_pid"].as_u64();
    let now = u32::try_from(now.expect("a number")).expect("a pid");
    assert!(!before.contains(&now), "{}", String::from_utf8_lossy(&said));
    assert_eq!(agent.admin("GET", "/ready", ""), (200, "LIVE\n".into()));
}

#[track_caller]
pub fn refused(agent: &Agent, part: &str, reason: &str) {
    let before = agent.worker_pid();
    let output = upgrade(agent, part);
    let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{wrong}");
    assert!(wrong.contains(reason), "{wrong}");
    assert!(wrong.contains("nothing has changed"), "{wrong}");
    assert_eq!(agent.worker_pid(), before);
    assert_eq!(agent.admin("GET", "/ready", ""), (200, "LIVE\n".into()));
}

pub fn one_is_left(agent: &Agent) {
    wait::until("earlier data planes end", Duration::from_secs(10), || {
        let shown = &agent.status()["agent"]["retired_pids"];
        (agent.worker_pids().len() == 1 && shown.as_array().is_some_and(Vec::is_empty))
            .then_some(())
    });
}
