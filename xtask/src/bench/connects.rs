//! Short connections.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Figures;
use super::load::{SMALL, quantile};
use super::patient::Patient;

/// Connections after which `acceleration: auto` may have learned what they are like.
const FIRST: usize = 8;

/// Adds the rate of connections that each carry one question, what one takes, and what the first of them took.
pub(super) fn short(figures: &mut Figures, to: SocketAddr, time: Duration) -> Result<()> {
    let mut times = one_by_one(to, time)?;
    figures.insert(
        "connect_rate".into(),
        times.len() as f64 / time.as_secs_f64(),
    );
    let first: Duration = times.iter().take(FIRST).sum();
    let first = first.as_secs_f64() * 1e6 / FIRST as f64;
    figures.insert(format!("connect_first_{FIRST}_us"), first);
    times.sort_unstable();
    figures.insert("connect_p99_us".into(), quantile(&times, 0.99));
    Ok(())
}

/// What of the figures is told of connections that are learned from.
pub(super) fn of_learning(figures: Figures) -> Figures {
    let first = format!("connect_first_{FIRST}_us");
    let told = figures
        .into_iter()
        .filter_map(|(name, value)| match name.as_str() {
            "connect_rate" => Some(("connect_rate_learning".to_owned(), value)),
            _ => (name == first).then_some((name, value)),
        });
    told.collect()
}

/// Connect, ask, get the answer, see the end: one after another.
fn one_by_one(to: SocketAddr, time: Duration) -> Result<Vec<Duration>> {
    let message = [9; SMALL];
    let mut samples = Vec::new();
    let start = Instant::now();
    while start.elapsed() < time {
        let begun = Instant::now();
        let mut stream = Patient(TcpStream::connect(to)?);
        stream.write_all(&message)?;
        let mut got = Vec::with_capacity(SMALL);
        stream.read_to_end(&mut got)?;
        samples.push(begun.elapsed());
        ensure!(got == message, "a reply differs");
    }
    Ok(samples)
}
