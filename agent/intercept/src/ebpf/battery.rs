//! The behaviour battery: does this kernel with these programs do to connections what TCP does? Asked before anybody's
//! connection depends on it, in namespaces that have no name, with sockets of our own.
//!
//! ```text
//!  supervisor, `shunt check`                     `shunt battery`, in a cgroup made for it
//!  denied? known already? ── else starts ──────► programs of its own, maps of its own
//!  keeps the answer in `state_dir`  ◄── JSON ─── client netns ══ veth ══ server netns, twice, equal addresses
//! ```
//! A process of its own, since a socket has the cgroup of the process that makes it, and since a kernel that hangs must
//! hang nobody else. Rows run at once, each with connections of its own; every wait has a deadline.

mod bytes;
mod cache;
mod denylist;
mod fatal;
mod gated;
mod scene;
mod trial;

use std::fs;
use std::path::Path;
use std::str::FromStr;
use std::thread;
use std::time::Instant;

use shunt_core::behaviour::{Behaviour, Question, Verdict};

use self::scene::Scene;
pub use self::trial::{CGROUP_PREFIX, Trial, findings};
use crate::InterceptError;

/// What is broken on purpose, to see that the battery sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The programs are not attached.
    Detached,
    /// A receiver's queue has no bound.
    Unbounded,
    /// Each of two connections with equal addresses is paired with the other's far end.
    Crossed,
    /// Sockets leave the socket hash while bytes wait in them.
    Deleted,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "detached" => Ok(Self::Detached),
            "unbounded" => Ok(Self::Unbounded),
            "crossed" => Ok(Self::Crossed),
            "deleted" => Ok(Self::Deleted),
            other => Err(format!("`{other}` is no fault that can be made")),
        }
    }
}

/// As by TCP, or not, and what was seen.
type Answer = Result<String, String>;
type Row = fn(&Scene) -> Answer;

const ROWS: [(Question, Row); Question::ALL.len()] = [
    (Question::Redirect, fatal::redirect),
    (Question::OrderUnderClose, fatal::order_under_close),
    (Question::HalfClose, fatal::half_close),
    (Question::Reset, fatal::reset),
    (Question::BoundedQueue, fatal::bounded_queue),
    (Question::EarlyBytes, fatal::early_bytes),
    (Question::LargeMessages, fatal::large_messages),
    (Question::MappedAddresses, fatal::mapped_addresses),
    (Question::Isolation, fatal::isolation),
    (Question::BlockingReceive, gated::blocking_receive),
    (Question::WaitAll, gated::wait_all),
    (Question::SpliceOut, gated::splice_out),
    (Question::BytesWaiting, gated::bytes_waiting),
    (Question::ZeroCopy, gated::zero_copy),
];

/// Asks everything, from within this cgroup: the whole process moves there.
///
/// # Errors
/// The questions cannot be asked here.
pub fn run(cgroup: &Path, fault: Option<Fault>) -> Result<Behaviour, InterceptError> {
    let began = Instant::now();
    fs::write(cgroup.join("cgroup.procs"), "0")
        .map_err(|error| InterceptError::io("move into", cgroup.display(), error))?;
    let scene = Scene::set(cgroup, fault)?;
    let verdicts = thread::scope(|scope| {
        let ask = |(question, row): (Question, Row)| {
            let scene = &scene;
            (question, scope.spawn(move || row(scene)))
        };
        ROWS.map(ask).map(|(question, asked)| {
            let answer = asked
                .join()
                .unwrap_or_else(|_| Err("the question itself failed".into()));
            Verdict {
                question,
                holds: answer.is_ok(),
                evidence: answer.unwrap_or_else(|seen| seen),
            }
        })
    });
    Ok(Behaviour {
        verdicts: verdicts.to_vec(),
        milliseconds: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}
