//! The agent's numbers in the OpenMetrics text format, which Prometheus reads.
//!
//! They are gathered anew for each scrape: the counters live where they are counted, and what is withdrawn is gone.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use shunt_core::counters::{AgentCounters, FlowCounters};
use shunt_core::dns::{QueryOutcome, Rcode};
use shunt_core::flow::{CloseReason, DataPath, Direction, direction};
use shunt_core::snapshot::{Enrolled, Snapshot};
use shunt_core::status::{StatusMode, WorkloadState, WorkloadStatus};

use crate::proxy_stats;

#[cfg(test)]
mod tests;

/// Kernel events whose names begin so count connections by whether they may be accelerated.
const VERDICT: &str = "verdict_";

/// The last line of a page.
const END: &str = "# EOF\n";

/// The `Content-Type` of [`render`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the numbers are gathered from.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    pub snapshot: &'a Snapshot,
    pub agent: &'a AgentCounters,
    pub workloads: &'a [WorkloadStatus],
    /// Interceptions found damaged and set up again, by what was damaged.
    pub repairs: &'a [(String, u64)],
    /// The kernel programs' own counters, by name.
    pub kernel_events: &'a [(String, u64)],
    /// Upgrades of the data plane, by what became of them.
    pub upgrades: &'a [(String, u64)],
    /// Data planes that an upgrade has replaced, and whose flows go on.
    pub retired: usize,
    pub version: &'a str,
}

/// Names and values, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Labels(Vec<(&'static str, String)>);

type Counters = Family<Labels, Counter>;
type Gauges = Family<Labels, Gauge>;

/// All metrics, as text.
pub fn render(sources: &Sources<'_>) -> String {
    let mut registry = Registry::with_prefix("shunt");
    register_connections(&mut registry, sources.snapshot);
    register_queries(&mut registry, sources.snapshot);
    register_agent(&mut registry, sources);
    let named = |label, values: &[(String, u64)]| {
        let family = Counters::default();
        for (name, value) in values {
            family
                .get_or_create(&Labels(vec![(label, name.clone())]))
                .inc_by(*value);
        }
        family
    };
    let repairs = named("what", sources.repairs);
    let help = "Interceptions found damaged and set up again";
    registry.register("interception_repairs", help, repairs);
    let upgrades = named("result", sources.upgrades);
    registry.register("upgrades", "Upgrades of the data plane", upgrades);
    let retired = Gauge::<i64, AtomicI64>::default();
    retired.set(i64::try_from(sources.retired).unwrap_or(i64::MAX));
    let help = "Earlier data planes that let their connections end";
    registry.register("data_planes_retired", help, retired);
    let kernel_events = named("event", &others(sources.kernel_events));
    registry.register(
        "kernel_events",
        "Events counted by the kernel programs",
        kernel_events,
    );
    registry.register(
        "workloads",
        "Workloads by how they are steered",
        states(sources.workloads),
    );
    let build = Gauges::default();
    build
        .get_or_create(&Labels(vec![("version", sources.version.to_owned())]))
        .set(1);
    registry.register("build_info", "The version that runs", build);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = encode(&mut text, &registry);
    let end = text.strip_suffix(END).map_or(text.len(), str::len);
    text.insert_str(end, &proxy_stats::metrics(&sources.snapshot.proxy));
    text
}

/// The encoder appends `_total` to the names of counters.
fn register_connections(registry: &mut Registry, snapshot: &Snapshot) {
    let (total, active, bytes) = (Counters::default(), Gauges::default(), Counters::default());
    let messages = Counters::default();
    for workload in snapshot.workloads.values() {
        for direction in [Direction::Outbound, Direction::Inbound] {
            let counters: &FlowCounters = workload.counters.of(direction);
            // A counter never goes down, so it cannot follow a connection from one path to another.
            total
                .get_or_create(&flow_labels(workload, direction, DataPath::Copy))
                .inc_by(counters.total.load(Relaxed));
            for path in DataPath::ALL {
                let labels = flow_labels(workload, direction, path);
                let on = counters.on(path);
                let now_active = i64::try_from(on.active.load(Relaxed)).unwrap_or(i64::MAX);
                active.get_or_create(&labels).inc_by(now_active);
                let flows = [
                    ("received", &on.received, &on.messages_received),
                    ("sent", &on.sent, &on.messages_sent),
                ];
                for (flow, bytes_so_far, messages_so_far) in flows {
                    let mut labels = labels.clone();
                    labels.0.push(("flow", flow.to_owned()));
                    let count = |of: &Counters, number: &AtomicU64| {
                        of.get_or_create(&labels).inc_by(number.load(Relaxed));
                    };
                    count(&bytes, bytes_so_far);
                    if matches!(path, DataPath::Handoff | DataPath::Direct) {
                        count(&messages, messages_so_far);
                    }
                }
            }
        }
    }
    let help = "Connections begun, by the path they began on";
    registry.register("connections", help, total);
    let help = "Connections begun and not ended, by the path they are on";
    registry.register("connections_active", help, active);
    registry.register(
        "bytes",
        "Bytes received from clients and sent to them",
        bytes,
    );
    let help =
        "Messages among those bytes that went from application to application past the TCP stack";
    registry.register("messages", help, messages);
}

