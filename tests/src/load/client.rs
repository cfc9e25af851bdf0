//! Opens connections at a rate and checks where each arrived.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde_json::{Value, json};

use super::{percentile, server};

/// More at once than this, per thread, and the client opens no more until some have ended. Not with `--hold`.
const AT_ONCE: usize = 4000;
/// How often connections are looked at that take too long.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[arg(long)]
    token: String,
    /// Destinations, used in turn
    #[arg(long, value_delimiter = ',', required = true)]
    to: Vec<SocketAddr>,
    /// Connections per second
    #[arg(long)]
    rate: f64,
    /// Connections altogether; without it, until stdin ends
    #[arg(long)]
    count: Option<usize>,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// A connection that has not been answered by then has failed
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
    /// Close on the answer, instead of waiting for the server's end
    #[arg(long)]
    close_first: bool,
    /// Keep all open until all are answered, then ask each once more
    #[arg(long)]
    hold: bool,
}

/// One thread's part.
struct Client<'a> {
    args: &'a Args,
    answers: Vec<String>,
    poll: Poll,
    flows: Vec<Option<Flow>>,
    free: Vec<usize>,
    open: usize,
    started: usize,
    first: Instant,
    seen: Seen,
}

struct Flow {
    stream: TcpStream,
    destination: usize,
    begun: Instant,
    connected: bool,
    answered: bool,
    got: Vec<u8>,
}

/// What one thread saw.
#[derive(Default)]
struct Seen {
    connects: Vec<Duration>,
    answers: Vec<Duration>,
    /// Since the start.
    successes: Vec<Duration>,
    errors: BTreeMap<String, u64>,
    wrong: Vec<String>,
    attempted: usize,
    held: usize,
    by_destination: BTreeMap<usize, u64>,
}

pub(super) fn run(args: &Args, stop: &AtomicBool) -> Result<Value> {
    ensure!(args.threads > 0 && args.rate > 0.0, "nothing to do");
    let first = Instant::now();
    let seen = std::thread::scope(|scope| -> Result<Vec<Seen>> {
        let threads: Vec<_> = (0..args.threads)
            .map(|index| scope.spawn(move || Client::new(args, first)?.run(index, stop)))
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .map(|seen| seen.map_err(|_| anyhow::anyhow!("a thread panicked"))?)
            .collect()
    })?;
    Ok(report(args, first.elapsed(), seen))
}

impl<'a> Client<'a> {
    fn new(args: &'a Args, first: Instant) -> Result<Self> {
        let answers = args.to.iter().map(|to| server::line(&args.token, *to));
        Ok(Self {
            args,
            answers: answers.collect(),
            poll: Poll::new().context("no epoll")?,
            flows: Vec::new(),
            free: Vec::new(),
            open: 0,
            started: 0,
            first,
            seen: Seen::default(),
        })
    }

    fn run(mut self, index: usize, stop: &AtomicBool) -> Result<Seen> {
        let threads = self.args.threads;
        let count = self.args.count.map_or(usize::MAX, |count| {
            count / threads + usize::from(index < count % threads)
        });
        let every = Duration::from_secs_f64(threads as f64 / self.args.rate);
        let mut due = Instant::now();
        while self.started < count && !stop.load(Ordering::Relaxed) {
            let room = self.args.hold || self.open < AT_ONCE;
            if room && Instant::now() >= due {
                self.start(index + self.started * threads);
                self.started += 1;
                // What could not be started in time is not made up for: a burst is another load.
                due = (due + every).max(Instant::now() - LOOK);
                continue;
            }
            self.turn(due.saturating_duration_since(Instant::now()))?;
        }
        self.wait_for_answers()?;
        if self.args.hold {
            self.ask_again()?;
        }
        self.seen.attempted = self.started;
        Ok(self.seen)
    }

    fn wait_for_answers(&mut self) -> Result<()> {
        while self.flows.iter().flatten().any(|flow| !flow.answered) {
            self.turn(LOOK)?;
        }
        Ok(())
    }

    /// Every connection is open now, and must still lead to where it led.
    fn ask_again(&mut self) -> Result<()> {
        self.seen.held = self.open;
        for flow in self.flows.iter_mut().flatten() {
            (flow.answered, flow.begun) = (false, Instant::now());
            flow.got.clear();
        }
        for place in 0..self.flows.len() {
            if let Some(flow) = &mut self.flows[place]
                && let Err(error) = flow.stream.write_all(b"?")
            {
                self.fail(place, &format!("write: {}", error.kind()));
            }
            if place % 64 == 0 {
                self.turn(Duration::ZERO)?;
            }
        }
        self.wait_for_answers()
    }

    fn start(&mut self, number: usize) {
        let destination = number % self.args.to.len();
        let begun = Instant::now();
        let stream = match TcpStream::connect(self.args.to[destination]) {
            Ok(stream) => stream,
            Err(error) => return self.count(&format!("connect: {}", error.kind())),
        };
        let place = self.free.pop().unwrap_or_else(|| {
            self.flows.push(None);
            self.flows.len() - 1
        });
        let flow = self.flows[place].insert(Flow {
            stream,
            destination,
            begun,
            connected: false,
            answered: false,
            got: Vec::new(),
        });
        self.open += 1;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registry = self.poll.registry();
        if let Err(error) = registry.register(&mut flow.stream, Token(place), interest) {
            self.fail(place, &format!("register: {}", error.kind()));
        }
    }

