//! The HTTP data path's numbers, under the names that Envoy's users' tools look for, and a few of the agent's own.

use std::fmt::Write;

use shunt_core::bootstrap::Tables;
use shunt_core::cluster::{Cluster, Health, Member};
use shunt_core::statistics::{
    BYTES, ClusterCounts, Count, Distribution, Histogram, MILLIS, ManagerCounts, PerWorker,
};

/// A number's name, its kind, and where it stands.
type Row<T> = (&'static str, Kind, fn(&T) -> &Count);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

const MANAGER: [Row<ManagerCounts>; 11] = [
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
    ("downstream_cx_upgrades_total", Kind::Counter, |counts| {
        &counts.upgrades_total
    }),
    ("downstream_cx_upgrades_active", Kind::Gauge, |counts| {
        &counts.upgrades_active
    }),
    (
        "downstream_rq_ws_on_non_ws_route",
        Kind::Counter,
        |counts| &counts.upgrades_refused,
    ),
];

const CLUSTER: [Row<ClusterCounts>; 10] = [
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
    ("upstream_rq_pending_overflow", Kind::Counter, |counts| {
        &counts.rq_pending_overflow
    }),
    ("upstream_rq_timeout", Kind::Counter, |counts| {
        &counts.rq_timeout
    }),
    ("upstream_rq_rx_reset", Kind::Counter, |counts| {
        &counts.rq_rx_reset
    }),
];

/// A number's name, and what it is of a cluster.
type Fact = (&'static str, fn(&Cluster) -> u64);

const MEMBERSHIP: [Fact; 2] = [
    ("membership_total", |cluster| cluster.members.len() as u64),
    ("membership_healthy", |cluster| {
        let is_healthy = |member: &&Member| member.health == Health::Healthy;
        cluster.members.iter().filter(is_healthy).count() as u64
    }),
];

const PERCENTILES: [f64; 6] = [0.0, 25.0, 50.0, 90.0, 99.0, 100.0];

/// Names as Envoy's `/stats` has them.
pub fn numbers(tables: &Tables) -> Vec<(String, u64)> {
    let mut numbers = Vec::new();
    for (prefix, counts) in tables.managers() {
        let mut tell = |name: &str, value| numbers.push((format!("http.{prefix}.{name}"), value));
        for (name, _, count) in MANAGER {
            tell(name, counts.sum(count));
        }
        let mut completed = 0;
        for class in 1..=5 {
            let answered = counts.sum(|one| one.rq.of(class));
            tell(&format!("downstream_rq_{class}xx"), answered);
            completed += answered;
        }
        tell("downstream_rq_completed", completed);
    }
    for cluster in tables.clusters() {
        let (name, counts) = (&cluster.name, &cluster.counts);
        let mut tell = |of: &str, value| numbers.push((format!("cluster.{name}.{of}"), value));
        for (name, _, count) in CLUSTER {
            tell(name, counts.sum(count));
        }
        let mut completed = 0;
        for class in 1..=5 {
            let answered = counts.sum(|one| one.rq.of(class));
            tell(&format!("upstream_rq_{class}xx"), answered);
            completed += answered;
        }
        tell("upstream_rq_completed", completed);
        for (name, count) in MEMBERSHIP {
            tell(name, count(cluster));
        }
    }
    numbers
}

/// Percentiles, milliseconds, as Envoy's `/stats` has them after the numbers.
pub fn percentiles(tables: &Tables) -> Vec<(String, String)> {
    let managers = tables.managers().map(|(prefix, counts)| {
        let all = histograms(counts, |counts| &counts.rq_time);
        let time = Distribution::of(all, &MILLIS);
        (
            format!("http.{prefix}.downstream_rq_time"),
            quantiles(&time),
        )
    });
    let clusters = tables.clusters();
    let clusters = clusters.iter().map(|cluster| {
        let all = histograms(&cluster.counts, |counts| &counts.rq_time);
        let time = Distribution::of(all, &MILLIS);
        let name = format!("cluster.{}.upstream_rq_time", cluster.name);
        (name, quantiles(&time))
    });
    managers.chain(clusters).collect()
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
    for (name, count) in MEMBERSHIP {
        // A gauge, whatever its name says.
        page.family(&format!("envoy_cluster_{name}"), Kind::Gauge, |page| {
            for cluster in tables.clusters() {
                page.sample("", &[(label, &cluster.name)], count(cluster));
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

const HELP: &str = "Of what the agent serves in its own name";

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
        let before = self.text.len();
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {family} {HELP}\n# TYPE {family} {kind}");
        name.clone_into(&mut self.name);
        let told = self.text.len();
        samples(self);
        if self.text.len() == told {
            self.text.truncate(before);
        }
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
        let bounds = found
            .buckets
            .iter()
            .map(|(le, count)| (format!("{le}.0"), *count));
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

fn histograms<T, const N: usize>(
    counts: &PerWorker<T>,
    which: fn(&T) -> &Histogram<N>,
) -> impl Iterator<Item = &Histogram<N>> + Clone {
    let all: Vec<_> = counts.all().map(which).collect();
    all.into_iter()
}

fn quantiles(found: &Distribution) -> String {
    let mut text = Vec::new();
    for percent in PERCENTILES {
        match found.percentile(percent) {
            Some(value) => text.push(format!("P{percent}({value:.1})")),
            None => return "No recorded values".to_owned(),
        }
    }
    text.join(" ")
}

#[cfg(test)]
mod tests;
