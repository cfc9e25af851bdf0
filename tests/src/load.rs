//! `shunt-load`: load that proves where each connection went. It runs inside pods; [`Load`] starts it there.
//!
//! | role | what |
//! |---|---|
//! | `server` | answers each connection with a token and the address it was dialled at |
//! | `client` | opens connections at a given rate, checks every answer, measures |
//! | `body` | sends known bytes without a length: only the way the connection ends says whether they are whole |
//! | `fetch` | fetches such bodies over and over, and says how each ended |

mod body;
mod client;
pub mod pattern;
mod server;

use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;

use crate::wait;
use crate::world::Pod;

/// Every socket of a load is a descriptor.
const DESCRIPTORS: u64 = 200_000;

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    Server(server::Args),
    Client(client::Args),
    Body(body::BodyArgs),
    Fetch(body::FetchArgs),
}

/// The program's `main`. Clients print one line of JSON at their end, which comes at the latest with that of stdin.
///
/// # Errors
/// A server cannot listen, or a client cannot start. What connections do is counted, not an error.
pub fn run() -> Result<()> {
    let role = Cli::parse().role;
    raise_descriptor_limit()?;
    let report = match role {
        Role::Server(args) => return server::serve(&args),
        Role::Body(args) => return body::serve(&args),
        Role::Client(args) => client::run(&args, &stdin_closed())?,
        Role::Fetch(args) => body::fetch(&args, &stdin_closed()),
    };
    answer(&report.to_string());
    Ok(())
}

/// Not every root may raise the hard limit.
fn raise_descriptor_limit() -> Result<()> {
    if setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).is_ok() {
        return Ok(());
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read RLIMIT_NOFILE")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise RLIMIT_NOFILE")
}

#[expect(clippy::print_stdout, reason = "what the client was asked for")]
fn answer(text: &str) {
    println!("{text}");
}

/// Becomes true when whoever started us closes our stdin.
fn stdin_closed() -> Arc<AtomicBool> {
    let closed = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&closed);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        told.store(true, Ordering::Relaxed);
    });
    closed
}

/// The entry at `percent` of a sorted list.
pub fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    let at = sorted.get(sorted.len() * percent / 100);
    at.or(sorted.last()).copied()
}

/// A client in a pod; killed when dropped.
#[derive(Debug)]
pub struct Load {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Load {
    /// # Panics
    /// It cannot be started.
    pub fn start(pod: &Pod, args: &[&str]) -> Self {
        let mut command = pod.command(&program());
        command.args(args).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let stdin = child.stdin.take();
        Self { child, stdin }
    }

    /// Lets it go on to its own end, `longest` at most, and gives what it printed.
    ///
    /// # Panics
    /// It takes longer, or fails.
    pub fn report(mut self, longest: Duration) -> Value {
        wait::until("the load ends", longest, || {
            self.child.try_wait().expect("a status")
        });
        let mut text = String::new();
        let mut stdout = self.child.stdout.take().expect("a pipe");
        stdout.read_to_string(&mut text).expect("text");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Ends it, and gives what it printed.
    ///
    /// # Panics
    /// As [`Load::report`].
    pub fn finish(mut self) -> Value {
        self.stdin = None;
        self.report(Duration::from_secs(20))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, which cargo built beside the tests.
///
/// # Panics
/// It did not.
pub fn program() -> String {
    let test = std::env::current_exe().expect("a path");
    let mut places = test.ancestors().map(|dir| dir.join("shunt-load"));
    let found: PathBuf = places.find(|path| path.is_file()).expect("shunt-load");
    found.display().to_string()
}

/// Destinations as clients take them.
pub fn list(destinations: &[SocketAddr]) -> String {
    let all: Vec<String> = destinations.iter().map(SocketAddr::to_string).collect();
    all.join(",")
}
