//! Entries per map; `CAPACITY` of a workload-sized map bounds how many workloads one node can enrol.

pub const WORKLOADS: u32 = 4096;
pub const RULES: u32 = 1 << 18;
pub const HANDSHAKES: u32 = 1 << 16;
pub const OWN_FLOWS: u32 = 1 << 18;
pub const LISTENING: u32 = 1 << 16;
/// Accelerated sockets, four for a flow.
pub const SOCKETS: u32 = 1 << 18;
pub const ADDRESSES: u32 = 1 << 14;
/// Bytes for what the agent has not read yet: 11,000 events, of which it reads some every 50 ms.
pub const DIRECT_EVENTS: u32 = 1 << 21;
/// Bytes for what a tap has not read yet: it reads every 5 ms.
pub const TAPPED: u32 = 1 << 18;
/// Addresses of services, and endpoints of all of them.
pub const SERVICES: u32 = 1 << 16;
pub const ENDPOINTS: u32 = 1 << 18;
/// Rules of all workloads' L4 policies, and workloads that each of their selectors chooses.
pub const POLICY: u32 = 1 << 18;
pub const SELECTED: u32 = 1 << 18;
/// Services that are called directly past the TCP stack. Of more, those that were called last are known.
pub const BULK: u32 = 1 << 12;
/// Two for each port that somebody listens on and others call.
pub const CLASSES: u32 = 1 << 16;
/// Resolvers of all workloads whose DNS is captured, a thousand of them with all their slots.
pub const RESOLVERS: u32 = 1 << 14;
