//! Waiting for a condition: the only place that sleeps.

use std::io;
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

/// Calls again what a signal broke off. With a timeout set, the kernel does not resume a call by itself, even when nobody
/// handles the signal: that of a child's end reaches any thread while the first one starts another.
///
/// # Errors
/// Those of the call, except that one.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Lets time pass where time itself is what is tested.
#[expect(clippy::disallowed_methods, reason = "the one place that waits")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
