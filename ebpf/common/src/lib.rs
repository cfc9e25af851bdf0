//! What the kernel programs and the agent must agree on: the [decision function](decision::decide)
//! and the layouts of the [maps]. `no_std`, no allocation, no padding in any map type.
#![cfg_attr(not(test), no_std)]

pub mod bulk;
pub mod classes;
pub mod decision;
pub mod direct;
pub mod dns;
pub mod maps;
pub mod policy;
pub mod scope;
pub mod services;
pub mod tap;
