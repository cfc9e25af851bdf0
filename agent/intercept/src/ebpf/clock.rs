//! The clock of `bpf_ktime_get_ns`: CLOCK_MONOTONIC as the kernel has it. In a time namespace (time_namespaces(7)) this
//! process sees another one, by which the gate would never be fresh.

use std::sync::LazyLock;

use rustix::time::{ClockId, clock_gettime};

/// What this process's time namespace adds to CLOCK_MONOTONIC, in nanoseconds. Fixed once a process is in it; the
/// kernel has no such file without CONFIG_TIME_NS, where there is nothing to add.
static ADDED: LazyLock<i64> = LazyLock::new(|| {
    let text = std::fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    added(&text).unwrap_or(0)
});

/// Nanoseconds.
pub(super) fn kernel_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec * 1_000_000_000 + now.tv_nsec).wrapping_sub(*ADDED) as u64
}

/// A line a clock: its name, seconds, nanoseconds.
fn added(offsets: &str) -> Option<i64> {
    let line = offsets
        .lines()
        .find_map(|line| line.strip_prefix("monotonic "))?;
    let mut numbers = line.split_whitespace().map(|word| word.parse::<i64>().ok());
    let (seconds, nanoseconds) = (numbers.next()??, numbers.next()??);
    Some(seconds * 1_000_000_000 + nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_as_the_kernel_shows_them() {
        let text = "monotonic           -2  500000000\nboottime        100000         0\n";
        assert_eq!(added(text), Some(-1_500_000_000));
        assert_eq!(added(""), None);
    }
}
