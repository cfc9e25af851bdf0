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
    /// Also what does not depend on how bytes move: long policies, churn, memory, who is not enrolled.
    pub(super) steering: bool,
}

const COPY: &str = "splice_after: off";
/// The default, said aloud.
const SPLICE: &str = "splice_after: 1MiB";

/// Interleaved in this order. The second baseline shows how much of a difference is noise.
pub(super) const CASES: [Case; 6] = [
    case(BASELINE, None),
    case("baseline_again", None),
    case("iptables_copy", Some(("iptables", COPY, true))),
    case("iptables_splice", Some(("iptables", SPLICE, false))),
    case("ebpf_copy", Some(("ebpf", COPY, true))),
    case("ebpf_splice", Some(("ebpf", SPLICE, false))),
];

const fn case(name: &'static str, agent: Option<(&'static str, &'static str, bool)>) -> Case {
    let agent = match agent {
        Some((mode, setting, steering)) => Some(Setup {
            mode,
            setting,
            steering,
        }),
        None => None,
    };
    Case { name, agent }
}
