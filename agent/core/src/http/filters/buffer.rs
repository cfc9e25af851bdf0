use serde::{Deserialize, Serialize};

/// A request's body is passed on when all of it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// More of a body is answered with 413.
    pub max_bytes: usize,
}
