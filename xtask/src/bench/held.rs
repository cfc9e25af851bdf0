//! Connections that are kept as they are until standard input ends: idle ones, and such that nobody reads.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use shunt_tests::{Pod, Running, wait};

use super::load::{DEAF_PORT, ECHO_PORT, SMALL};
use super::patient::Patient;
use crate::run::{answer, say};

/// Who could write nothing for so long is stuck.
const STUCK: Duration = Duration::from_millis(300);
const PAUSE: Duration = Duration::from_millis(5);
const WRITE: usize = 64 << 10;

/// Opens idle connections. Each carries a question at once, and one more when all are there.
pub(super) fn idle(host: &str, count: usize) -> Result<()> {
    let open = || -> Result<Patient> {
        let mut stream = Patient(TcpStream::connect((host, ECHO_PORT))?);
        ask(&mut stream)?;
        Ok(stream)
    };
    // Memory is what is measured here: a few that fail are told and made up for.
    let (mut streams, mut failed) = (Vec::with_capacity(count), 0);
    while streams.len() < count {
        match open() {
            Ok(stream) => streams.push(stream),
            Err(error) => {
                failed += 1;
                ensure!(failed <= count / 100, "{failed} failed, the last: {error}");
            }
        }
    }
    streams.iter_mut().try_for_each(ask)?;
    keep(&format!("open, {failed} failed"))
}

fn ask(stream: &mut Patient) -> Result<()> {
    let (message, mut got) = ([1; SMALL], [0; SMALL]);
    stream.write_all(&message)?;
    stream.read_exact(&mut got)?;
    ensure!(got == message, "a reply differs");
    Ok(())
}

/// Writes into connections until none of them takes anything any more.
pub(super) fn fill(host: &str, count: usize) -> Result<()> {
    let open = |_| -> io::Result<TcpStream> {
        let stream = TcpStream::connect((host, DEAF_PORT))?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    let mut streams = (0..count).map(open).collect::<io::Result<Vec<_>>>()?;
    let (bytes, mut written) = (vec![1; WRITE], 0_u64);
    let mut last = Instant::now();
    while last.elapsed() < STUCK {
        for stream in &mut streams {
            loop {
                match stream.write(&bytes) {
                    Ok(some) => (written, last) = (written + some as u64, Instant::now()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        wait::pause(PAUSE);
    }
    keep(&format!("stuck after {written} bytes"))
}

/// Accepts, and never reads.
pub(super) fn deaf() -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", DEAF_PORT)).context("the deaf port")?;
    let mut streams = Vec::new();
    for stream in listener.incoming() {
        streams.push(stream?);
    }
    Ok(())
}

fn keep(said: &str) -> Result<()> {
    answer(said);
    // An error is an end as well.
    let _ = io::stdin().read(&mut [0]);
    Ok(())
}

/// Starts `role` in a pod and waits until its connections are as they are to be. They are as long as the guard lives.
pub(super) fn hold(
    pod: &Pod,
    program: &str,
    role: &str,
    host: &str,
    count: u32,
) -> Result<Running> {
    let mut command = pod.command(program);
    let count = count.to_string();
    command.args(["bench-load", role, "--host", host, "--count", &count]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut held = Running(command.spawn().context("the holder starts")?);
    let out = held.0.stdout.take().context("a pipe")?;
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    ensure!(!line.is_empty(), "{role}: its connections failed");
    if line.starts_with("open, ") && line.trim() != "open, 0 failed" {
        say(&format!("{count} idle connections: {}", line.trim()));
    }
    Ok(held)
}
