//! Listeners that serve captured connections of workloads, found by where those were going.

mod accelerated;
mod edges;
mod inbound;
mod outbound;
mod scene;
mod tunnels;