    /// Waits for events no longer than `longest`, and handles them.
    fn turn(&mut self, longest: Duration) -> Result<()> {
        let mut events = Events::with_capacity(1024);
        match self.poll.poll(&mut events, Some(longest.min(LOOK))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => other?,
        }
        for event in &events {
            self.event(event.token().0);
        }
        if events.is_empty() {
            self.give_up();
        }
        Ok(())
    }

    fn give_up(&mut self) {
        let longest = Duration::from_millis(self.args.timeout_ms);
        for place in 0..self.flows.len() {
            match &self.flows[place] {
                Some(flow) if !flow.answered && flow.begun.elapsed() > longest => {
                    let what = if flow.connected { "answer" } else { "connect" };
                    self.fail(place, &format!("{what}: no sign in {longest:?}"));
                }
                _ => {}
            }
        }
    }

    fn event(&mut self, place: usize) {
        let Some(flow) = &mut self.flows[place] else {
            return;
        };
        if !flow.connected {
            if let Ok(Some(error)) | Err(error) = flow.stream.take_error() {
                return self.fail(place, &format!("connect: {}", error.kind()));
            }
            if flow.stream.peer_addr().is_err() {
                return;
            }
            flow.connected = true;
            self.seen.connects.push(flow.begun.elapsed());
        }
        let mut buffer = [0; 256];
        loop {
            match flow.stream.read(&mut buffer) {
                Ok(0) => return self.ended(place),
                Ok(length) => flow.got.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return self.fail(place, &format!("read: {}", error.kind())),
            }
        }
        if flow.got.ends_with(b"\n") && !flow.answered && self.args.hold {
            self.check(place);
        } else if flow_is_done(&self.flows[place]) && self.args.close_first {
            self.ended(place);
        }
    }

    /// The server said all it had to say.
    fn ended(&mut self, place: usize) {
        self.check(place);
        self.forget(place);
    }

    fn check(&mut self, place: usize) {
        let Some(flow) = &mut self.flows[place] else {
            return;
        };
        flow.answered = true;
        let expected = &self.answers[flow.destination];
        if flow.got == expected.as_bytes() {
            self.seen.answers.push(flow.begun.elapsed());
            self.seen.successes.push(self.first.elapsed());
            *self
                .seen
                .by_destination
                .entry(flow.destination)
                .or_default() += 1;
        } else if flow.got.is_empty() {
            self.count("ended without an answer");
        } else {
            let got = String::from_utf8_lossy(&flow.got).into_owned();
            self.seen.wrong.push(format!("{got:?}, not {expected:?}"));
        }
    }

    fn fail(&mut self, place: usize, what: &str) {
        self.count(what);
        self.forget(place);
    }

    fn count(&mut self, what: &str) {
        *self.seen.errors.entry(what.to_owned()).or_default() += 1;
    }

    fn forget(&mut self, place: usize) {
        if self.flows[place].take().is_some() {
            self.free.push(place);
            self.open -= 1;
        }
    }
}

fn flow_is_done(flow: &Option<Flow>) -> bool {
    flow.as_ref().is_some_and(|flow| flow.got.ends_with(b"\n"))
}

fn report(args: &Args, took: Duration, all: Vec<Seen>) -> Value {
    let mut sum = Seen::default();
    for mut seen in all {
        sum.connects.append(&mut seen.connects);
        sum.answers.append(&mut seen.answers);
        sum.successes.append(&mut seen.successes);
        sum.wrong.append(&mut seen.wrong);
        (sum.attempted, sum.held) = (sum.attempted + seen.attempted, sum.held + seen.held);
        for (what, count) in seen.errors {
            *sum.errors.entry(what).or_default() += count;
        }
        for (destination, count) in seen.by_destination {
            *sum.by_destination.entry(destination).or_default() += count;
        }
    }
    for list in [&mut sum.connects, &mut sum.answers, &mut sum.successes] {
        list.sort_unstable();
    }
    // From the start to the first success and from the last to the end count too.
    let ends = [Duration::ZERO].into_iter().chain(sum.successes.clone());
    let gaps = ends.zip(sum.successes.iter().copied().chain([took]));
    let longest = gaps.max_by_key(|(from, to)| to.saturating_sub(*from));
    let (from, to) = longest.unwrap_or_default();
    let ms = |time: Option<Duration>| time.map(|time| (time.as_secs_f64() * 1e5).round() / 100.0);
    sum.wrong.truncate(10);
    json!({
        "attempted": sum.attempted,
        "answered": sum.successes.len(),
        "held": sum.held,
        "wrong": sum.wrong,
        "errors": sum.errors,
        "destinations": args.to.len(),
        "destinations_answered": sum.by_destination.len(),
        "seconds": took.as_secs_f64(),
        "rate": sum.attempted as f64 / took.as_secs_f64(),
        "connect_p99_ms": ms(percentile(&sum.connects, 99)),
        "connect_max_ms": ms(sum.connects.last().copied()),
        "answer_p99_ms": ms(percentile(&sum.answers, 99)),
        "answer_max_ms": ms(sum.answers.last().copied()),
        "longest_gap_ms": ms(Some(to.saturating_sub(from))),
        "longest_gap_from_ms": ms(Some(from)),
    })
}
