//! The file's sections, in the order in which they are documented.

use super::node::{Field, Mapping};
use super::{kubernetes, policy, services, values, workloads};
use crate::config::{Admin, Config, Limits, Log, LogFormat, Ports, Timeouts};
use crate::workload::ModeSetting;

const KEYS: &[&str] = &[
    "mode",
    "concurrency",
    "ports",
    "mark",
    "log",
    "admin",
    "state_dir",
    "bpffs",
    "timeouts",
    "limits",
    "splice_after",
    "bootstrap",
    "kubernetes",
    "services",
    "policy",
    "workloads",
];

/// More than a node can hold open.
const MAX_CONNECTIONS: u64 = 100_000_000;

pub(super) fn config(root: &Field<'_>) -> Option<Config> {
    let mut config = Config::default();
    let Some(file) = root.mapping(KEYS) else {
        return Some(config);
    };
    set(&mut config.mode, file.value("mode", mode));
    let most = Config::MAX_CONCURRENCY as u64;
    let concurrency = file.value("concurrency", |text| values::number(text, 1..=most));
    set(
        &mut config.concurrency,
        concurrency.and_then(|number| usize::try_from(number).ok()),
    );
    ports(&file, &mut config.ports);
    set(&mut config.mark, file.value("mark", values::mark));
    log(&file, &mut config.log);
    admin(&file, &mut config.admin);
    set(
        &mut config.state_dir,
        file.value("state_dir", values::absolute_path),
    );
    set(
        &mut config.bpffs,
        file.value("bpffs", values::absolute_path),
    );
    timeouts(&file, &mut config.timeouts);
    limits(&file, &mut config.limits);
    set(
        &mut config.splice_after,
        file.value("splice_after", values::size_or_off),
    );
    if let Some(field) = file.get("bootstrap").filter(|field| !field.is_empty()) {
        config.bootstrap = field.value(values::absolute_path);
    }
    config.kubernetes = kubernetes::section(&file);
    if let Some(field) = file.get("services") {
        config.services = services::list(&field);
    }
    if let Some(field) = file.get("policy") {
        config.policy = policy::list(&field);
    }
    if let Some(field) = file.get("workloads") {
        config.workloads = workloads::list(&field, config.mode);
    }
    Some(config)
}

pub(super) fn mode(text: &str) -> Result<ModeSetting, String> {
    use ModeSetting::{Auto, Ebpf, Iptables};
    values::choice(
        text,
        &[("auto", Auto), ("ebpf", Ebpf), ("iptables", Iptables)],
    )
}

fn ports(file: &Mapping<'_>, ports: &mut Ports) {
    let Some(section) = file.mapping("ports", &["outbound", "inbound"]) else {
        return;
    };
    set(&mut ports.outbound, section.value("outbound", values::port));
    set(&mut ports.inbound, section.value("inbound", values::port));
    if ports.outbound == ports.inbound && ports.outbound != 0 {
        section.fault(
            "",
            format!(
                "outbound and inbound are both {}; they must differ",
                ports.inbound
            ),
        );
    }
}

fn log(file: &Mapping<'_>, log: &mut Log) {
    let Some(section) = file.mapping("log", &["level", "format", "access"]) else {
        return;
    };
    let level = |text: &str| values::check_level(text).map(|()| text.to_owned());
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    set(&mut log.level, section.value("level", level));
    set(
        &mut log.format,
        section.value("format", |text| values::choice(text, &formats)),
    );
    set(&mut log.access, section.value("access", values::access_log));
}

fn admin(file: &Mapping<'_>, admin: &mut Admin) {
    let Some(section) = file.mapping("admin", &["socket", "address"]) else {
        return;
    };
    set(
        &mut admin.socket,
        section.value("socket", values::socket_path),
    );
    if let Some(field) = section.get("address").filter(|field| !field.is_empty()) {
        admin.address = field.value(values::loopback_address);
    }
}

fn timeouts(file: &Mapping<'_>, timeouts: &mut Timeouts) {
    let known = ["connect", "idle", "half_close", "drain", "upgrade"];
    let Some(section) = file.mapping("timeouts", &known) else {
        return;
    };
    set(
        &mut timeouts.connect,
        section.value("connect", values::positive_duration),
    );
    set(&mut timeouts.idle, section.value("idle", values::duration));
    set(
        &mut timeouts.half_close,
        section.value("half_close", values::positive_duration),
    );
    set(
        &mut timeouts.drain,
        section.value("drain", values::duration),
    );
    set(
        &mut timeouts.upgrade,
        section.value("upgrade", values::duration),
    );
}

fn limits(file: &Mapping<'_>, limits: &mut Limits) {
    let known = ["connections", "connections_per_workload"];
    let Some(section) = file.mapping("limits", &known) else {
        return;
    };
    let limit = |key| section.value(key, |text| values::number(text, 1..=MAX_CONNECTIONS));
    set(&mut limits.connections, limit("connections"));
    set(
        &mut limits.connections_per_workload,
        limit("connections_per_workload"),
    );
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}
