//! How many workloads are looked at in a tick, where nothing was announced of them.

/// Ticks in which every workload is looked at once: what nobody announces is found within 1.75 s.
const ROUND: usize = 7;
/// Looks a tick, as long as that is enough for [`LONGEST_ROUND`]: of more than 112 workloads a round takes longer, and no more
/// processor time.
const LOOKS: usize = 16;
/// However many there are, what nobody announces is found within 5 s.
const LONGEST_ROUND: usize = 20;

/// How many of `all` are looked at in one tick.
pub(super) fn share(all: usize) -> usize {
    let soon = all.div_ceil(ROUND).min(LOOKS);
    soon.max(all.div_ceil(LONGEST_ROUND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_takes_seconds_however_many_there_are() {
        let ticks = |all: usize| all.div_ceil(share(all));
        assert_eq!([1, 7, 50, 112].map(ticks), [1, 7, 7, 7]);
        assert_eq!([250, 320, 1000, 10_000].map(ticks), [16, 20, 20, 20]);
        assert_eq!((share(250), share(1000)), (16, 50));
    }
}
