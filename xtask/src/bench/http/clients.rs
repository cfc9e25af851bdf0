//! wrk, which asks as fast as it is answered, and h2load, which asks at a fixed rate.

use std::fs;

use anyhow::{Context, Result, ensure};
use shunt_tests::Pod;

use crate::bench::Figures;

/// Requests per second of the open loop, over so many connections.
const OPEN_RATE: u32 = 10_000;
const OPEN_CONNECTIONS: u32 = 50;

pub(super) struct Wrk<'a> {
    pub(super) pod: &'a Pod,
    /// Host and port.
    pub(super) address: String,
    pub(super) seconds: u32,
}

/// What a run came to; times in microseconds.
#[derive(Debug, PartialEq)]
pub(super) struct Answered {
    pub(super) requests: f64,
    pub(super) rate: f64,
    pub(super) p50: f64,
    pub(super) p99: f64,
}

impl Wrk<'_> {
    /// # Errors
    /// One request was not answered by 2xx.
    pub(super) fn run(&self, connections: u32, more: &[&str]) -> Result<Answered> {
        self.at("/", connections, more)
    }

    pub(super) fn at(&self, path: &str, connections: u32, more: &[&str]) -> Result<Answered> {
        let connections = format!("-c{connections}");
        let seconds = format!("-d{}s", self.seconds);
        let url = format!("http://{}{path}", self.address);
        let words = [&["-t1", &connections, &seconds, "--latency", &url], more].concat();
        let text = self.pod.says("wrk", &words);
        ensure!(
            !text.contains("Socket errors") && !text.contains("Non-2xx"),
            "not all was answered: {text}"
        );
        read(&text).with_context(|| text.clone())
    }
}

fn read(text: &str) -> Option<Answered> {
    let after = |what: &str| {
        let line = text.lines().find(|line| line.trim().starts_with(what))?;
        line.trim().strip_prefix(what).map(str::trim)
    };
    let line = text.lines().find(|line| line.contains(" requests in "))?;
    Some(Answered {
        requests: line.split_whitespace().next()?.parse().ok()?,
        rate: after("Requests/sec:")?.parse().ok()?,
        p50: microseconds(after("50%")?)?,
        p99: microseconds(after("99%")?)?,
    })
}

/// Of `12.50us`, `1.20ms`, `1.00s`.
fn microseconds(text: &str) -> Option<f64> {
    let unit = text.find(|letter: char| letter.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit);
    let factor = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    number.parse::<f64>().ok().map(|number| number * factor)
}

/// Adds the times of requests that come at a fixed rate, whether or not those before were answered.
pub(super) fn open_loop(figures: &mut Figures, wrk: &Wrk<'_>) -> Result<()> {
    let dir = tempfile::tempdir().context("a directory")?;
    let log = dir.path().join("times");
    let words = [
        "--h1".to_owned(),
        format!("--clients={OPEN_CONNECTIONS}"),
        format!("--rps={}", OPEN_RATE / OPEN_CONNECTIONS),
        format!("--duration={}", wrk.seconds + 1),
        format!("--log-file={}", log.display()),
        format!("http://{}/", wrk.address),
    ];
    wrk.pod
        .says("h2load", &words.each_ref().map(String::as_str));
    let text = fs::read_to_string(&log).context("h2load's log")?;
    let mut times = Vec::new();
    for line in text.lines() {
        let mut columns = line.split('\t').skip(1);
        let (Some(status), Some(time)) = (columns.next(), columns.next()) else {
            continue;
        };
        ensure!(status == "200", "not answered: {line}");
        times.push(time.parse::<f64>().context("microseconds")?);
    }
    times.sort_by(f64::total_cmp);
    for (name, part) in [("p50", 500), ("p99", 990), ("p999", 999)] {
        let time = times.get(times.len() * part / 1000).context("no times")?;
        figures.insert(format!("http1_open_{name}_us"), *time);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_read() {
        let text = "Running 1s test @ http://10.66.0.3:8080/\n  1 threads and 64 connections\n  Thread Stats   Avg      Stdev\n    \
                    Latency   300.00us   99.00us   1.20ms\n  Latency Distribution\n     50%  290.00us\n     75%  310.00us\n     \
                    90%  400.00us\n     99%    1.20ms\n  210000 requests in 1.00s, 250.00MB read\nRequests/sec: 209876.54\n";
        let answered = Answered {
            requests: 210_000.0,
            rate: 209_876.54,
            p50: 290.0,
            p99: 1200.0,
        };
        assert_eq!(read(text), Some(answered));
    }
}
