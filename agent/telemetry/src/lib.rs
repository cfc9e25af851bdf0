//! What the agent tells: its own log, the access log, metrics.

pub mod access_log;
pub mod logging;
pub mod metrics;
pub mod proxy_stats;

pub use shunt_core::timestamp;
