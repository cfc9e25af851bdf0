//! What systemd is told by the agent, and what its unit asks of systemd.

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use shunt_tests::agent::signal;
use shunt_tests::{Agent, Pair, wait};

/// A service manager's socket.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(dir: &Path) -> Self {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        let patience = Some(Duration::from_secs(20));
        socket.set_read_timeout(patience).expect("set");
        Self { socket, path }
    }

    fn next(&self) -> String {
        let mut bytes = [0; 4096];
        let length =
            wait::uninterrupted(|| self.socket.recv(&mut bytes)).expect("a message in time");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    /// What is said until there is a message with this in it, which comes last.
    fn until(&self, wanted: &str) -> Vec<String> {
        let mut heard = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            heard.push(self.next());
            if heard.last().is_some_and(|last| last.contains(wanted)) {
                return heard;
            }
        }
        panic!("no {wanted} in {heard:?}");
    }

    /// Nothing more is in the queue.
    fn drain(&self) {
        self.socket.set_nonblocking(true).expect("set");
        let mut bytes = [0; 4096];
        while self.socket.recv(&mut bytes).is_ok() {}
        self.socket.set_nonblocking(false).expect("set");
    }

    fn serve(&self, scene: &Pair, watchdog: bool) -> Agent {
        let mut variables = vec![format!("NOTIFY_SOCKET={}", self.path.display())];
        if watchdog {
            variables.push("WATCHDOG_USEC=60000000".to_owned());
        }
        let builder = scene.both("ebpf", "");
        builder.with_environment(&variables).start()
    }
}

#[test]
fn it_is_told_of_the_start_of_changes_and_of_the_end() {
    let scene = Pair::new();
    let manager = Manager::new(scene.world.dir.path());
    let mut agent = manager.serve(&scene, false);
    let heard = manager.until("READY=1");
    assert!(!heard.iter().any(|line| line.contains("WATCHDOG")));
    manager.until("STATUS=2 of 2 workloads served");
    agent.rewrite(&[]);
    let heard = manager.until("RELOADING=1");
    assert!(heard.last().unwrap().contains("\nMONOTONIC_USEC="));
    manager.until("READY=1");
    manager.until("STATUS=0 of 0 workloads served");
    // A wrong file changes nothing, and is over as soon.
    agent.rewrite_text("mode: none\n");
    manager.until("RELOADING=1");
    manager.until("READY=1");
    assert!(agent.terminate().success());
    manager.until("STOPPING=1");
}

#[test]
fn the_watchdog_is_fed_while_the_loop_turns() {
    let scene = Pair::new();
    let manager = Manager::new(scene.world.dir.path());
    let mut agent = manager.serve(&scene, true);
    for _ in 0..4 {
        manager.until("WATCHDOG=1");
    }
    signal("-STOP", agent.pid());
    manager.drain();
    let pause = Some(Duration::from_secs(1));
    manager.socket.set_read_timeout(pause).expect("set");
    let mut bytes = [0; 64];
    let heard = wait::uninterrupted(|| manager.socket.recv(&mut bytes));
    signal("-CONT", agent.pid());
    assert!(heard.is_err(), "fed by whom?");
    let patience = Some(Duration::from_secs(20));
    manager.socket.set_read_timeout(patience).expect("set");
    manager.until("WATCHDOG=1");
    // At the end it is told to wait as long as flows may take.
    assert!(agent.terminate().success());
    let heard = manager.until("STOPPING=1");
    assert!(
        heard.last().unwrap().contains("WATCHDOG_USEC="),
        "{heard:?}"
    );
}

/// What is kept for the next agent goes with the workload.
#[test]
fn it_is_told_what_to_keep_and_what_to_forget() {
    let scene = Pair::new();
    let manager = Manager::new(scene.world.dir.path());
    let mut agent = manager.serve(&scene, false);
    let names = |messages: &[String], verb: &str| -> BTreeSet<String> {
        let lines = messages.iter().filter(|message| message.starts_with(verb));
        let names = lines.filter_map(|message| message.split_once("FDNAME="));
        let name = |rest: &str| rest.lines().next().expect("a name").to_owned();
        names.map(|(_, rest)| name(rest)).collect()
    };
    let heard = manager.until("STATUS=2 of 2 workloads served");
    let kept = names(&heard, "FDSTORE=1");
    // Outbound and inbound of two, and where connections were going.
    assert_eq!(kept.len(), 5, "{heard:?}");
    let all = heard
        .iter()
        .filter(|message| message.starts_with("FDSTORE=1"));
    assert!(
        all.clone().all(|message| message.contains("\nFDPOLL=0")),
        "{heard:?}"
    );
    agent.rewrite(&[]);
    let heard = manager.until("STATUS=0 of 0 workloads served");
    let listeners = kept.iter().filter(|name| !name.starts_with("destinations"));
    let forgotten = names(&heard, "FDSTOREREMOVE=1");
    assert_eq!(forgotten, listeners.cloned().collect(), "{heard:?}");
    assert!(agent.terminate().success());
    let heard = manager.until("FDSTOREREMOVE=1");
    assert!(
        heard
            .last()
            .is_some_and(|last| last.contains("FDNAME=destinations")),
        "{heard:?}"
    );
}

#[test]
fn systemd_understands_the_unit_and_finds_it_no_worse_than_it_has_to_be() {
    let dir = tempfile::tempdir().expect("a directory");
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/shunt.service");
    let text = std::fs::read_to_string(unit).expect("the unit");
    // Verified is also whether the program is there.
    let binary = shunt_tests::agent::binary();
    let text = text.replace("/usr/local/bin/shunt", &binary.display().to_string());
    let unit = dir.path().join("shunt.service");
    std::fs::write(&unit, &text).expect("written");
    let analyze = |args: &[&str]| {
        let mut command = Command::new("systemd-analyze");
        let output = command.args(args).arg(&unit).output().expect("runs");
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    let (valid, said) = analyze(&["verify", "--man=no"]);
    assert!(valid && !said.contains("shunt.service:"), "{said}");
    // Who is enrolled is written there: for the agent that is started next.
    let kept = text
        .lines()
        .any(|line| line == "RuntimeDirectoryPreserve=yes");
    assert!(kept, "its state goes with each restart");
    // What a start does not take shall be closed by it: nothing may fail before.
    assert!(!text.lines().any(|line| line.starts_with("ExecStartPre")));
    // Lines of the package's drop-in take the place of the unit's.
    let package = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../scripts/debian/10-path.conf"
    );
    let package = std::fs::read_to_string(package).expect("a drop-in");
    for key in ["ExecStart", "ExecReload"] {
        let commands = |text: &str| -> Vec<String> {
            let values = text
                .lines()
                .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            let values =
                values.map(|value| value.replace("/usr/bin/shunt", &binary.display().to_string()));
            values.collect()
        };
        let [emptied, command] = &commands(&package)[..] else {
            panic!("{package}");
        };
        assert_eq!(
            (emptied.as_str(), vec![command.clone()]),
            ("", commands(&text))
        );
    }
    let (_, said) = analyze(&["security", "--offline=true", "--no-pager"]);
    let level = said
        .lines()
        .find_map(|line| line.split_once("exposure level for shunt.service: "))
        .and_then(|(_, rest)| rest.split(' ').next()?.parse::<f64>().ok());
    // Of 10. What is left: capabilities, namespaces, sysctls and cgroups, which are what it is for.
    assert!(level.is_some_and(|level| level < 6.0), "{said}");
}
