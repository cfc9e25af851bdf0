//! The inverse of reading: a configuration as YAML with nothing left to defaults.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};
use std::path::Path;
use std::time::Duration;

use crate::config::{AccessLog, Config, Kubernetes, LogFormat};
use crate::flow::direction;
use crate::policy::{Action, Peer, PolicyRule, Selector};
use crate::service::{Balance, Service};
use crate::workload::{
    Acceleration, AccelerationPolicy, CapturePolicy, ModeSetting, OnFailure, WorkloadSpec,
};

/// The YAML text that [`parse`](super::parse) reads back as the same configuration.
pub fn dump(config: &Config) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_config(&mut text, config);
    text
}

fn write_config(out: &mut String, config: &Config) -> fmt::Result {
    let Config {
        mode,
        concurrency,
        ports,
        mark,
        log,
        admin,
        ..
    } = config;
    let Config {
        state_dir,
        bpffs,
        timeouts,
        limits,
        splice_after,
        bootstrap,
        kubernetes,
        services,
        policy,
        workloads,
        ..
    } = config;
    writeln!(out, "mode: {}", mode_word(*mode))?;
    writeln!(out, "concurrency: {concurrency}")?;
    writeln!(
        out,
        "ports: {{outbound: {}, inbound: {}}}",
        ports.outbound, ports.inbound
    )?;
    writeln!(out, "mark: {mark:#x}")?;
    let format = match log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    let access = match &log.access {
        AccessLog::Off => "off".to_owned(),
        AccessLog::Stdout => "stdout".to_owned(),
        AccessLog::File(path) => quoted_path(path),
    };
    writeln!(
        out,
        "log: {{level: {}, format: {format}, access: {access}}}",
        quoted(&log.level)
    )?;
    write!(out, "admin: {{socket: {}", quoted_path(&admin.socket))?;
    if let Some(address) = admin.address {
        write!(out, ", address: {}", quoted(&address.to_string()))?;
    }
    writeln!(out, "}}")?;
    writeln!(out, "state_dir: {}", quoted_path(state_dir))?;
    writeln!(out, "bpffs: {}", quoted_path(bpffs))?;
    let [connect, idle, half_close, drain, upgrade] = [
        timeouts.connect,
        timeouts.idle,
        timeouts.half_close,
        timeouts.drain,
        timeouts.upgrade,
    ]
    .map(duration);
    writeln!(
        out,
        "timeouts: {{connect: {connect}, idle: {idle}, half_close: {half_close}, drain: {drain}, upgrade: {upgrade}}}"
    )?;
    writeln!(
        out,
        "limits: {{connections: {}, connections_per_workload: {}}}",
        limits.connections, limits.connections_per_workload
    )?;
    writeln!(out, "splice_after: {}", size_or_off(*splice_after))?;
    if let Some(bootstrap) = bootstrap {
        writeln!(out, "bootstrap: {}", quoted_path(bootstrap))?;
    }
    if let Some(kubernetes) = kubernetes {
        write_kubernetes(out, kubernetes)?;
    }
    write_services(out, services)?;
    write_policy(out, policy)?;
    if workloads.is_empty() {
        return writeln!(out, "workloads: []");
    }
    writeln!(out, "workloads:")?;
    workloads
        .iter()
        .try_for_each(|workload| write_workload(out, workload))
}

fn write_kubernetes(out: &mut String, kubernetes: &Kubernetes) -> fmt::Result {
    let Kubernetes {
        node_name,
        kubeconfig,
        default_on,
        inject_label,
        dataplane_mode_label,
        exempt_namespaces,
    } = kubernetes;
    writeln!(out, "kubernetes:")?;
    if let Some(name) = node_name {
        writeln!(out, "  node_name: {}", quoted(name))?;
    }
    if let Some(path) = kubeconfig {
        writeln!(out, "  kubeconfig: {}", quoted_path(path))?;
    }
    let default = if *default_on { "on" } else { "off" };
    writeln!(out, "  default: {default}")?;
    writeln!(
        out,
        "  labels: {{inject: {}, dataplane_mode: {}}}",
        quoted(inject_label),
        quoted(dataplane_mode_label)
    )?;
    writeln!(out, "  exempt_namespaces: {}", list(exempt_namespaces))
}

fn write_services(out: &mut String, services: &[Service]) -> fmt::Result {
    if services.is_empty() {
        return writeln!(out, "services: []");
    }
    writeln!(out, "services:")?;
    services.iter().try_for_each(|service| {
        let balance = match service.balance {
            Balance::RoundRobin => "round_robin",
            Balance::Random => "random",
        };
        writeln!(
            out,
            "  - {{name: {}, addresses: {}, endpoints: {}, balance: {balance}}}",
            quoted(&service.name),
            list(&service.addresses),
            list(&service.endpoints)
        )
    })
}

