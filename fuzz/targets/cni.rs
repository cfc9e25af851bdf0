//! What a container runtime writes to the CNI plugin's stdin.
#![no_main]
#![expect(dead_code, reason = "the plugin uses more of it")]

#[path = "../../cni/src/config.rs"]
mod config;
#[path = "../../cni/src/environment.rs"]
mod environment;
#[path = "../../cni/src/failure.rs"]
mod failure;
#[path = "../../cni/src/version.rs"]
mod version;
#[path = "../../cni/src/workload.rs"]
mod workload;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(value) = config::read(input)
        && let Ok(config) = config::NetworkConfig::parse(value)
    {
        let _ = config.needs_prev_result();
        let _ = config.needs_newest("GC");
    }
});
