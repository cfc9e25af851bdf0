//! While the API cannot be had.

use std::error::Error;
use std::time::{Duration, Instant};

use kube::runtime::utils::Backoff;

use crate::wish::Discovered;

/// The first pause after a failure, and the longest; half to all of each.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];
/// No failure for so long after one: the API is there again, though it had no news.
const CALM: Duration = Duration::from_secs(20);
/// Bytes of a reason that are told.
const MAX_REASON: usize = 1000;

/// What it is called when the server's certificate is by another authority: of another name, and of the same.
const OF_ANOTHER: [&str; 2] = [
    "invalid peer certificate: UnknownIssuer",
    "invalid peer certificate: BadSignature",
];

/// Longer and longer, never two nodes in step.
#[derive(Debug, Default)]
pub(super) struct Pauses(u32);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.pause())
    }
}

impl Pauses {
    pub(super) fn pause(&mut self) -> Duration {
        let [first, longest] = PAUSES;
        let pause = (first * 2_u32.saturating_pow(self.0)).min(longest);
        self.0 = (self.0 + 1).min(8);
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0 = 0;
    }
}

/// Which of the two watches fail, and since when not again.
#[derive(Debug, Default)]
pub(super) struct Outage {
    failing: [Option<Instant>; 2],
    told: String,
}

impl Outage {
    pub(super) fn begun(&mut self, which: usize, error: &dyn Error) -> Option<Discovered> {
        self.failing[which] = Some(Instant::now());
        let text = reason(error);
        if self.told == text {
            return None;
        }
        self.told.clone_from(&text);
        Some(Discovered::Outage(text))
    }

    pub(super) fn over(&mut self, which: usize) -> Option<Discovered> {
        self.failing[which] = None;
        self.said_over()
    }

    pub(super) fn calm_at(&self) -> Option<Instant> {
        self.failing.iter().flatten().min().map(|at| *at + CALM)
    }

    pub(super) fn calm(&mut self) -> Option<Discovered> {
        for failing in &mut self.failing {
            if failing.is_some_and(|at| at.elapsed() >= CALM) {
                *failing = None;
            }
        }
        self.said_over()
    }

    fn said_over(&mut self) -> Option<Discovered> {
        let over = self.failing == [None, None] && !self.told.is_empty();
        over.then(|| {
            self.told.clear();
            Discovered::Connected
        })
    }
}

/// With its causes, each once.
fn reason(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.truncate(text.floor_char_boundary(MAX_REASON));
    if OF_ANOTHER.iter().any(|name| text.contains(name)) {
        text.push_str(" (the server's certificate is not of the authority that is configured)");
    }
    text
}
