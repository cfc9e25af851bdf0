//! The agent under test, as its users run it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

pub use self::config::entry;
use self::config::{THROUGH_THE_AGENT, config};
use crate::world::{Pod, World};
use crate::{admin, require, wait};

mod config;
mod host;
mod processes;

/// Lines of its log that are shown when a test fails.
const LAST_WORDS: usize = 30;

static CHOSEN: OnceLock<PathBuf> = OnceLock::new();

/// Makes this binary the agent, for callers that built one.
pub fn use_binary(path: PathBuf) {
    // The first choice stands.
    let _ = CHOSEN.set(path);
}

/// The agent's binary: as chosen, else `$SHUNT_BIN`, else what cargo built beside the tests.
pub fn binary() -> PathBuf {
    if let Some(chosen) = CHOSEN.get() {
        return chosen.clone();
    }
    if let Some(path) = std::env::var_os("SHUNT_BIN") {
        return PathBuf::from(path);
    }
    let test = std::env::current_exe().expect("a path");
    let target = test
        .ancestors()
        .find(|dir| dir.join("shunt").is_file())
        .expect("target/*/shunt: build it first");
    target.join("shunt")
}

/// A configuration in the making.
#[derive(Debug)]
pub struct AgentBuilder<'a> {
    world: &'a World,
    mode: String,
    settings: String,
    workloads: Vec<String>,
    program: PathBuf,
    prefix: Vec<String>,
    arguments: Vec<String>,
}

/// A running agent, stopped when dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    pub dir: PathBuf,
    mode: String,
    program: PathBuf,
    prefix: Vec<String>,
    arguments: Vec<String>,
    settings: String,
}

impl<'a> AgentBuilder<'a> {
    pub fn new(world: &'a World, mode: &str) -> Self {
        Self {
            world,
            mode: mode.to_owned(),
            settings: String::new(),
            workloads: Vec::new(),
            program: binary(),
            prefix: Vec::new(),
            arguments: Vec::new(),
        }
    }

    /// Enrols a namespace without saying a cgroup.
    #[must_use]
    pub fn enrol_without_cgroup(mut self, name: &str, pod: &Pod) -> Self {
        let line = format!(
            "  - {{name: {name}, netns: {}, {THROUGH_THE_AGENT}}}\n",
            pod.netns
        );
        self.workloads.push(line);
        self
    }

    /// The agent is this file, instead of [`binary`].
    #[must_use]
    pub fn program(mut self, file: &Path) -> Self {
        self.program = file.to_owned();
        self
    }

    /// The agent's own namespace is this pod's.
    #[must_use]
    pub fn inside(mut self, pod: &Pod) -> Self {
        self.prefix = ["ip", "netns", "exec", &pod.netns]
            .map(str::to_owned)
            .into();
        self
    }

    /// These words stand before its own.
    pub(crate) fn behind(mut self, prefix: Vec<String>) -> Self {
        self.prefix = prefix;
        self
    }

    /// Enrols what a line of the list of workloads says.
    pub(crate) fn listed(mut self, line: String) -> Self {
        self.workloads.push(line);
        self
    }

    /// A further setting at the top of the file, as `splice_after: off`.
    #[must_use]
    pub fn set(mut self, line: &str) -> Self {
        self.settings += &format!("{line}\n");
        self
    }

    /// A further word on its command line.
    #[must_use]
    pub fn argument(mut self, word: &str) -> Self {
        self.arguments.push(word.to_owned());
        self
    }

    /// Enrols a pod; `more` are further fields as in the YAML flow mapping, such as `on_failure: closed`.
    #[must_use]
    pub fn enrol(mut self, name: &str, pod: &Pod, more: &str) -> Self {
        self.workloads.push(entry(name, pod, more));
        self
    }

    /// # Panics
    /// The agent does not become ready, or does not serve one of those enrolled: traffic that goes directly would
    /// look like success.
    pub fn start(self) -> Agent {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // Its own, also for a second agent in the same world: the logs start empty.
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = self.world.dir.path().join(format!("agent{number}"));
        fs::create_dir_all(&dir).expect("a directory");
        fs::write(
            dir.join("shunt.yaml"),
            config(&dir, &self.mode, &self.settings, &self.workloads),
        )
        .expect("written");
        let mut agent = Agent {
            child: spawn(&dir, &self.program, &self.prefix, &self.arguments),
            dir,
            program: self.program,
            mode: self.mode,
            prefix: self.prefix,
            arguments: self.arguments,
            settings: self.settings,
        };
        agent.wait_until_ready();
        let status = agent.status();
        let all = status["workloads"].as_array().expect("a list");
        let of_file = |workload: &&Value| workload["labels"]["shunt.io/pod-uid"].is_null();
        let served = all.iter().filter(|workload| workload["state"] == "ready");
        let served = served.filter(of_file);
        assert_eq!(served.count(), self.workloads.len(), "{status:#}");
        agent
    }
}

