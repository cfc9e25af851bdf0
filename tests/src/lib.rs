//! The harness: pods as network namespaces with a cgroup each, real programs in them, and the agent beside them.
//! Everything is torn down when its guard is dropped.

pub mod agent;
pub mod kernel;
pub mod require;
pub mod wait;
pub mod world;

pub use agent::{Agent, AgentBuilder};
pub use world::{Pod, Running, World};
