//! The harness: pods as network namespaces with a cgroup each, real programs in them, and the agent beside them.
//! Everything is torn down when its guard is dropped.

pub mod admin;
pub mod agent;
pub mod attachments;
pub mod conform;
pub mod kernel;
pub mod load;
pub mod postgres;
pub mod prober;
pub mod require;
pub mod router;
pub mod wait;
pub mod world;

pub use agent::{Agent, AgentBuilder};
pub use load::Load;
pub use prober::Prober;
pub use world::{Pod, Running, World};

/// Runs each story, a function of the mode, as a test in both modes.
#[macro_export]
macro_rules! in_both_modes {
    ($($story:ident),* $(,)?) => {
        mod ebpf { $(#[test] fn $story() { super::$story("ebpf"); })* }
        mod iptables { $(#[test] fn $story() { super::$story("iptables"); })* }
    };
}
