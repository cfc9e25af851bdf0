//! The rows, by what they are about.

mod calls;
mod data;
mod ends;
mod flags;
mod options;
mod stalls;
mod zero_copy;

use std::time::Duration;

use super::row::Row;

/// What was sent has arrived after this, also by way of an agent that is not idle.
const SETTLE: Duration = Duration::from_millis(100);

pub(super) fn all() -> Vec<Row> {
    [
        data::ROWS,
        ends::ROWS,
        flags::ROWS,
        options::ROWS,
        stalls::ROWS,
        zero_copy::ROWS,
        calls::ROWS,
    ]
    .concat()
}
