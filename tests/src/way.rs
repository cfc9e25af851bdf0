//! On which way connections are carried, where the same stories are told of each.

/// A mode, and what workloads say besides.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub mode: &'static str,
    /// Fields of a workload, as in the YAML flow mapping.
    pub more: &'static str,
    /// What a client notices of a connection that policy denies: names of Python's exceptions.
    pub denied: &'static [&'static str],
    /// Of the access log.
    pub path: &'static str,
}

impl Way {
    /// Through the agent, which resets what it refuses.
    pub const EBPF: Self = Self {
        mode: "ebpf",
        more: "acceleration: off",
        denied: &["ConnectionResetError"],
        path: "copy",
    };
    /// Past the agent, wherever it is not needed: the hooks refuse.
    pub const DIRECT: Self = Self {
        more: "acceleration: auto",
        denied: &["ConnectionRefusedError", "ConnectionResetError"],
        path: "direct",
        ..Self::EBPF
    };
    pub const IPTABLES: Self = Self {
        mode: "iptables",
        ..Self::EBPF
    };
}

/// Runs each story, a function of the [`Way`], as a test on every way.
#[macro_export]
macro_rules! on_every_way {
    ($($story:ident),* $(,)?) => {
        mod ebpf { $(#[test] fn $story() { super::$story($crate::Way::EBPF); })* }
        mod direct { $(#[test] fn $story() { super::$story($crate::Way::DIRECT); })* }
        mod iptables { $(#[test] fn $story() { super::$story($crate::Way::IPTABLES); })* }
    };
}
