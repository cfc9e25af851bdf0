//! `shunt-conform`: what programs see of their sockets, so that a data path can be judged by it.
//!
//! A *row* is a conversation of two sides, and what each saw is a few words that are the same each time: its
//! *observation*. `serve` runs in one pod and `call` in another; they agree over a unix socket, past the network.
//! [`observe`] runs all rows and gives what was seen, by the variant's name. What should be seen is said in
//! `tests/conformance/`, and where a path differs in docs/semantics.md.

mod lesson;
mod link;
mod raw;
mod row;
mod rows;
mod wire;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use nix::sys::socket::MsgFlags;

use self::link::Link;
use self::row::{Acceptor, Caller, End, Fault, Row, Seen, Sides, Variant};
use self::wire::Wire;
use crate::wait;
use crate::world::Pod;

/// A side that takes longer hangs. Rows take some 100 ms; a busy machine may stop all of us for a while.
const LONGEST: Duration = Duration::from_secs(8);
/// The same for rows that move many bytes, or wait for the kernel's own timers.
const LONGEST_OF_LONG: Duration = Duration::from_secs(20);
/// Rows at once. Most of a row is waiting.
const AT_ONCE: usize = 16;
/// No more rows are begun when so many hang, or after this: a path on which all hang must still be told of.
const HUNG: usize = 20;
const SUITE: Duration = Duration::from_secs(30);
/// Words exchanged before a warm row, and the rest before the last two: a path that is chosen late is chosen in it.
const WORDS: usize = 5;
const REST: Duration = Duration::from_millis(20);

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Ends when its stdin does
    Serve {
        #[arg(long)]
        control: PathBuf,
        #[arg(long)]
        learn: bool,
    },
    Call {
        #[arg(long)]
        control: PathBuf,
        /// The server's addresses; ports are agreed on
        #[arg(long)]
        v4: std::net::IpAddr,
        #[arg(long)]
        v6: std::net::IpAddr,
        /// Only variants whose name contains this
        #[arg(long, default_value = "")]
        only: String,
        /// Before each row, connections to the same port that behave well, of the row's kind
        #[arg(long)]
        learn: bool,
    },
}

/// The program's `main`. Prints a line for each side of each variant: side, name, observation.
///
/// # Errors
/// The two roles cannot come together. What rows see is never an error.
pub fn run() -> Result<()> {
    match Cli::parse().role {
        Role::Serve { control, learn } => serve(&control, learn),
        Role::Call {
            control,
            v4,
            v6,
            only,
            learn,
        } => {
            let server = [v4, v6].map(|ip| SocketAddr::new(ip, 0));
            call(&control, server, &only, learn)
        }
    }
}

fn serve(control: &Path, learn: bool) -> Result<()> {
    let listener = UnixListener::bind(control).context("the control socket")?;
    let busy = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&busy);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let busy = Arc::clone(&counted);
            busy.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                // A caller that is gone says so itself.
                let _ = answer_one(stream, learn);
                busy.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    std::io::stdin().read_to_end(&mut Vec::new())?;
    wait::until("all rows end", 2 * LONGEST_OF_LONG, || {
        (busy.load(Ordering::SeqCst) == 0).then_some(())
    });
    Ok(())
}

fn answer_one(stream: UnixStream, learn: bool) -> Result<()> {
    let mut link = Link::new(stream)?;
    let wanted = link.hear().map_err(gone)?;
    let all = rows::all().into_iter().flat_map(Row::variants);
    let variant = all
        .into_iter()
        .find(|variant| variant.to_string() == wanted)
        .context("no such row")?;
    let port = if learn { lesson::port() } else { 0 };
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    let port = listener.local_addr()?.port();
    link.tell(&port.to_string()).map_err(gone)?;
    let nonblocking = variant.nonblocking;
    if learn {
        lesson::give(&listener, nonblocking).map_err(gone)?;
    }
    report(variant, variant.turned, move || match variant.row.sides {
        Sides::Call { acceptor, .. } => acceptor(Acceptor {
            link,
            listener,
            nonblocking,
        }),
        Sides::Pair { .. } => {
            let (socket, _) = listener.accept()?;
            drop(listener);
            play(variant, socket, link, variant.turned)
        }
    });
    Ok(())
}

fn call(control: &Path, server: [SocketAddr; 2], only: &str, learn: bool) -> Result<()> {
    let all = rows::all().into_iter().flat_map(Row::variants);
    let wanted: Vec<Variant> = all
        .filter(|variant| variant.to_string().contains(only))
        .collect();
    let (next, hung, begun) = (AtomicUsize::new(0), AtomicUsize::new(0), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(variant) = wanted.get(next.fetch_add(1, Ordering::SeqCst)) {
                    if begun.elapsed() > SUITE || hung.load(Ordering::SeqCst) > HUNG {
                        return;
                    }
                    match call_one(*variant, control, server, learn) {
                        Ok(true) => {}
                        Ok(false) => drop(hung.fetch_add(1, Ordering::SeqCst)),
                        Err(error) => {
                            say(*variant, !variant.turned, &format!("not run: {error:#}"))
                        }
                    }
                }
            });
        }
    });
    Ok(())
}

