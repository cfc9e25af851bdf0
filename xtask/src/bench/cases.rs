//! What is compared with what.

/// What every ratio divides by: no mesh at all.
pub(super) const BASELINE: &str = "baseline";

/// How the two pods are meshed while a row of the table is measured.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    /// `None`: no agent runs.
    pub(super) agent: Option<Setup>,
}

#[derive(Debug)]
pub(super) struct Setup {
    pub(super) mode: &'static str,
    /// A line of the configuration.
    pub(super) setting: &'static str,
    /// A field of each workload.
    pub(super) workload: &'static str,
    pub(super) beside: &'static [Beside],
}

/// What is done in some cases only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beside {
    /// Also what does not depend on how bytes move: long policies, churn, memory, who is not enrolled.
    Steering,
    /// What is measured was done before, for the agent to learn from.
    Learned,
    /// Connections to a service's address, among thousands of services.
    Services,
    /// What thousands of idle connections cost.
    Idle,
}

const COPY: &str = "splice_after: off";
/// The default, said aloud.
const SPLICE: &str = "splice_after: 1MiB";

/// Interleaved in this order. The second baseline shows how much of a difference is noise.
pub(super) const CASES: [Case; 11] = [
    unmeshed(BASELINE),
    unmeshed("baseline_again"),
    meshed("iptables_copy", "iptables", COPY).and(&[Beside::Steering]),
    meshed("iptables_splice", "iptables", SPLICE),
    meshed("ebpf_copy", "ebpf", COPY).and(&[Beside::Steering]),
    meshed("ebpf_splice", "ebpf", SPLICE),
    // From queue to queue, but by the agent.
    meshed("ebpf_sockmap", "ebpf", SPLICE)
        .by("acceleration: {default: always, direct: false, handoff: false}"),
    meshed("ebpf_handoff", "ebpf", SPLICE)
        .by("acceleration: {default: always, direct: false}")
        .and(&[Beside::Idle]),
    meshed("ebpf_auto", "ebpf", SPLICE)
        .by("acceleration: {direct: false}")
        .and(&[Beside::Learned]),
    // What is done without being told, and past the TCP stack.
    meshed("ebpf_direct_tcp", "ebpf", SPLICE)
        .by("acceleration: auto")
        .and(&[Beside::Services]),
    meshed("ebpf_direct", "ebpf", SPLICE)
        .by("acceleration: always")
        .and(&[Beside::Services]),
];

const fn unmeshed(name: &'static str) -> Case {
    Case { name, agent: None }
}

const fn meshed(name: &'static str, mode: &'static str, setting: &'static str) -> Case {
    let agent = Setup {
        mode,
        setting,
        workload: "acceleration: off",
        beside: &[],
    };
    Case {
        name,
        agent: Some(agent),
    }
}

impl Case {
    const fn and(mut self, beside: &'static [Beside]) -> Self {
        if let Some(agent) = &mut self.agent {
            agent.beside = beside;
        }
        self
    }

    const fn by(mut self, workload: &'static str) -> Self {
        if let Some(agent) = &mut self.agent {
            agent.workload = workload;
        }
        self
    }
}
