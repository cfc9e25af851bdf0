//! A Python program in a pod, with which a test talks line by line.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use crate::world::Pod;

/// Killed when dropped.
#[derive(Debug)]
pub struct Script {
    child: Child,
    /// `None`: closed.
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Script {
    /// # Panics
    /// It cannot be started.
    pub fn start(pod: &Pod, script: &str, args: &[&str]) -> Self {
        let mut command = pod.command("python3");
        command.args(["-c", script]).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 runs");
        Self {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().expect("a pipe")),
            child,
        }
    }

    /// Its next line; nothing when it has ended.
    ///
    /// # Panics
    /// It is no text.
    pub fn says(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("text");
        line.trim().to_owned()
    }

    /// # Panics
    /// It hears nothing any more.
    pub fn tell(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("not closed");
        writeln!(stdin, "{line}").expect("it reads");
    }

    /// Nothing more will be told.
    pub fn told_all(&mut self) {
        self.stdin = None;
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn succeeds(&mut self) {
        self.told_all();
        let status = self.child.wait().expect("a status");
        assert!(status.success(), "the program failed: {status}");
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
