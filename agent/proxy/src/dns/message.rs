//! What is read of a query and of its answer. Neither is ever changed.

use hickory_proto::op::{Header, MessageType, Query};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use shunt_core::dns::Rcode;

/// Bytes of a message's header.
const HEADER: usize = 12;
const SERVFAIL: u8 = 2;
/// In the header's third and fourth byte.
const RESPONSE: u8 = 0x80;
const TRUNCATED: u8 = 0x02;
/// Of a query's third byte, what its answer repeats: the operation, and whether recursion is desired.
const REPEATED: u8 = 0x79;

/// A datagram that was sent to a resolver.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) bytes: Vec<u8>,
    question: Option<Question>,
}

#[derive(Debug)]
struct Question {
    asked: Query,
    /// Where it ends in the message.
    end: usize,
}

impl Asked {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        let question = question(&bytes, MessageType::Query);
        Self { bytes, question }
    }

    /// It begins like no query with one question. Whoever understands it may answer.
    pub(super) fn is_malformed(&self) -> bool {
        self.question.is_none()
    }

    /// Name and type; empty where it is malformed.
    pub(super) fn told(&self) -> (String, String) {
        let told = self.question.as_ref().map(|question| {
            let asked = &question.asked;
            (asked.name().to_ascii(), asked.query_type().to_string())
        });
        told.unwrap_or_default()
    }

    /// Is this an answer to it? It came from the resolver's address and port.
    pub(super) fn is_answered_by(&self, answer: &[u8]) -> bool {
        let id = self.bytes.get(..2);
        let Some(own) = &self.question else {
            return id.is_none() || id == answer.get(..2);
        };
        if id != answer.get(..2) || answer.len() < HEADER || answer[2] & RESPONSE == 0 {
            return false;
        }
        // Who did not understand a query does not repeat it.
        let repeats_nothing = answer[4..6] == [0, 0];
        repeats_nothing
            || question(answer, MessageType::Response)
                .is_some_and(|answered| answered.asked == own.asked)
    }

    /// "The resolver failed": what a client understands at once where there is no resolver. `None`: it asked nothing that
    /// could be answered.
    pub(super) fn failure(&self) -> Option<Vec<u8>> {
        let end = self.question.as_ref()?.end;
        let mut answer = self.bytes.get(..end)?.to_vec();
        answer[2] = RESPONSE | answer[2] & REPEATED;
        answer[3] = SERVFAIL;
        // One question, and nothing else.
        answer[6..HEADER].fill(0);
        Some(answer)
    }
}

/// The one question of a message of this type.
fn question(bytes: &[u8], wanted: MessageType) -> Option<Question> {
    let mut decoder = BinDecoder::new(bytes);
    let header = Header::read(&mut decoder).ok()?;
    if header.metadata.message_type != wanted || header.counts.queries != 1 {
        return None;
    }
    let asked = Query::read(&mut decoder).ok()?;
    let end = decoder.index();
    Some(Question { asked, end })
}

/// `None`: too short to have one.
pub(super) fn rcode(answer: &[u8]) -> Option<Rcode> {
    (answer.len() >= HEADER).then(|| Rcode::new(answer[3]))
}

pub(super) fn is_truncated(answer: &[u8]) -> bool {
    answer.len() >= HEADER && answer[2] & TRUNCATED != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `web.test`, type A, with an EDNS record, as dig sends it.
    const QUERY: &[u8] = b"\x12\x34\x01\x20\0\x01\0\0\0\0\0\x01\x03web\x04test\0\0\x01\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0";

    fn answer(change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = QUERY.to_vec();
        bytes[2] = 0x85;
        bytes[3] = 0x83;
        change(&mut bytes);
        bytes
    }

    #[test]
    fn an_answer_has_the_id_and_the_question() {
        let asked = Asked::new(QUERY.to_vec());
        assert_eq!(asked.told(), ("web.test.".into(), "A".into()));
        assert!(asked.is_answered_by(&answer(|_| {})));
        // RFC 1035: names are the same in any case.
        assert!(asked.is_answered_by(&answer(|bytes| bytes[13] = b'W')));
        // FORMERR, without the question.
        assert!(asked.is_answered_by(&answer(|bytes| {
            bytes[4..].fill(0);
            bytes.truncate(HEADER);
        })));
        let others: [fn(&mut Vec<u8>); 6] = [
            |bytes| bytes[1] = 0,
            |bytes| bytes[2] = 0x01,
            |bytes| bytes[13] = b'x',
            |bytes| bytes[22] = 28,
            |bytes| bytes[5] = 2,
            |bytes| bytes.truncate(11),
        ];
        for other in others {
            assert!(!asked.is_answered_by(&answer(other)));
        }
        assert!(!asked.is_answered_by(&[]));
        assert_eq!(rcode(&answer(|_| {})).map(Rcode::as_str), Some("NXDOMAIN"));
        assert!(!is_truncated(&answer(|_| {})));
        assert!(is_truncated(&answer(|bytes| bytes[2] = 0x87)));
    }

    #[test]
    fn a_failure_repeats_the_question_alone() {
        let failure = Asked::new(QUERY.to_vec()).failure().expect("an answer");
        assert_eq!(
            failure,
            b"\x12\x34\x81\x02\0\x01\0\0\0\0\0\0\x03web\x04test\0\0\x01\0\x01"
        );
    }

    #[test]
    fn what_is_no_query_is_answered_by_whatever_comes() {
        for bytes in [
            &b""[..],
            b"\x12",
            b"\x12\x34 hello",
            &QUERY[..20],
            &answer(|_| {}),
        ] {
            let asked = Asked::new(bytes.to_vec());
            assert!(asked.is_malformed(), "{bytes:?}");
            assert!(asked.failure().is_none());
            assert!(asked.is_answered_by(b"\x12\x34 anything"));
            assert_eq!(asked.is_answered_by(b"xx"), bytes.len() < 2);
        }
    }

    #[test]
    fn any_bytes_are_read_without_harm() {
        let mut random = fastrand::Rng::with_seed(53);
        for _ in 0..20_000 {
            let mut bytes = QUERY.to_vec();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            bytes.truncate(random.usize(..=bytes.len()));
            let asked = Asked::new(bytes.clone());
            asked.is_answered_by(&answer(|_| {}));
            Asked::new(QUERY.to_vec()).is_answered_by(&bytes);
            if let Some(failure) = asked.failure() {
                assert!(asked.is_answered_by(&failure));
            }
        }
    }
}