fn spawn(dir: &Path, program: &Path, prefix: &[String], arguments: &[String]) -> Child {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .expect("a log");
    require::prefixed(prefix, program)
        .args(["run", "-c"])
        .arg(dir.join("shunt.yaml"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("the agent starts")
}

impl Agent {
    fn wait_until_ready(&mut self) {
        wait::until("the agent is ready", Duration::from_secs(20), || {
            if let Some(status) = self.child.try_wait().expect("a status") {
                panic!("the agent ended: {status}\n{}", self.log());
            }
            (self.admin("GET", "/ready", "").0 == 200).then_some(())
        });
    }

    /// Starts it anew after its end, with the same configuration.
    ///
    /// # Panics
    /// It does not become ready.
    pub fn restart(&mut self) {
        let _ = self.child.wait();
        self.child = spawn(&self.dir, &self.program, &self.prefix, &self.arguments);
        self.wait_until_ready();
    }

    /// Status and body of a request to the admin socket; 0 when nobody answers.
    pub fn admin(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let socket = self.dir.join("admin.sock");
        admin::request(&socket, method, path, body).unwrap_or_default()
    }

    /// # Panics
    /// The agent does not answer.
    /// An event of the kernel programs. It is told by and by: wait for it. `None`: there is no such event.
    pub fn kernel_count(&self, event: &str) -> Option<u64> {
        let (_, stats) = self.admin("GET", "/stats", "");
        let name = format!("kernel.{event}: ");
        let number = stats.lines().find_map(|line| line.strip_prefix(&name));
        number?.parse().ok()
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.admin("GET", "/workloads", "").1).expect("JSON")
    }

    /// One workload of [`Agent::status`].
    ///
    /// # Panics
    /// There is none of that name.
    pub fn workload(&self, name: &str) -> Value {
        let status = self.status();
        let all = status["workloads"].as_array().expect("a list").clone();
        all.into_iter()
            .find(|workload| workload["name"] == name)
            .expect("the workload")
    }

    /// The access log so far.
    pub fn access_log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.join("access.log")).unwrap_or_default();
        // The last piece is empty, or a line that is still being written.
        let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
        whole
            .lines()
            .map(|line| serde_json::from_str(line).expect("a JSON line"))
            .collect()
    }

    /// Waits for the access log to hold `count` lines, and gives them.
    ///
    /// # Panics
    /// There are fewer after a few seconds, or more.
    pub fn lines(&self, count: usize) -> Vec<Value> {
        let lines = wait::until(
            &format!("{count} access log lines"),
            Duration::from_secs(5),
            || {
                let lines = self.access_log();
                (lines.len() >= count).then_some(lines)
            },
        );
        assert_eq!(lines.len(), count, "{lines:#?}");
        lines
    }

    /// What it said on stderr.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Replaces the list of workloads in the configuration file.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn rewrite(&self, workloads: &[String]) {
        self.rewrite_text(&config(&self.dir, &self.mode, &self.settings, workloads));
    }

    /// Replaces a part of the configuration file, and waits until everybody has this section changed.
    ///
    /// # Panics
    /// There is no such part, or the section stays as it was.
    pub fn edit(&self, section: &str, part: &str, by: &str) {
        let shown = || {
            let dump = self.admin("GET", "/config_dump", "").1;
            let dump: Value = serde_json::from_str(&dump).expect("JSON");
            dump[section].clone()
        };
        let said = || {
            self.log()
                .matches("the changed configuration is in force")
                .count()
        };
        let (before, said_before) = (shown(), said());
        let text = fs::read_to_string(self.dir.join("shunt.yaml")).expect("a file");
        assert!(text.contains(part), "no {part} in {text}");
        self.rewrite_text(&text.replacen(part, by, 1));
        wait::until("the change is in force", Duration::from_secs(10), || {
            (said() > said_before && shown() != before).then_some(())
        });
    }

    /// Replaces the configuration file as editors do.
    ///
    /// # Panics
    /// The file cannot be written.
    pub fn rewrite_text(&self, text: &str) {
        let new = self.dir.join("shunt.yaml.new");
        fs::write(&new, text).expect("written");
        fs::rename(new, self.dir.join("shunt.yaml")).expect("renamed");
    }

    /// SIGTERM, and its end.
    ///
    /// # Panics
    /// It does not end.
    pub fn terminate(&mut self) -> ExitStatus {
        signal("-TERM", self.pid());
        wait::until("the agent ends", Duration::from_secs(40), || {
            self.child.try_wait().expect("a status")
        })
    }

    /// SIGKILL to the supervisor, and its end.
    ///
    /// # Panics
    /// It cannot be waited for.
    pub fn kill(&mut self) {
        signal("-KILL", self.pid());
        self.child.wait().expect("ended");
    }
}

impl Agent {
    /// For whoever reads of a failed test: its directory is gone by then.
    #[expect(clippy::print_stderr, reason = "a failed test's output")]
    fn last_words(&self) {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LAST_WORDS)..];
        let stats = self.admin("GET", "/stats", "").1;
        eprintln!("the agent said last:\n{}\n{stats}", last.join("\n"));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.last_words();
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            signal("-TERM", self.pid());
            for _ in 0..500 {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                wait::pause(Duration::from_millis(10));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Sends a signal to a process that we started.
pub fn signal(name: &str, pid: u32) {
    let _ = Command::new("kill").args([name, &pid.to_string()]).status();
}
