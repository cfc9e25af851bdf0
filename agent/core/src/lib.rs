//! The words all parts of the agent share. No I/O here, except reading the configuration file.

pub mod address;
pub mod behaviour;
pub mod bootstrap;
pub mod cluster;
pub mod config;
pub mod counters;
pub mod dns;
pub mod explain;
pub mod flow;
pub mod http;
pub mod listener;
pub mod policy;
pub mod route;
pub mod rules;
pub mod service;
pub mod snapshot;
pub mod sockets;
pub mod statistics;
pub mod status;
pub mod tap;
pub mod timestamp;
pub mod workload;
