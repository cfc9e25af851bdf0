//! Another network behind a router: its addresses are off-link for the pods, as those of other nodes are.

use std::process::Command;

use crate::world::{Pod, World, ip};

/// A namespace on a network of its own (10.77.0.0/24, fd77::/64), routed by the namespace of the world's bridge.
///
/// # Panics
/// The host does not allow it, or the world has one already.
pub fn distant_pod(world: &World, pods: &[&Pod]) -> Pod {
    let bridge = world.label();
    // The router's own feet in the pods' network.
    ip(&format!("-n {bridge} addr add 10.66.0.1/24 dev br0"));
    ip(&format!("-n {bridge} addr add fd66::1/64 dev br0 nodad"));
    for pod in pods {
        ip(&format!(
            "-n {} route add 10.77.0.0/24 via 10.66.0.1",
            pod.netns
        ));
        ip(&format!("-n {} route add fd77::/64 via fd66::1", pod.netns));
    }
    let mut far = world.pod();
    let (netns, port) = (far.netns.clone(), far.port().to_owned());
    ip(&format!("-n {bridge} link set {port} nomaster"));
    ip(&format!("-n {bridge} addr add 10.77.0.1/24 dev {port}"));
    ip(&format!("-n {bridge} addr add fd77::1/64 dev {port} nodad"));
    ip(&format!("-n {netns} addr flush dev eth0"));
    ip(&format!("-n {netns} addr add 10.77.0.2/24 dev eth0"));
    ip(&format!("-n {netns} addr add fd77::2/64 dev eth0 nodad"));
    ip(&format!("-n {netns} route add default via 10.77.0.1"));
    ip(&format!("-n {netns} route add default via fd77::1"));
    for forwarding in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        let set = Command::new("ip")
            .args(["netns", "exec", bridge, "sysctl", "-q", "-w", forwarding])
            .status();
        assert!(set.expect("sysctl runs").success(), "{forwarding}");
    }
    (far.v4, far.v6) = ("10.77.0.2".into(), "fd77::2".into());
    far
}
