//! Protocol buffers by hand: a few fields of a few messages.

/// A message in the making. Numbers of fields are those of the CRI's `api.proto`, version `runtime.v1`.
#[derive(Clone, Debug, Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    pub(super) fn text(self, field: u8, text: &str) -> Self {
        self.bytes(field, text.as_bytes())
    }

    pub(super) fn inner(self, field: u8, inner: Self) -> Self {
        self.bytes(field, &inner.0)
    }

    fn bytes(mut self, field: u8, bytes: &[u8]) -> Self {
        self.0.push(field << 3 | 2);
        self.number(bytes.len());
        self.0.extend_from_slice(bytes);
        self
    }

    fn number(&mut self, mut number: usize) {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    /// As gRPC has it on the wire: not compressed, its length, itself.
    pub(super) fn framed(&self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("a short message");
        let mut frame = vec![0];
        frame.extend(length.to_be_bytes());
        frame.extend(&self.0);
        frame
    }
}

/// The text in a message's first field, which all that we ask for have or leave out.
pub(super) fn first_text(frame: &[u8]) -> String {
    match frame.get(5..) {
        Some([0x0a, length, text @ ..]) => {
            let text = text.get(..usize::from(*length)).expect("a short text");
            String::from_utf8(text.to_vec()).expect("UTF-8")
        }
        _ => String::new(),
    }
}