/// False when it hangs.
fn call_one(
    variant: Variant,
    control: &Path,
    server: [SocketAddr; 2],
    learn: bool,
) -> Result<bool> {
    let stream = UnixStream::connect(control).context("the control socket")?;
    let mut link = Link::new(stream)?;
    link.tell(&variant.to_string()).map_err(gone)?;
    let port: u16 = link.hear().map_err(gone)?.parse()?;
    let [v4, v6] = server.map(|at| SocketAddr::new(at.ip(), port));
    let nonblocking = variant.nonblocking;
    if learn {
        lesson::take(v4, nonblocking).map_err(gone)?;
    }
    let ended = report(variant, !variant.turned, move || match variant.row.sides {
        Sides::Call { caller, .. } => caller(Caller {
            link,
            v4,
            v6,
            nonblocking,
        }),
        Sides::Pair { .. } => play(variant, TcpStream::connect(v4)?, link, !variant.turned),
    });
    Ok(ended)
}

fn gone(fault: Fault) -> anyhow::Error {
    anyhow::anyhow!("the other role: {fault}")
}

/// One side of a row on a connection.
fn play(variant: Variant, socket: TcpStream, link: Link, is_near: bool) -> Seen {
    let wire = Wire::new(socket, variant.nonblocking)?;
    if variant.warm {
        warm(&wire, is_near)?;
    }
    let end = End { wire, link };
    match variant.row.sides {
        Sides::Pair { near, .. } if is_near => near(end),
        Sides::Pair { far, .. } => far(end),
        Sides::Call { .. } => Err(Fault::Alone),
    }
}

fn warm(wire: &Wire, speaks_first: bool) -> Result<(), Fault> {
    let hear = |word: &mut [u8]| {
        let flags = MsgFlags::empty();
        let heard = wire.recv_with(word, flags)?;
        let whole = heard == word.len() && word.iter().all(|byte| *byte == b'w');
        whole.then_some(()).ok_or(Fault::Saw("no warm word".into()))
    };
    for number in 0..WORDS {
        if number + 2 == WORDS {
            wait::pause(REST);
        }
        if speaks_first {
            wire.send(&[b'w'; 100])?;
            hear(&mut [0; 100])?;
        } else {
            hear(&mut [0; 100])?;
            wire.send(&[b'w'; 100])?;
        }
    }
    Ok(())
}

/// Runs a side and says what it saw, also if it comes to no end: then false.
fn report(variant: Variant, is_near: bool, side: impl FnOnce() -> Seen + Send + 'static) -> bool {
    let (told, result) = mpsc::channel();
    std::thread::spawn(move || {
        let seen = side().unwrap_or_else(|fault| fault.to_string());
        // Nobody waits any more when it was late.
        let _ = told.send(seen);
    });
    let longest = if variant.row.is_long {
        LONGEST_OF_LONG
    } else {
        LONGEST
    };
    let result = result.recv_timeout(longest);
    let seen = match &result {
        Ok(seen) => seen,
        Err(mpsc::RecvTimeoutError::Timeout) => "hangs",
        Err(mpsc::RecvTimeoutError::Disconnected) => "panics",
    };
    say(variant, is_near, seen);
    result.is_ok()
}

fn say(variant: Variant, is_near: bool, seen: &str) {
    let side = if is_near { "near" } else { "far" };
    // Whoever started us reads to our end.
    let _ = writeln!(std::io::stdout(), "{side}\t{variant}\t{seen}");
}

/// Runs all rows between two pods: what was seen, by the variant's name: `near ...; far ...`. Whether each row comes after
/// connections that behave well, of its own kind and to its own port.
///
/// # Panics
/// The program cannot be started, or does not come to an end.
pub fn observe(
    client: &Pod,
    server: &Pod,
    control: &Path,
    (only, learn): (&str, bool),
) -> BTreeMap<String, String> {
    let program = program();
    let path = control.display().to_string();
    let lessons = learn.then_some("--learn");
    // An earlier run's: with it nobody could be called, and nothing be seen again.
    let _ = std::fs::remove_file(control);
    let mut serve = server.command(&program);
    serve.args(["serve", "--control", &path]).args(lessons);
    let mut serve = Reaped(
        serve
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts"),
    );
    wait::until("it listens", Duration::from_secs(10), || {
        control.exists().then_some(())
    });
    let mut call = client.command(&program);
    call.args([
        "call",
        "--control",
        &path,
        "--v4",
        &server.v4,
        "--v6",
        &server.v6,
    ]);
    let call = call
        .args(["--only", only])
        .args(lessons)
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    assert!(call.status.success(), "{call:?}");
    drop(serve.0.stdin.take());
    let mut text = String::from_utf8(call.stdout).expect("text");
    let mut stdout = serve.0.stdout.take().expect("a pipe");
    stdout.read_to_string(&mut text).expect("text");
    merged(&text).expect("three words a line")
}

fn merged(text: &str) -> Result<BTreeMap<String, String>> {
    let mut sides: BTreeMap<(String, bool), String> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.splitn(3, '\t');
        let (Some(side), Some(name), Some(seen)) = (words.next(), words.next(), words.next())
        else {
            anyhow::bail!("{line:?}");
        };
        let told = sides.insert((name.to_owned(), side == "far"), seen.to_owned());
        ensure!(told.is_none(), "{name} twice");
    }
    let names: Vec<String> = sides.keys().map(|(name, _)| name.clone()).collect();
    let of = |name: &str, far| {
        let side = sides.get(&(name.to_owned(), far));
        side.map_or("nothing", String::as_str)
    };
    let both = names.iter().map(|name| {
        (
            name.clone(),
            format!("near {}; far {}", of(name, false), of(name, true)),
        )
    });
    Ok(both.collect())
}

/// Killed and reaped when dropped.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program, which cargo built beside the tests.
fn program() -> String {
    let test = std::env::current_exe().expect("a path");
    let mut places = test.ancestors().map(|dir| dir.join("shunt-conform"));
    let found = places.find(|path| path.is_file()).expect("shunt-conform");
    found.display().to_string()
}
