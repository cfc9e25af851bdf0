//! Listeners that serve captured connections of workloads, found by where those were going.

mod inbound;
mod outbound;
mod scene;
