//! The load: an echo, a sink that checks every byte, a server of short connections, and the client that measures
//! them. Runs inside the pods. Every byte that comes back is compared.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mio::{Events, Interest, Poll, Token};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shunt_tests::load::pattern::{PERIOD, is_pattern, pattern};

use super::cpu::Busy;
use super::patient::Patient;
use super::{Figures, connects, flood, held};
use crate::run::answer;

pub(super) const ECHO_PORT: u16 = 9000;
pub(super) const SINK_PORT: u16 = 9001;
/// Bound last: when it listens, all do.
pub(super) const CONNECT_PORT: u16 = 9002;
/// Of a server of its own.
pub(super) const DEAF_PORT: u16 = 9003;

pub(super) const SMALL: usize = 64;
const MANY: usize = 64;
/// Round trips of which a thousandth says something, and how often the time is prolonged for them at most.
const ENOUGH: usize = 10_000;
const PROLONGED: u32 = 3;

#[derive(Debug, clap::Args)]
pub struct LoadArgs {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, clap::Subcommand)]
enum Role {
    Server,
    Client {
        #[arg(long)]
        host: String,
        #[arg(long)]
        seconds: f64,
        #[arg(long, value_enum, default_value_t = Part::All)]
        only: Part,
    },
    /// Fills connections with bytes until standard input ends
    Flood {
        #[arg(long)]
        host: String,
    },
    /// Opens connections and keeps them until standard input ends
    Hold(Held),
    /// Opens connections and writes into them until nothing more goes, and keeps them until standard input ends
    Fill(Held),
    /// Accepts connections that `fill` makes, and never reads
    Deaf,
}

#[derive(Debug, clap::Args)]
struct Held {
    #[arg(long)]
    host: String,
    #[arg(long)]
    count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Part {
    All,
    Bulk,
    Connects,
    /// Small questions, while others move much
    Quiet,
}

pub fn load(args: &LoadArgs) -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let many = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, many).context("cannot raise RLIMIT_NOFILE")?;
    match &args.role {
        Role::Server => serve(),
        Role::Flood { host } => flood::pour(host),
        Role::Hold(Held { host, count }) => held::idle(host, *count),
        Role::Fill(Held { host, count }) => held::fill(host, *count),
        Role::Deaf => held::deaf(),
        Role::Client {
            host,
            seconds,
            only,
        } => {
            let figures = client(host, Duration::from_secs_f64(*seconds), *only)?;
            answer(&serde_json::to_string(&figures)?);
            Ok(())
        }
    }
}

fn serve() -> Result<()> {
    let bind = |port| TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("port {port}"));
    let (echoes, sinks) = (bind(ECHO_PORT)?, bind(SINK_PORT)?);
    std::thread::spawn(move || echo(echoes));
    std::thread::spawn(move || {
        for stream in sinks.incoming().flatten() {
            std::thread::spawn(move || sink(Patient(stream)));
        }
    });
    for stream in bind(CONNECT_PORT)?.incoming().flatten() {
        let mut stream = Patient(stream);
        let mut request = [0; SMALL];
        // A client that fails says so itself.
        let _ = stream
            .read_exact(&mut request)
            .and_then(|()| stream.write_all(&request));
    }
    Ok(())
}

/// One thread for all connections, so that many of them do not measure the scheduler.
fn echo(listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut listener = mio::net::TcpListener::from_std(listener);
    let mut poll = Poll::new()?;
    poll.registry()
        .register(&mut listener, Token(0), Interest::READABLE)?;
    let mut events = Events::with_capacity(256);
    let mut streams: Vec<Option<mio::net::TcpStream>> = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == Token(0) {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    let token = Token(streams.len() + 1);
                    poll.registry()
                        .register(&mut stream, token, Interest::READABLE)?;
                    streams.push(Some(stream));
                }
                continue;
            }
            let slot = &mut streams[event.token().0 - 1];
            if slot
                .as_mut()
                .is_some_and(|stream| bounce(stream, &mut buffer).is_err())
            {
                *slot = None;
            }
        }
    }
}

/// Sends back what is there. Messages are small enough for the socket's buffer.
fn bounce(stream: &mut mio::net::TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    loop {
        match stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => stream.write_all(&buffer[..length])?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Checks every byte; answers with how many were right.
fn sink(mut stream: Patient) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let expected = pattern(buffer.len());
    let mut total = 0_u64;
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return stream.write_all(&total.to_le_bytes());
        }
        if !is_pattern(&expected, &buffer[..length], total) {
            return Ok(()); // The client misses its answer.
        }
        total += length as u64;
    }
}

fn client(host: &str, time: Duration, only: Part) -> Result<Figures> {
    let at = |port| -> Result<SocketAddr> { Ok(SocketAddr::new(host.parse()?, port)) };
    let mut figures = Figures::new();
    let sizes: (&[usize], &[usize]) = match only {
        Part::All => (&[SMALL, 1024, 16384], &[65536, 1024]),
        Part::Bulk => (&[SMALL], &[65536]),
        Part::Connects => (&[], &[]),
        Part::Quiet => {
            percentiles(
                &mut figures,
                "quiet",
                ping_pong(at(ECHO_PORT)?, SMALL, time, 0)?,
            );
            return Ok(figures);
        }
    };
    for size in sizes.0 {
        let name = format!("rtt_{size}");
        let rate = round_trips(&mut figures, &name, at(ECHO_PORT)?, *size, time)?;
        if *size == SMALL {
            figures.insert("rate_1".into(), rate);
        }
    }
    if only == Part::All {
        many(&mut figures, at(ECHO_PORT)?, time)?;
    }
    for size in sizes.1 {
        let (start, busy) = (Instant::now(), Busy::begin()?);
        let moved = bulk(at(SINK_PORT)?, *size, |_| start.elapsed() < time)?;
        if *size == sizes.1[0] {
            let per_gb = busy.seconds()? / (moved.bytes as f64 / 1e9);
            figures.insert("cpu_s_per_gb".into(), per_gb);
        }
        figures.insert(format!("throughput_{size}_mbps"), moved.rate);
    }
    if only != Part::Bulk {
        connects::short(&mut figures, at(CONNECT_PORT)?, time)?;
    }
    Ok(figures)
}

