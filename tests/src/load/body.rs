//! Bodies whose end is the connection's end, as in HTTP/1.0 without a length. One that was cut off must not end as if
//! it were whole.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::pattern::{PERIOD, is_pattern, pattern};
use crate::wait;

/// A body goes out in this many pieces, a pause after each.
const PIECES: usize = 20;
/// A transfer that stands still for this long has failed.
const STALL: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct BodyArgs {
    #[arg(long)]
    port: u16,
    #[arg(long)]
    bytes: usize,
    /// How long a body takes
    #[arg(long)]
    millis: u64,
}

#[derive(Debug, clap::Args)]
pub(super) struct FetchArgs {
    #[arg(long, value_delimiter = ',', required = true)]
    to: Vec<SocketAddr>,
    #[arg(long)]
    bytes: u64,
    /// Transfers at a time, to each destination
    #[arg(long, default_value_t = 1)]
    parallel: usize,
    /// One transfer each, and no further ones
    #[arg(long)]
    once: bool,
}

pub(super) fn serve(args: &BodyArgs) -> Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, args.port))
        .with_context(|| format!("port {}", args.port))?;
    let piece = args.bytes / PIECES;
    let known = pattern(piece);
    let pause = Duration::from_millis(args.millis) / PIECES as u32;
    std::thread::scope(|scope| {
        for mut stream in listener.incoming().flatten() {
            let known = &known;
            scope.spawn(move || {
                for number in 0..PIECES {
                    let from = (number * piece) as u64 % PERIOD;
                    let from = usize::try_from(from).unwrap_or_default();
                    // A client that is gone says so itself.
                    if stream.write_all(&known[from..from + piece]).is_err() {
                        return;
                    }
                    wait::pause(pause);
                }
            });
        }
    });
    Ok(())
}

/// Ends by name. `short` is the one that must not be: a clean end before the last byte.
pub(super) fn fetch(args: &FetchArgs, stop: &AtomicBool) -> Value {
    let ends: Mutex<BTreeMap<String, u64>> = Mutex::default();
    let known = pattern(64 << 10);
    std::thread::scope(|scope| {
        for to in &args.to {
            for _ in 0..args.parallel {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let end = fetch_one(*to, args.bytes, &known);
                        if end.starts_with("connect") {
                            wait::pause(Duration::from_millis(20));
                        }
                        let mut ends = ends.lock().expect("no thread panics");
                        *ends.entry(end).or_default() += 1;
                        if args.once {
                            return;
                        }
                    }
                });
            }
        }
    });
    json!({ "ends": ends.into_inner().unwrap_or_default() })
}

fn fetch_one(to: SocketAddr, bytes: u64, known: &[u8]) -> String {
    let mut stream = match TcpStream::connect(to) {
        Ok(stream) => stream,
        Err(error) => return format!("connect: {}", error.kind()),
    };
    match read(&mut stream, known) {
        Err(error) => format!("error: {}", error.kind()),
        Ok(None) => "wrong bytes".to_owned(),
        Ok(Some(got)) if got == bytes => "whole".to_owned(),
        Ok(Some(got)) => format!("short: {got} of {bytes} bytes from {to}"),
    }
}

/// To the end; `None` when a byte is wrong.
fn read(stream: &mut TcpStream, known: &[u8]) -> io::Result<Option<u64>> {
    stream.set_read_timeout(Some(STALL))?;
    let (mut buffer, mut total) = (vec![0; 64 << 10], 0);
    loop {
        let length = wait::uninterrupted(|| stream.read(&mut buffer))?;
        if length == 0 {
            return Ok(Some(total));
        }
        if !is_pattern(known, &buffer[..length], total) {
            return Ok(None);
        }
        total += length as u64;
    }
}