/// Of workloads whose DNS is captured.
fn register_queries(registry: &mut Registry, snapshot: &Snapshot) {
    let (queries, answers) = (Counters::default(), Counters::default());
    let (odd, active) = (Counters::default(), Gauges::default());
    for workload in snapshot.workloads.values() {
        let dns = &workload.counters.dns;
        if !dns.is_used() {
            continue;
        }
        let labels = |more: Option<(&'static str, &str)>| {
            let mut labels = vec![
                ("workload", workload.name.name.clone()),
                ("namespace", workload.name.namespace.clone()),
            ];
            labels.extend(more.map(|(label, value)| (label, value.to_owned())));
            Labels(labels)
        };
        let count = |family: &Counters, label: (&'static str, &str), number: &AtomicU64| {
            let number = number.load(Relaxed);
            family.get_or_create(&labels(Some(label))).inc_by(number);
        };
        for outcome in QueryOutcome::ALL {
            let label = ("outcome", outcome.as_str());
            count(&queries, label, dns.outcome(outcome));
        }
        for rcode in Rcode::all() {
            let number = dns.answers(rcode);
            if number.load(Relaxed) > 0 {
                count(&answers, ("rcode", rcode.as_str()), number);
            }
        }
        count(&odd, ("what", "malformed_query"), &dns.malformed);
        count(&odd, ("what", "mismatched_answer"), &dns.mismatched);
        let now = i64::try_from(dns.places.taken()).unwrap_or(i64::MAX);
        active.get_or_create(&labels(None)).set(now);
    }
    let help = "DNS queries that were captured, by what became of them";
    registry.register("dns_queries", help, queries);
    let help = "Resolvers' answers that were passed on, by response code";
    registry.register("dns_answers", help, answers);
    let help = "Queries that are no DNS, which are passed on; datagrams of resolvers that answer another question";
    registry.register("dns_odd", help, odd);
    let help = "DNS queries that wait for an answer";
    registry.register("dns_queries_active", help, active);
}

fn flow_labels(workload: &Enrolled, direction: Direction, path: DataPath) -> Labels {
    Labels(vec![
        ("workload", workload.name.name.clone()),
        ("namespace", workload.name.namespace.clone()),
        ("direction", direction::as_str(direction).to_owned()),
        ("mode", workload.mode.as_str().to_owned()),
        ("path", path.as_str().to_owned()),
    ])
}

fn register_agent(registry: &mut Registry, sources: &Sources<'_>) {
    let agent = sources.agent;
    let mut register = |name: &str, help: &str, value: &AtomicU64| {
        let counter = Counter::<u64>::default();
        counter.inc_by(value.load(Relaxed));
        registry.register(name, help, counter);
    };
    let help = "Connections refused because their original destination was not known";
    register("original_dst_misses", help, &agent.original_dst_misses);
    let help = "Connections refused because they led to the agent itself";
    register("loops_refused", help, &agent.loops_refused);
    let help = "Connections refused at a limit";
    register(
        "connections_refused",
        help,
        &agent.connections_refused_by_limit,
    );
    let help = "Connections refused because no descriptor was left";
    register(
        "connections_refused_without_descriptor",
        help,
        &agent.connections_refused_by_descriptors,
    );
    register(
        "accept_errors",
        "Failures to accept a connection",
        &agent.accept_errors,
    );
    let help = "Access log lines dropped because the log was too slow";
    register("access_log_dropped", help, &agent.access_log_dropped);
    register_reasons(registry, agent, sources.kernel_events);
}

/// What the kernel says of a connection's acceleration is told with that.
fn others(events: &[(String, u64)]) -> Vec<(String, u64)> {
    let told = |(name, _): &&(String, u64)| !name.starts_with(VERDICT);
    events.iter().filter(told).cloned().collect()
}

fn register_reasons(registry: &mut Registry, agent: &AgentCounters, events: &[(String, u64)]) {
    let closed = Counters::default();
    for reason in CloseReason::ALL {
        closed
            .get_or_create(&Labels(vec![("reason", reason.as_str().to_owned())]))
            .inc_by(agent.closed(reason).load(Relaxed));
    }
    registry.register("connections_closed", "Connections ended, by reason", closed);
    let acceleration = Counters::default();
    for (reason, count) in [
        ("bulk", &agent.splice_begun),
        ("pipes_in_use", &agent.splice_pipes_in_use),
        ("pipe_refused", &agent.splice_pipe_refused),
    ] {
        let labels = vec![
            ("path", DataPath::Splice.as_str().to_owned()),
            ("reason", reason.to_owned()),
        ];
        acceleration
            .get_or_create(&Labels(labels))
            .inc_by(count.load(Relaxed));
    }
    for (name, count) in events {
        let Some(verdict) = name.strip_prefix(VERDICT) else {
            continue;
        };
        let path = match verdict {
            "always" | "proven" => DataPath::Handoff,
            _ => DataPath::Copy,
        };
        let labels = vec![
            ("path", path.as_str().to_owned()),
            ("reason", verdict.to_owned()),
        ];
        acceleration.get_or_create(&Labels(labels)).inc_by(*count);
    }
    let help = "Directions of connections that took a faster path (bulk), or could not and why; same-node connections that \
                were meant for a faster path, or not and why";
    registry.register("acceleration", help, acceleration);
}

fn states(workloads: &[WorkloadStatus]) -> Gauges {
    let family = Gauges::default();
    for workload in workloads {
        let mode = match workload.mode {
            StatusMode::Ebpf => "ebpf",
            StatusMode::Iptables => "iptables",
            StatusMode::Off => "off",
        };
        let state = match workload.state {
            WorkloadState::Ready => "ready",
            WorkloadState::Pending => "pending",
            WorkloadState::Failed => "failed",
        };
        let labels = Labels(vec![("mode", mode.to_owned()), ("state", state.to_owned())]);
        family.get_or_create(&labels).inc();
    }
    family
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }
}
