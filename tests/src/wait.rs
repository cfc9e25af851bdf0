//! Waiting for a condition: the only place that sleeps.

use std::time::{Duration, Instant};

/// Asks again every 10 ms until `condition` gives something.
///
/// # Panics
/// After `longest`, saying `what` did not come.
pub fn until<T>(what: &str, longest: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            start.elapsed() < longest,
            "waited {longest:?} in vain: {what}"
        );
        pause(Duration::from_millis(10));
    }
}

/// Lets time pass where time itself is what is tested.
#[expect(clippy::disallowed_methods, reason = "the one place that waits")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
