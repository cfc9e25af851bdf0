//! What is said of a pod: words that both the one who watches and the one who enrols know.

use std::fmt;

use serde::{Deserialize, Serialize};
use shunt_core::workload::{WorkloadName, WorkloadSpec};

use crate::annotations::Said;

/// A pod's uid as its cgroup's name has it: 8 to 64 of `0-9 a-f A-F -`. A static pod's is a hash without dashes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct PodUid(String);

impl PodUid {
    /// # Errors
    /// It is no uid.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        let allowed = |c: u8| c.is_ascii_hexdigit() || c == b'-';
        match (8..=64).contains(&text.len()) && text.bytes().all(allowed) {
            true => Ok(Self(text)),
            false => Err(format!("{text:?} is not the uid of a pod")),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PodUid {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::new(text)
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What shall become of a pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodWish {
    pub uid: PodUid,
    pub name: WorkloadName,
    pub verdict: Verdict,
    /// What its annotations say of an entry of `workloads`, and nothing else: for whoever knows the rest.
    #[serde(default)]
    pub said: Said,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Its network namespace and cgroup are empty: they are found on the node. Of one with `hostNetwork` the namespace is
    /// [`OWN_NETNS`](shunt_core::workload::OWN_NETNS), and the cgroup says which processes are its own.
    Enrol(Box<WorkloadSpec>),
    /// It says itself that it does not want to be, whoever enrolled it.
    Refuse,
    /// What it asks for cannot be understood; for people.
    Wrong(String),
}

/// What the one who watches says, in this order: `Begin`, the pods, `Complete`, then changes; again after an outage of
/// which something may have been missed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Discovered {
    /// All pods follow.
    Begin,
    Pod(PodWish),
    /// Not on this node any more, ended, or of no interest.
    Gone(PodUid),
    /// Who was not named since `Begin` is gone.
    Complete,
    /// The API cannot be had, for this reason. Nothing becomes different by that.
    Outage(String),
    /// It can.
    Connected,
}
