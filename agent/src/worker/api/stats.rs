//! `/stats`: numbers by name, in groups. Who counts something new adds a group.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};
use shunt_admin::StatsQuery;
use shunt_core::flow::CloseReason;
use shunt_telemetry::proxy_stats;

use crate::worker::view::View;

type Stats = Vec<(String, u64)>;

/// Told in this order.
const GROUPS: [fn(&View, &mut Stats); 5] = [agent, kernel, repairs, upgrades, proxy];

pub(super) fn all(view: &View) -> Stats {
    let mut stats = Vec::new();
    for group in GROUPS {
        group(view, &mut stats);
    }
    stats
}

fn agent(view: &View, stats: &mut Stats) {
    let counters = &view.counters;
    let rows = [
        (
            "connections_active",
            counters.connections_active.load(Relaxed),
        ),
        (
            "original_dst_misses",
            counters.original_dst_misses.load(Relaxed),
        ),
        ("loops_refused", counters.loops_refused.load(Relaxed)),
        (
            "connections_refused_by_limit",
            counters.connections_refused_by_limit.load(Relaxed),
        ),
        (
            "policy_denied",
            counters.closed(CloseReason::PolicyDenied).load(Relaxed),
        ),
        ("accept_errors", counters.accept_errors.load(Relaxed)),
        (
            "access_log_dropped",
            counters.access_log_dropped.load(Relaxed),
        ),
        ("snapshot_generation", view.snapshot.load().generation),
    ];
    stats.extend(rows.map(|(name, count)| (name.to_owned(), count)));
}

fn kernel(view: &View, stats: &mut Stats) {
    let events = view.counted.kernel.iter();
    stats.extend(events.map(|(name, count)| (format!("kernel.{name}"), *count)));
}

fn repairs(view: &View, stats: &mut Stats) {
    let repairs = view.counted.repairs.iter();
    stats.extend(repairs.map(|(name, count)| (format!("repairs.{name}"), *count)));
}

fn upgrades(view: &View, stats: &mut Stats) {
    let upgrades = view.counted.upgrades.iter();
    stats.extend(upgrades.map(|(result, count)| (format!("upgrades.{result}"), *count)));
    let retired = u64::try_from(view.retired.len()).unwrap_or(u64::MAX);
    stats.push(("data_planes_retired".to_owned(), retired));
}

fn proxy(view: &View, stats: &mut Stats) {
    stats.extend(proxy_stats::numbers(&view.snapshot.load().proxy));
}

/// What is told after the numbers.
pub(super) fn percentiles(view: &View, query: &StatsQuery) -> String {
    let all = proxy_stats::percentiles(&view.snapshot.load().proxy);
    let wanted = all.iter().filter(|(name, _)| query.wants(name, false));
    wanted
        .map(|(name, text)| format!("{name}: {text}\n"))
        .collect()
}

pub(super) fn text(stats: &[(String, u64)], query: &StatsQuery) -> String {
    let wanted = stats
        .iter()
        .filter(|(name, count)| query.wants(name, *count == 0));
    wanted
        .map(|(name, count)| format!("{name}: {count}\n"))
        .collect()
}

pub(super) fn json(stats: &[(String, u64)], query: &StatsQuery) -> Value {
    let wanted = stats
        .iter()
        .filter(|(name, count)| query.wants(name, *count == 0));
    let entries = wanted.map(|(name, count)| json!({"name": name, "value": count}));
    json!({"stats": entries.collect::<Vec<_>>()})
}

/// Of a page in Prometheus' format, the samples that are wanted, with what is said of their families.
pub(super) fn samples(page: &str, query: &StatsQuery) -> String {
    let mut kept = String::new();
    let mut said = Vec::new();
    for line in page.lines() {
        if line == "# EOF" {
            said.clear();
        } else if line.starts_with('#') {
            // Of the family before, no sample was wanted.
            if line.starts_with("# HELP") {
                said.clear();
            }
            said.push(line);
            continue;
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap_or((line, ""));
            let is_zero = value.parse::<f64>().is_ok_and(|value| value == 0.0);
            if !query.wants(name, is_zero) {
                continue;
            }
        }
        for line in said.drain(..).chain([line]) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use shunt_admin::Shape;

    use super::*;

    #[test]
    fn only_what_is_wanted_is_told() {
        let stats = [("a.x".to_owned(), 0), ("b.x".to_owned(), 2)];
        let all = StatsQuery::default();
        assert_eq!(text(&stats, &all), "a.x: 0\nb.x: 2\n");
        let used = StatsQuery {
            used_only: true,
            shape: Shape::Json,
            ..StatsQuery::default()
        };
        assert_eq!(
            json(&stats, &used),
            json!({"stats": [{"name": "b.x", "value": 2}]})
        );
        let page = "# HELP a x\n# TYPE a counter\na_total{w=\"1\"} 0\n# HELP b x\n# TYPE b gauge\nb 1\nb{w=\"x y\"} 0\n# EOF\n";
        assert_eq!(samples(page, &all), page);
        assert_eq!(
            samples(page, &used),
            "# HELP b x\n# TYPE b gauge\nb 1\n# EOF\n"
        );
    }
}
