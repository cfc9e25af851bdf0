//! The agent's configuration: types here, reading in [`mod@file`].

pub mod file;
mod kubernetes;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::kubernetes::Kubernetes;
use crate::policy::PolicyRule;
use crate::service::Service;
use crate::workload::{ModeSetting, WorkloadSpec};

/// Everything the configuration file and the flags say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    pub mode: ModeSetting,
    /// Worker threads of the data plane, 1..=64.
    pub concurrency: usize,
    pub ports: Ports,
    /// `SO_MARK` of the agent's own sockets; the delivery mark is this plus one.
    pub mark: u32,
    pub log: Log,
    pub admin: Admin,
    pub state_dir: PathBuf,
    pub bpffs: PathBuf,
    pub timeouts: Timeouts,
    pub limits: Limits,
    /// A direction of a connection splices once it has moved this many bytes; `None`: never.
    pub splice_after: Option<u64>,
    /// An Envoy v3 bootstrap: what the agent's proxy serves in its own name.
    pub bootstrap: Option<PathBuf>,
    /// `None`: pods are not looked for.
    pub kubernetes: Option<Kubernetes>,
    pub services: Vec<Service>,
    pub policy: Vec<PolicyRule>,
    pub workloads: Vec<WorkloadSpec>,
}

/// Ports of the agent's listeners in every workload's namespace; 0: any free one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub outbound: u16,
    pub inbound: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// A tracing filter: `info`, or `info,shunt_proxy=debug`.
    pub level: String,
    pub format: LogFormat,
    pub access: AccessLog,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// Where access log lines go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLog {
    Off,
    Stdout,
    File(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admin {
    pub socket: PathBuf,
    /// A loopback address, or nothing.
    pub address: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    pub connect: Duration,
    /// Zero: never.
    pub idle: Duration,
    pub half_close: Duration,
    pub drain: Duration,
    /// How long a replaced data plane lets its flows go on.
    #[serde(default = "upgrade")]
    pub upgrade: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub connections: u64,
    pub connections_per_workload: u64,
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            mode: ModeSetting::Auto,
            concurrency: cores.min(Self::MAX_CONCURRENCY),
            ports: Ports {
                outbound: 15001,
                inbound: 15006,
            },
            mark: 0x539,
            log: Log {
                level: "info".into(),
                format: LogFormat::Text,
                access: AccessLog::Stdout,
            },
            admin: Admin {
                socket: "/run/shunt/admin.sock".into(),
                address: None,
            },
            state_dir: "/run/shunt".into(),
            bpffs: "/sys/fs/bpf/shunt".into(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            splice_after: Some(Self::SPLICE_AFTER),
            bootstrap: None,
            kubernetes: None,
            services: Vec::new(),
            policy: Vec::new(),
            workloads: Vec::new(),
        }
    }
}

impl Config {
    pub const DEFAULT_PATH: &str = "/etc/shunt/shunt.yaml";
    pub const MAX_CONCURRENCY: usize = 64;
    /// Bytes. See docs/adr/0006.
    pub const SPLICE_AFTER: u64 = 1 << 20;

    /// The mark of sockets that deliver with a client's source address.
    pub fn delivery_mark(&self) -> u32 {
        self.mark.wrapping_add(1)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            idle: Duration::ZERO,
            half_close: Duration::from_secs(600),
            drain: Duration::from_secs(30),
            upgrade: upgrade(),
        }
    }
}

/// As Envoy's `--parent-shutdown-time-s`.
fn upgrade() -> Duration {
    Duration::from_secs(900)
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 100_000,
            connections_per_workload: 20_000,
        }
    }
}
