//! The data path, in reading order:
//!
//! | module | what |
//! |---|---|
//! | [`worker`] | one thread: its listeners, its flows, its end |
//! | [`listener`] | the accept loop |
//! | [`flow`] | one connection from accept to close, on one screen |
//! | [`admission`] | may it go on, and where to: loops, limits, services, policy |
//! | [`origin`], [`connect`] | the upstream or delivery socket: in whose name, and how |
//! | [`rendezvous`] | recognising our own flow in the destination's namespace |
//! | [`relay`] | bytes both ways, copied or spliced |
//! | [`gateway`] | one connection to a listener of the proxy's, bound or virtual: inspected, given to its filter chain |
//! | [`sniff`], [`proxy_protocol`], [`inspect`] | what the first bytes say |
//! | [`tcp_proxy`], [`http`] | what a filter chain ends in |
//! | [`balance`] | which endpoint of a cluster |
//! | [`dns`] | datagrams to port 53, of workloads that want it |
//! | [`account`] | what is counted and told of a flow |
//!
//! Nothing here holds a privilege or knows how connections are steered: sockets come from a
//! [`SocketSupply`](shunt_core::sockets::SocketSupply), destinations from an
//! [`OriginalDstSource`](shunt_core::sockets::OriginalDstSource).

mod account;
mod admission;
mod balance;
mod buffers;
mod connect;
mod dns;
mod flow;
mod gateway;
mod http;
mod inspect;
mod listener;
mod origin;
mod pipes;
mod proxy_protocol;
mod relay;
mod rendezvous;
mod scarcity;
pub mod sniff;
mod tcp_proxy;
mod worker;

pub use account::{FlowSink, FlowWitness, Moment};
pub use rendezvous::Rendezvous;
pub use worker::{Worker, WorkerContext, spawn};
