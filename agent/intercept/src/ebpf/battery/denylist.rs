//! Kernels on which trying is the harm: they may panic, or lose sockets for good, in a race that no battery meets
//! reliably. Nothing is accelerated there, and the battery does not run.
//!
//! Fixes that only a wrong *answer* would tell are not here: the battery asks for those.

use aya::util::KernelVersion;

/// One fault of some kernels.
#[derive(Debug)]
pub(super) struct Denied {
    /// The first kernel of a series that has it, and the first that has it no more.
    from: [u32; 3],
    before: [u32; 3],
    pub(super) what: &'static str,
    /// The commit that cures it, in Linus' tree; the stable series have it from `before` on.
    pub(super) cure: &'static str,
}

const RECURSION: (&str, &str) = (
    "closing a socket of a socket hash may call itself until the kernel's stack is used up",
    "5b4a79ba65a1 (bpf, sockmap: Don't let sock_map_{close,destroy,unhash} call itself)",
);
const RACE: (&str, &str) = (
    "closing a socket while another sends into its queue may find itself in the way: a warning (a panic under \
     panic_on_warn), and the socket is never freed",
    "4b4647add7d3 (sock_map: avoid race between sock_map_close and sk_psock_put)",
);

const DENIED: [Denied; 5] = [
    denied([0, 0, 0], [6, 1, 13], RECURSION),
    denied([6, 1, 13], [6, 1, 95], RACE),
    // 6.2 has the first cure; neither it nor the series up to 6.5 was maintained until the second.
    denied([6, 2, 0], [6, 6, 0], RACE),
    denied([6, 6, 0], [6, 6, 35], RACE),
    denied([6, 7, 0], [6, 9, 6], RACE),
];

const fn denied(
    from: [u32; 3],
    before: [u32; 3],
    (what, cure): (&'static str, &'static str),
) -> Denied {
    Denied {
        from,
        before,
        what,
        cure,
    }
}

/// Why the kernel of this version is not even tried.
pub(super) fn refusal(version: [u32; 3]) -> Option<String> {
    let denied = DENIED
        .iter()
        .find(|denied| denied.from <= version && version < denied.before)?;
    let [major, minor, patch] = version;
    Some(format!(
        "Linux {major}.{minor}.{patch} is not tried: {}; cured by {}",
        denied.what, denied.cure
    ))
}

/// Of the kernel that runs.
pub(super) fn of_this_kernel() -> Option<String> {
    let version = KernelVersion::current().ok()?;
    // The only way to the numbers: its code is that of the kernel's own LINUX_VERSION_CODE, with the patch level cut
    // off at 255.
    let code = version.code();
    refusal([code >> 16, code >> 8 & 0xff, code & 0xff])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_denied_with_the_commit_that_cures_them() {
        for (version, cure) in [
            ([5, 15, 120], "5b4a79ba65a1"),
            ([5, 19, 0], "5b4a79ba65a1"),
            ([6, 1, 12], "5b4a79ba65a1"),
            ([6, 1, 94], "4b4647add7d3"),
            ([6, 5, 13], "4b4647add7d3"),
            ([6, 6, 34], "4b4647add7d3"),
            ([6, 8, 12], "4b4647add7d3"),
            ([6, 9, 5], "4b4647add7d3"),
        ] {
            let refusal = refusal(version).unwrap_or_default();
            assert!(refusal.contains(cure), "{version:?}: {refusal}");
        }
    }

    #[test]
    fn cured_kernels_are_tried() {
        for version in [
            [6, 1, 95],
            [6, 1, 255],
            [6, 6, 35],
            [6, 9, 6],
            [6, 10, 0],
            [6, 12, 1],
            [6, 18, 44],
            [7, 0, 0],
        ] {
            assert_eq!(refusal(version), None, "{version:?}");
        }
    }

    #[test]
    fn every_range_is_one() {
        for denied in &DENIED {
            assert!(denied.from < denied.before, "{denied:?}");
        }
    }
}
