//! What the tests cannot do without. Missing, they fail: a skip would look like a pass.

use std::process::Command;

/// # Panics
/// Not root, or the kernel does not let us load eBPF programs.
pub fn everything() {
    let uid = Command::new("id").arg("-u").output().expect("`id` runs");
    assert_eq!(
        uid.stdout, b"0\n",
        "these tests make network namespaces: run them as root"
    );
    let check = Command::new(crate::agent::binary())
        .args(["check", "-o", "json"])
        .output()
        .expect("`shunt check` runs");
    let report: serde_json::Value =
        serde_json::from_slice(&check.stdout).expect("`shunt check` prints JSON");
    assert!(
        report["ebpf"] == true && report["iptables"] == true,
        "this machine cannot run both modes, so the tests would prove nothing: {report:#}"
    );
}
