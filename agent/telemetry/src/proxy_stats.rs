//! The HTTP data path's numbers, under the names that Envoy's users' tools look for, and a few of the agent's own.

use std::fmt::Write;

use shunt_core::bootstrap::Tables;
use shunt_core::statistics::{
    BYTES, ClusterCounts, Count, Distribution, MILLIS, ManagerCounts, PerWorker,
};

/// A number's name, its kind, and where it stands.
type Row<T> = (&'static str, Kind, fn(&T) -> &Count);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

const MANAGER: [Row<ManagerCounts>; 8] = [
    ("downstream_cx_total", Kind::Counter, |counts| {
        &counts.cx_total
    }),
    ("downstream_cx_active", Kind::Gauge, |counts| {
        &counts.cx_active
    }),
    ("downstream_cx_rx_bytes_total", Kind::Counter, |counts| {
        &counts.rx_bytes
    }),
    ("downstream_cx_tx_bytes_total", Kind::Counter, |counts| {
        &counts.tx_bytes
    }),
    ("downstream_rq_total", Kind::Counter, |counts| {
        &counts.rq_total
    }),
    ("downstream_rq_active", Kind::Gauge, |counts| {
        &counts.rq_active
    }),
    ("downstream_rq_rx_reset", Kind::Counter, |counts| {
        &counts.rq_rx_reset
    }),
    ("downstream_rq_timeout", Kind::Counter, |counts| {
        &counts.rq_timeout
    }),
];

const CLUSTER: [Row<ClusterCounts>; 9] = [
    ("upstream_cx_total", Kind::Counter, |counts| {
        &counts.cx_total
    }),
    ("upstream_cx_active", Kind::Gauge, |counts| {
        &counts.cx_active
    }),
    ("upstream_cx_connect_fail", Kind::Counter, |counts| {
        &counts.cx_connect_fail
    }),
    ("upstream_cx_connect_timeout", Kind::Counter, |counts| {
        &counts.cx_connect_timeout
    }),
    ("upstream_cx_none_healthy", Kind::Counter, |counts| {
        &counts.cx_none_healthy
    }),
    ("upstream_rq_total", Kind::Counter, |counts| {
        &counts.rq_total
    }),
    ("upstream_rq_active", Kind::Gauge, |counts| {
        &counts.rq_active
    }),
    ("upstream_rq_timeout", Kind::Counter, |counts| {
        &counts.rq_timeout
    }),
    ("upstream_rq_rx_reset", Kind::Counter, |counts| {
        &counts.rq_rx_reset
    }),
];

const PERCENTILES: [f64; 6] = [0.0, 25.0, 50.0, 90.0, 99.0, 100.0];

/// `NAME: NUMBER`, as Envoy's `/stats` has it, in the order of the names.
pub fn lines(tables: &Tables) -> Vec<String> {
    let mut lines = Vec::new();
    for (prefix, counts) in tables.managers() {
        let prefix = format!("http.{prefix}");
        for (name, _, count) in MANAGER {
            lines.push(format!("{prefix}.{name}: {}", counts.sum(count)));
        }
        for class in 1..=5 {
            let answered = counts.sum(|one| one.rq.of(class));
            lines.push(format!("{prefix}.downstream_rq_{class}xx: {answered}"));
        }
        let completed = completed(counts, |counts, class| counts.rq.of(class));
        lines.push(format!("{prefix}.downstream_rq_completed: {completed}"));
        let time = Distribution::of(histograms(counts, |counts| &counts.rq_time), &MILLIS);
        lines.push(format!(
            "{prefix}.downstream_rq_time: {}",
            percentiles(&time)
        ));
    }
    for cluster in tables.clusters() {
        let (prefix, counts) = (format!("cluster.{}", cluster.name), &cluster.counts);
        for (name, _, count) in CLUSTER {
            lines.push(format!("{prefix}.{name}: {}", counts.sum(count)));
        }
        for class in 1..=5 {
            let answered = counts.sum(|one| one.rq.of(class));
            lines.push(format!("{prefix}.upstream_rq_{class}xx: {answered}"));
        }
        let completed = completed(counts, |counts, class| counts.rq.of(class));
        lines.push(format!("{prefix}.upstream_rq_completed: {completed}"));
        let time = Distribution::of(histograms(counts, |counts| &counts.rq_time), &MILLIS);
        lines.push(format!("{prefix}.upstream_rq_time: {}", percentiles(&time)));
        for name in ["membership_total", "membership_healthy"] {
            lines.push(format!("{prefix}.{name}: {}", cluster.endpoints.len()));
        }
    }
    for served in tables.listeners() {
        let name = &served.listener.name;
        for (cluster, classes) in served.requests.all() {
            for class in 1..=5 {
                let answered = classes.sum(|one| one.of(class));
                if answered > 0 {
                    let cluster = said(cluster);
                    lines.push(format!(
                        "http_requests.{name}.{cluster}.{class}xx: {answered}"
                    ));
                }
            }
        }
    }
    lines.sort();
    lines
}

/// The same in the OpenMetrics text format, without its end.
pub fn metrics(tables: &Tables) -> String {
    let mut page = Page::default();
    let label = "envoy_http_conn_manager_prefix";
    for (name, kind, count) in MANAGER {
        page.family(&format!("envoy_http_{name}"), kind, |page| {
            for (prefix, counts) in tables.managers() {
                page.sample("", &[(label, prefix)], counts.sum(count));
            }
        });
    }
    page.classes("envoy_http_downstream_rq_xx", |page| {
        for (prefix, counts) in tables.managers() {
            page.by_class(&[(label, prefix)], |class| {
                counts.sum(|one| one.rq.of(class))
            });
        }
    });
    page.histogram("envoy_http_downstream_rq_time", |page| {
        for (prefix, counts) in tables.managers() {
            let all = histograms(counts, |counts| &counts.rq_time);
            page.distribution(&[(label, prefix)], &Distribution::of(all, &MILLIS));
        }
    });
    let label = "envoy_cluster_name";
    for (name, kind, count) in CLUSTER {
        page.family(&format!("envoy_cluster_{name}"), kind, |page| {
            for cluster in tables.clusters() {
                page.sample("", &[(label, &cluster.name)], cluster.counts.sum(count));
            }
        });
    }
    for name in ["membership_total", "membership_healthy"] {
        // A gauge, whatever its name says.
        page.family(&format!("envoy_cluster_{name}"), Kind::Gauge, |page| {
            for cluster in tables.clusters() {
                let endpoints = cluster.endpoints.len() as u64;
                page.sample("", &[(label, &cluster.name)], endpoints);
            }
        });
    }
    page.classes("envoy_cluster_upstream_rq_xx", |page| {
        for cluster in tables.clusters() {
            page.by_class(&[(label, &cluster.name)], |class| {
                cluster.counts.sum(|one| one.rq.of(class))
            });
        }
    });
    page.histogram("envoy_cluster_upstream_rq_time", |page| {
        for cluster in tables.clusters() {
            let all = histograms(&cluster.counts, |counts| &counts.rq_time);
            page.distribution(&[(label, &cluster.name)], &Distribution::of(all, &MILLIS));
        }
    });
    own(&mut page, tables);
    page.text
}

/// The agent's own names.
fn own(page: &mut Page, tables: &Tables) {
    page.family("shunt_http_requests_total", Kind::Counter, |page| {
        for served in tables.listeners() {
            let listener = ("listener", served.listener.name.as_str());
            for (cluster, classes) in served.requests.all() {
                for class in 1..=5 {
                    let answered = classes.sum(|one| one.of(class));
                    if answered > 0 {
                        let class = ("code_class", CLASSES[usize::from(class) - 1]);
                        page.sample("", &[listener, ("cluster", cluster), class], answered);
                    }
                }
            }
        }
    });
    page.histogram("shunt_http_response_bytes", |page| {
        for served in tables.listeners() {
            let all = histograms(&served.counts, |counts| &counts.response_bytes);
            let sizes = Distribution::of(all, &BYTES);
            page.distribution(&[("listener", &served.listener.name)], &sizes);
        }
    });
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

#[derive(Default)]
struct Page {
    text: String,
    name: String,
}

impl Page {
    /// Counters whose names do not end in `_total` are none to OpenMetrics.
    fn family(&mut self, name: &str, kind: Kind, samples: impl FnOnce(&mut Self)) {
        let (family, kind) = match (kind, name.strip_suffix("_total")) {
            (Kind::Gauge, _) => (name, "gauge"),
            (Kind::Counter, Some(family)) => (family, "counter"),
            (Kind::Counter, None) => (name, "unknown"),
        };
        self.write(family, kind, name, samples);
    }

    fn classes(&mut self, name: &str, samples: impl FnOnce(&mut Self)) {
        self.write(name, "unknown", name, samples);
    }

    fn histogram(&mut self, name: &str, samples: impl FnOnce(&mut Self)) {
        self.write(name, "histogram", name, samples);
    }

    fn write(&mut self, family: &str, kind: &str, name: &str, samples: impl FnOnce(&mut Self)) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# TYPE {family} {kind}");
        name.clone_into(&mut self.name);
        samples(self);
    }

    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: u64) {
        let _ = write!(self.text, "{}{suffix}{{", self.name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            let text = escaped(text);
            let _ = write!(self.text, "{comma}{label}=\"{text}\"");
        }
        let _ = writeln!(self.text, "}} {value}");
    }

    fn by_class(&mut self, labels: &[(&str, &str)], count: impl Fn(u16) -> u64) {
        for class in 1..=5 {
            let text = class.to_string();
            let labels = [&[("envoy_response_code_class", text.as_str())], labels].concat();
            self.sample("", &labels, count(class));
        }
    }

    /// Nothing as long as there is nothing.
    fn distribution(&mut self, labels: &[(&str, &str)], found: &Distribution) {
        if found.count == 0 {
            return;
        }
        let bounds = found.buckets.iter().map(|(le, count)| (format!("{le}.0"), *count));
        for (le, count) in bounds.chain([("+Inf".to_owned(), found.count)]) {
            self.sample("_bucket", &[labels, &[("le", le.as_str())]].concat(), count);
        }
        self.sample("_count", labels, found.count);
        self.sample("_sum", labels, found.sum);
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn histograms<'a, T, const N: usize>(
    counts: &'a PerWorker<T>,
    which: fn(&T) -> &shunt_core::statistics::Histogram<N>,
) -> impl Iterator<Item = &'a shunt_core::statistics::Histogram<N>> + Clone {
    let all: Vec<_> = counts.all().map(which).collect();
    all.into_iter()
}

fn completed<T>(counts: &PerWorker<T>, of: fn(&T, u16) -> &Count) -> u64 {
    (1..=5).map(|class| counts.sum(|one| of(one, class))).sum()
}

fn percentiles(found: &Distribution) -> String {
    let mut text = Vec::new();
    for percent in PERCENTILES {
        text.push(match found.percentile(percent) {
            Some(value) => format!("P{percent}({value:.1})"),
            None => return "No recorded values".to_owned(),
        });
    }
    text.join(" ")
}

/// A name, or a dash.
fn said(name: &str) -> &str {
    match name {
        "" => "-",
        name => name,
    }
}
