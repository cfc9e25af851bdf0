//! A text that comes in pieces, as it is too long for a message.

/// As much as has come.
#[derive(Debug, Default)]
pub(super) struct Pieces(String);

impl Pieces {
    /// The whole, once the last piece is there.
    pub(super) fn add(&mut self, part: &str, last: bool) -> Option<String> {
        self.0.push_str(part);
        last.then(|| std::mem::take(&mut self.0))
    }
}
