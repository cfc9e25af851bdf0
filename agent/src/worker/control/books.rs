//! How often is read what the hooks tell of direct connections.

use std::time::Duration;

use super::BOOKS;

/// Until the books are looked at again, after so many events.
pub(super) fn pause(told: usize) -> Duration {
    match told {
        0 => BOOKS * 5,
        1..2_000 => BOOKS,
        _ => BOOKS / 10,
    }
}
