//! When a pod is looked for.

use std::time::{Duration, Instant};

/// Between two looks for a pod without processes: a fourth of the time it is looked for, within these.
const LOOKS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(2)];
/// A pod that is not there for so long may be long in coming.
const PATIENCE: Duration = Duration::from_secs(30);
/// Then between two looks.
const LATE_LOOKS: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) at: Instant,
    pub(super) since: Instant,
}

impl Look {
    pub(super) fn now() -> Self {
        Self {
            at: Instant::now(),
            since: Instant::now(),
        }
    }

    pub(super) fn later(self) -> Self {
        Self {
            at: Instant::now() + pause_after(self.since.elapsed()),
            ..self
        }
    }
}

fn pause_after(looked_for: Duration) -> Duration {
    let [shortest, longest] = LOOKS;
    match looked_for < PATIENCE {
        true => (looked_for / 4).clamp(shortest, longest),
        false => LATE_LOOKS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_long_in_coming_is_looked_for_less_and_less() {
        let pauses = [0, 2, 6, 29, 30, 3600].map(|age| pause_after(Duration::from_secs(age)));
        let milliseconds = [250, 500, 1500, 2000, 10_000, 10_000];
        assert_eq!(pauses, milliseconds.map(Duration::from_millis));
    }
}
