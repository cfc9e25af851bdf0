//! These types may be given to the kernel as they are.

use super::*;

// SAFETY: repr(C), plain integers only, and no padding: the test of [`maps`](super) adds up the fields.
unsafe impl aya::Pod for Workload {}
// SAFETY: as above.
unsafe impl aya::Pod for RuleKey {}
// SAFETY: as above.
unsafe impl aya::Pod for Handshake {}
// SAFETY: as above.
unsafe impl aya::Pod for Destination {}
// SAFETY: as above.
unsafe impl aya::Pod for OwnFlow {}
// SAFETY: as above.
unsafe impl aya::Pod for FlowOwner {}
// SAFETY: as above.
unsafe impl aya::Pod for ListeningPort {}
// SAFETY: as above.
unsafe impl aya::Pod for Handoff {}
// SAFETY: as above.
unsafe impl aya::Pod for End {}
// SAFETY: as above.
unsafe impl aya::Pod for Address {}
