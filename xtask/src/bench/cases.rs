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
    /// Also what does not depend on how bytes move: long policies, churn, memory, who is not enrolled.
    pub(super) steering: bool,
    /// What is measured was done before, for the agent to learn from.
    pub(super) learned: bool,
}

const COPY: &str = "splice_after: off";
/// The default, said aloud.
const SPLICE: &str = "splice_after: 1MiB";

/// Interleaved in this order. The second baseline shows how much of a difference is noise.
pub(super) const CASES: [Case; 10] = [
    unmeshed(BASELINE),
    unmeshed("baseline_again"),
    meshed("iptables_copy", "iptables", COPY).with_steering(),
    meshed("iptables_splice", "iptables", SPLICE),
    meshed("ebpf_copy", "ebpf", COPY).with_steering(),
    meshed("ebpf_splice", "ebpf", SPLICE),
    meshed("ebpf_handoff", "ebpf", SPLICE).by("acceleration: {default: always, direct: false}"),
    meshed("ebpf_auto", "ebpf", SPLICE)
        .by("acceleration: {direct: false}")
        .learned(),
    // What is done without being told, and past the TCP stack.
    meshed("ebpf_direct_tcp", "ebpf", SPLICE).by("acceleration: auto"),
    meshed("ebpf_direct", "ebpf", SPLICE).by("acceleration: always"),
];

const fn unmeshed(name: &'static str) -> Case {
    Case { name, agent: None }
}

const fn meshed(name: &'static str, mode: &'static str, setting: &'static str) -> Case {
    let agent = Setup {
        mode,
        setting,
        workload: "acceleration: off",
        steering: false,
        learned: false,
    };
    Case {
        name,
        agent: Some(agent),
    }
}

impl Case {
    const fn with_steering(mut self) -> Self {
        if let Some(agent) = &mut self.agent {
            agent.steering = true;
        }
        self
    }

    const fn learned(mut self) -> Self {
        if let Some(agent) = &mut self.agent {
            agent.learned = true;
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
