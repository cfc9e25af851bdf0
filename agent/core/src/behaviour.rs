//! What this kernel's queues past TCP do, as the behaviour battery saw it before anybody's connection was put there.

use serde::{Deserialize, Serialize};

/// What the battery asks. The fatal ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    Redirect,
    OrderUnderClose,
    HalfClose,
    Reset,
    BoundedQueue,
    EarlyBytes,
    LargeMessages,
    MappedAddresses,
    Isolation,
    BlockingReceive,
    WaitAll,
    SpliceOut,
    BytesWaiting,
    ZeroCopy,
}

impl Question {
    pub const ALL: [Self; 14] = [
        Self::Redirect,
        Self::OrderUnderClose,
        Self::HalfClose,
        Self::Reset,
        Self::BoundedQueue,
        Self::EarlyBytes,
        Self::LargeMessages,
        Self::MappedAddresses,
        Self::Isolation,
        Self::BlockingReceive,
        Self::WaitAll,
        Self::SpliceOut,
        Self::BytesWaiting,
        Self::ZeroCopy,
    ];

    /// Without it nothing is accelerated. The others are facts, for whoever decides which sockets may be.
    pub fn is_fatal(self) -> bool {
        !matches!(
            self,
            Self::BlockingReceive
                | Self::WaitAll
                | Self::SpliceOut
                | Self::BytesWaiting
                | Self::ZeroCopy
        )
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Redirect => "queue: redirect",
            Self::OrderUnderClose => "queue: order when closed",
            Self::HalfClose => "queue: half-close",
            Self::Reset => "queue: reset",
            Self::BoundedQueue => "queue: bound",
            Self::EarlyBytes => "queue: before accept",
            Self::LargeMessages => "queue: 1 MiB messages",
            Self::MappedAddresses => "queue: v4-mapped",
            Self::Isolation => "queue: isolation",
            Self::BlockingReceive => "queue: blocking recv",
            Self::WaitAll => "queue: MSG_WAITALL",
            Self::SpliceOut => "queue: splice",
            Self::BytesWaiting => "queue: FIONREAD",
            Self::ZeroCopy => "queue: MSG_ZEROCOPY",
        }
    }

    /// What it means that it holds, for people.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Redirect => "a message goes into the queue of a socket in another namespace",
            Self::OrderUnderClose => "what was sent before a close arrives, whole and in order",
            Self::HalfClose => "either direction may end before the other",
            Self::Reset => "a reset is one, behind the bytes",
            Self::BoundedQueue => {
                "a reader that stalls holds its writer back, and gets everything in order"
            }
            Self::EarlyBytes => "bytes that come before accept wake their reader",
            Self::LargeMessages => "messages of a megabyte arrive whole",
            Self::MappedAddresses => "IPv4 over IPv6 sockets is accelerated as well",
            Self::Isolation => "networks with equal addresses and ports never mix",
            Self::BlockingReceive => "else a blocking recv may say EAGAIN: not for such programs",
            Self::WaitAll => "else it gives less than was asked: not for such programs",
            Self::SpliceOut => "else splice sees no byte: not for such programs",
            Self::BytesWaiting => "else a reader is told that nothing waits",
            Self::ZeroCopy => "else its completion never comes: not for such programs",
        }
    }
}

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub question: Question,
    /// As by TCP.
    pub holds: bool,
    /// What was seen.
    pub evidence: String,
}

/// Every question with its answer, in the order of [`Question::ALL`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behaviour {
    pub verdicts: Vec<Verdict>,
    /// How long it took to find out.
    pub milliseconds: u64,
}

impl Behaviour {
    /// What was not asked does not hold.
    pub fn holds(&self, question: Question) -> bool {
        let mut verdicts = self.verdicts.iter();
        verdicts.any(|verdict| verdict.question == question && verdict.holds)
    }

    /// Why nothing may be accelerated on this kernel, if so.
    pub fn refusal(&self) -> Option<String> {
        let fatal = Question::ALL
            .into_iter()
            .filter(|question| question.is_fatal());
        let failed = fatal
            .filter(|question| !self.holds(*question))
            .map(|question| {
                let seen = self
                    .verdicts
                    .iter()
                    .find(|verdict| verdict.question == question);
                let evidence = seen.map_or("it was not asked", |verdict| verdict.evidence.as_str());
                format!("{}: {evidence}", question.title())
            });
        let failed: Vec<String> = failed.collect();
        (!failed.is_empty()).then(|| {
            let failed = failed.join("; ");
            format!("this kernel does not what its queues must do ({failed})")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_but(failing: Question) -> Behaviour {
        let verdict = |question| Verdict {
            question,
            holds: question != failing,
            evidence: "seen".into(),
        };
        Behaviour {
            verdicts: Question::ALL.map(verdict).to_vec(),
            milliseconds: 1,
        }
    }

    #[test]
    fn one_fatal_failure_refuses_and_a_gated_one_does_not() {
        for question in Question::ALL {
            let behaviour = all_but(question);
            assert_eq!(behaviour.refusal().is_some(), question.is_fatal());
            assert!(!behaviour.holds(question));
        }
        let refusal = all_but(Question::Reset).refusal().unwrap_or_default();
        assert!(refusal.contains("queue: reset: seen"), "{refusal}");
    }

    #[test]
    fn what_was_not_asked_does_not_hold() {
        let mut behaviour = all_but(Question::ZeroCopy);
        assert_eq!(behaviour.refusal(), None);
        behaviour.verdicts.remove(0);
        let refusal = behaviour.refusal().unwrap_or_default();
        assert!(refusal.contains("not asked"), "{refusal}");
    }
}