/// Adds the figures of one connection's questions and answers; how many there were in a second.
fn round_trips(
    figures: &mut Figures,
    name: &str,
    to: SocketAddr,
    size: usize,
    time: Duration,
) -> Result<f64> {
    let start = Instant::now();
    let samples = ping_pong(to, size, time, ENOUGH)?;
    let rate = samples.len() as f64 / start.elapsed().as_secs_f64();
    let sorted = percentiles(figures, name, samples);
    figures.insert(format!("{name}_p999_us"), quantile(&sorted, 0.999));
    Ok(rate)
}

/// Adds the median and the hundredth, and sorts.
fn percentiles(figures: &mut Figures, name: &str, mut samples: Vec<Duration>) -> Vec<Duration> {
    samples.sort_unstable();
    figures.insert(format!("{name}_p50_us"), quantile(&samples, 0.5));
    figures.insert(format!("{name}_p99_us"), quantile(&samples, 0.99));
    samples
}

/// Microseconds.
pub(super) fn quantile(sorted: &[Duration], part: f64) -> f64 {
    let at = (sorted.len() as f64 * part) as usize;
    let time = sorted.get(at).or(sorted.last());
    time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}

/// `enough`: with fewer samples it goes on for a while.
fn ping_pong(to: SocketAddr, size: usize, time: Duration, enough: usize) -> Result<Vec<Duration>> {
    let mut stream = Patient(TcpStream::connect(to)?);
    stream.0.set_nodelay(true)?;
    let (mut message, mut got) = (vec![0; size], vec![0; size]);
    let mut samples = Vec::new();
    let start = Instant::now();
    let goes_on = |samples: usize| {
        let longest = if samples < enough { PROLONGED } else { 1 };
        start.elapsed() < time * longest
    };
    while goes_on(samples.len()) {
        message.fill(samples.len() as u8);
        let sent = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut got)?;
        samples.push(sent.elapsed());
        ensure!(got == message, "a reply differs");
    }
    Ok(samples)
}

/// Adds the rate of questions over many connections at once, from one thread, and what they cost.
fn many(figures: &mut Figures, to: SocketAddr, time: Duration) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut streams = Vec::new();
    let message = [7; SMALL];
    for index in 0..MANY {
        // As event-driven programs do it, from the first call on: `acceleration: auto` looks at that.
        let mut stream = mio::net::TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        poll.registry()
            .register(&mut stream, Token(index), Interest::WRITABLE)?;
        let mut events = Events::with_capacity(1);
        while stream.peer_addr().is_err() {
            poll.poll(&mut events, None)?;
            stream.take_error()?.map_or(Ok(()), Err)?;
        }
        poll.registry()
            .reregister(&mut stream, Token(index), Interest::READABLE)?;
        stream.write_all(&message)?;
        streams.push((stream, 0_usize));
    }
    let (mut events, mut got, mut answers) = (Events::with_capacity(MANY), [0; SMALL], 0_u64);
    let (start, busy) = (Instant::now(), Busy::begin()?);
    while start.elapsed() < time {
        poll.poll(&mut events, Some(time))?;
        for event in &events {
            let (stream, have) = &mut streams[event.token().0];
            loop {
                match stream.read(&mut got[*have..]) {
                    Ok(0) => anyhow::bail!("a connection ended"),
                    Ok(length) => *have += length,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
                if *have == SMALL {
                    ensure!(got == message, "a reply differs");
                    (*have, answers) = (0, answers + 1);
                    stream.write_all(&message)?;
                }
            }
        }
    }
    let rate = answers as f64 / start.elapsed().as_secs_f64();
    figures.insert("rate_64".into(), rate);
    // A question and its answer.
    let millions = 2.0 * answers as f64 / 1e6;
    figures.insert(
        "cpu_s_per_million_messages".into(),
        busy.seconds()? / millions,
    );
    Ok(())
}

/// What went over a connection.
pub(super) struct Moved {
    bytes: u64,
    /// Megabytes (1,000,000 bytes) per second, until the other side has checked the last byte.
    pub(super) rate: f64,
}

/// Writes as fast as it goes. `goes_on` is asked before each write, with the number of bytes so far.
pub(super) fn bulk(
    to: SocketAddr,
    size: usize,
    mut goes_on: impl FnMut(u64) -> bool,
) -> Result<Moved> {
    let pattern = pattern(size);
    let mut stream = Patient(TcpStream::connect(to)?);
    let start = Instant::now();
    let mut sent = 0_u64;
    while goes_on(sent) {
        let from = (sent % PERIOD) as usize;
        stream.write_all(&pattern[from..from + size])?;
        sent += size as u64;
    }
    stream.0.shutdown(Shutdown::Write)?;
    let mut checked = [0; 8];
    stream
        .read_exact(&mut checked)
        .context("the sink found a wrong byte")?;
    ensure!(
        u64::from_le_bytes(checked) == sent,
        "the sink got another number of bytes"
    );
    Ok(Moved {
        bytes: sent,
        rate: sent as f64 / 1e6 / start.elapsed().as_secs_f64(),
    })
}