fn write_policy(out: &mut String, policy: &[PolicyRule]) -> fmt::Result {
    if policy.is_empty() {
        return writeln!(out, "policy: []");
    }
    writeln!(out, "policy:")?;
    policy.iter().try_for_each(|rule| {
        let action = match rule.action {
            Action::Allow => "allow",
            Action::Deny => "deny",
        };
        write!(
            out,
            "  - {{action: {action}, direction: {}",
            direction::as_str(rule.direction)
        )?;
        if let Some(workload) = &rule.workload {
            write!(out, ", workload: {}", selector(workload))?;
        }
        match &rule.peer {
            Some(Peer::Workload(workload)) => {
                write!(out, ", peer: {{workload: {}}}", selector(workload))?;
            }
            Some(Peer::Cidr(net)) => write!(out, ", peer: {{cidr: {}}}", quoted(&net.to_string()))?,
            None => {}
        }
        writeln!(out, ", ports: {}}}", list(&rule.ports))
    })
}

fn selector(selector: &Selector) -> String {
    let name = selector.name.iter().map(|name| ("name", quoted(name)));
    let namespace = selector
        .namespace
        .iter()
        .map(|space| ("namespace", quoted(space)));
    let labels = (!selector.labels.is_empty()).then(|| ("labels", labels(&selector.labels)));
    let parts: Vec<_> = name
        .chain(namespace)
        .chain(labels)
        .map(|(key, value)| format!("{key}: {value}"))
        .collect();
    format!("{{{}}}", parts.join(", "))
}

fn labels(labels: &BTreeMap<String, String>) -> String {
    let labels: Vec<_> = labels
        .iter()
        .map(|(key, value)| format!("{}: {}", quoted(key), quoted(value)))
        .collect();
    format!("{{{}}}", labels.join(", "))
}

fn write_workload(out: &mut String, workload: &WorkloadSpec) -> fmt::Result {
    writeln!(out, "  - name: {}", quoted(&workload.name.name))?;
    writeln!(out, "    namespace: {}", quoted(&workload.name.namespace))?;
    writeln!(out, "    netns: {}", quoted_path(&workload.netns))?;
    if let Some(cgroup) = &workload.cgroup {
        writeln!(out, "    cgroup: {}", quoted_path(cgroup))?;
    }
    writeln!(out, "    labels: {}", labels(&workload.labels))?;
    writeln!(out, "    mode: {}", mode_word(workload.mode))?;
    let AccelerationPolicy {
        default,
        ports: by_port,
        direct,
        handoff,
    } = &workload.acceleration;
    let word = |acceleration: &Acceleration| match acceleration {
        Acceleration::Off => "off",
        Acceleration::Auto => "auto",
        Acceleration::Always => "always",
    };
    let by_port: Vec<_> = by_port
        .iter()
        .map(|(range, acceleration)| format!("\"{range}\": {}", word(acceleration)))
        .collect();
    writeln!(
        out,
        "    acceleration: {{default: {}, direct: {direct}, handoff: {handoff}, ports: {{{}}}}}",
        word(default),
        by_port.join(", ")
    )?;
    let on_failure = match workload.on_failure {
        OnFailure::Open => "open",
        OnFailure::Closed => "closed",
    };
    writeln!(out, "    on_failure: {on_failure}")?;
    writeln!(out, "    dns: {{capture: {}}}", workload.dns.capture)?;
    let CapturePolicy {
        include_cidrs,
        exclude_cidrs,
        ..
    } = &workload.outbound;
    writeln!(
        out,
        "    outbound: {{{}, include_cidrs: {}, exclude_cidrs: {}}}",
        ports(&workload.outbound),
        list(include_cidrs),
        list(exclude_cidrs)
    )?;
    writeln!(out, "    inbound: {{{}}}", ports(&workload.inbound))
}

fn ports(policy: &CapturePolicy) -> String {
    format!(
        "include_ports: {}, exclude_ports: {}",
        list(&policy.include_ports),
        list(&policy.exclude_ports)
    )
}

fn list<T: Display>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(|item| quoted(&item.to_string())).collect();
    format!("[{}]", items.join(", "))
}

fn mode_word(mode: ModeSetting) -> &'static str {
    match mode {
        ModeSetting::Auto => "auto",
        ModeSetting::Ebpf => "ebpf",
        ModeSetting::Iptables => "iptables",
    }
}

/// In the largest unit that loses nothing.
fn duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    match units
        .into_iter()
        .find(|(_, size)| millis > 0 && millis.is_multiple_of(*size))
    {
        Some((unit, size)) => format!("{}{unit}", millis / size),
        None if millis == 0 => "0s".to_owned(),
        None => format!("{millis}ms"),
    }
}

/// In the largest unit that loses nothing.
fn size_or_off(size: Option<u64>) -> String {
    let Some(bytes) = size else {
        return "off".to_owned();
    };
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units
        .into_iter()
        .find(|(_, size)| bytes > 0 && bytes.is_multiple_of(*size))
    {
        Some((unit, size)) => format!("{}{unit}", bytes / size),
        None => bytes.to_string(),
    }
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// A JSON string is a YAML string, whatever is in it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
