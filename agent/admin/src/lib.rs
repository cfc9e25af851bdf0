//! The admin API over HTTP/1: [`serve`] answers on sockets that are already bound, [`client`] asks.
//!
//! This crate knows paths, methods and limits; what the answers are is the [`AdminApi`]'s business.

pub mod call;
pub mod client;
mod live;
mod query;
mod server;

pub use call::{Answer, Body, Call};
pub use hyper::StatusCode;
pub use live::Telling;
pub use query::{DumpQuery, Shape, StatsQuery};
pub use server::{AdminApi, Listener, serve};
