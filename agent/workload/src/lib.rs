//! Who runs on this node, and who of them is to be enrolled. Pods, as the Kubernetes API tells of them:
//!
//! ```text
//! API server ── watch ──► pods of this node, namespaces' labels ── judge ──► a wish for each pod     [no privilege]
//!                                                                                │
//! /proc ── whose cgroup has the pod's uid ──► its oldest process ──► its network namespace           [supervisor]
//! ```
//! Judging is a pure function; the network and /proc are at the ends.

mod annotations;
mod judge;
mod object;
pub mod processes;
pub mod watch;
mod wish;

pub use self::annotations::{Said, is_sound};
pub use self::judge::Rules;
pub use self::object::{Namespace, Pod};
pub use self::wish::{Discovered, PodUid, PodWish, Verdict};
