//! The harness: pods as network namespaces with a cgroup each, real programs in them, and the agent beside them.
//! Everything is torn down when its guard is dropped.

pub mod admin;
pub mod agent;
pub mod attachments;
pub mod blocked;
pub mod bpffs;
pub mod cni;
pub mod conform;
pub mod containerd;
pub mod events;
pub mod greeter;
pub mod kernel;
pub mod kubernetes;
pub mod load;
pub mod mayfly;
pub mod ongoing;
pub mod pair;
pub mod podman;
pub mod postgres;
pub mod prober;
pub mod raw;
pub mod require;
pub mod router;
pub mod script;
pub mod systemd;
pub mod talks;
pub mod tap;
pub mod unit;
pub mod wait;
pub mod way;
pub mod world;

use std::str::FromStr;

pub use agent::{Agent, AgentBuilder};
pub use blocked::Blocked;
pub use bpffs::Bpffs;
pub use events::EVENTS;
pub use load::Load;
pub use mayfly::Mayfly;
pub use pair::Pair;
pub use podman::Podman;
pub use prober::Prober;
pub use raw::Raw;
pub use script::Script;
pub use tap::Tap;
pub use unit::Unit;
pub use way::Way;
pub use world::{Pod, Running, World};

/// What an environment variable says, else `default`: how stress tests are enlarged.
///
/// # Panics
/// It is no number.
pub fn number<T: FromStr>(variable: &str, default: T) -> T {
    let set = std::env::var(variable).ok();
    set.map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: {text}"))
    })
}

/// Runs each story, a function of the mode, as a test in both modes.
#[macro_export]
macro_rules! in_both_modes {
    ($($story:ident),* $(,)?) => {
        mod ebpf { $(#[test] fn $story() { super::$story("ebpf"); })* }
        mod iptables { $(#[test] fn $story() { super::$story("iptables"); })* }
    };
}
