//! Figures of many runs as minima, medians, maxima and ratios.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;

use serde_json::{Value, json};

use super::Figures;
use super::cases::BASELINE;

/// All figures, by case, in the order of the runs.
#[derive(Debug, Default)]
pub(super) struct Report {
    cases: BTreeMap<String, Vec<Figures>>,
}

impl Report {
    pub(super) fn add(&mut self, case: &str, figures: Figures) {
        self.cases.entry(case.to_owned()).or_default().push(figures);
    }

    /// Each run's figure divided by the baseline's of the same run; the median of those. Rates of connections under some
    /// condition divide by the plain one.
    fn ratio(&self, case: &str, metric: &str) -> Option<f64> {
        let (ours, baseline) = (self.cases.get(case)?, self.cases.get(BASELINE)?);
        let divisor = if metric.starts_with("connect_rate_") {
            "connect_rate"
        } else {
            metric
        };
        let ratios = ours
            .iter()
            .zip(baseline)
            .map(|(ours, base)| Some(ours.get(metric)? / base.get(divisor)?));
        Some(spread(ratios.collect::<Option<Vec<f64>>>()?)?.1)
    }

    fn values(&self, case: &str, metric: &str) -> Option<(f64, f64, f64)> {
        let runs = self.cases.get(case)?;
        spread(
            runs.iter()
                .filter_map(|figures| figures.get(metric).copied())
                .collect(),
        )
    }

    fn metrics(&self, case: &str) -> Vec<String> {
        let first = self.cases.get(case).and_then(|runs| runs.first());
        first
            .map(|figures| figures.keys().cloned().collect())
            .unwrap_or_default()
    }

    pub(super) fn table(&self) -> String {
        let mut text = String::from(
            "metric                         case                  min      median         max   ratio to baseline\n",
        );
        let metrics: BTreeSet<String> = self
            .cases
            .keys()
            .flat_map(|case| self.metrics(case))
            .collect();
        for metric in metrics {
            for case in self.cases.keys() {
                if let Some((min, median, max)) = self.values(case, &metric) {
                    let ratio = self
                        .ratio(case, &metric)
                        .map_or("-".into(), |ratio| format!("{ratio:.2}"));
                    let [min, median, max] = [min, median, max].map(shown);
                    let _ = writeln!(
                        text,
                        "{metric:<30} {case:<15} {min:>9} {median:>11} {max:>11} {ratio:>7}"
                    );
                }
            }
        }
        text.push_str(
            "latencies in microseconds, throughput in megabytes per second, rates per second, memory as it says, `cpu_s` in seconds of\n\
             all cores together; messages are questions and answers\n",
        );
        text
    }

    pub(super) fn json(&self, runs: usize) -> Value {
        let mut cases = serde_json::Map::new();
        let mut ratios = serde_json::Map::new();
        for case in self.cases.keys() {
            let (mut figures, mut divided) = (serde_json::Map::new(), serde_json::Map::new());
            for metric in self.metrics(case) {
                if let Some((min, median, max)) = self.values(case, &metric) {
                    figures.insert(
                        metric.clone(),
                        json!({"min": min, "median": median, "max": max}),
                    );
                }
                if let Some(ratio) = self.ratio(case, &metric) {
                    divided.insert(metric, json!(ratio));
                }
            }
            cases.insert(case.clone(), figures.into());
            ratios.insert(case.clone(), divided.into());
        }
        json!({"machine": machine(), "runs": runs, "cases": cases, "ratios": ratios})
    }
}

fn shown(value: f64) -> String {
    let digits = if value.abs() < 10.0 { 3 } else { 1 };
    format!("{value:.digits$}")
}

/// Minimum, median, maximum. `None`: no values.
fn spread(mut values: Vec<f64>) -> Option<(f64, f64, f64)> {
    values.sort_by(f64::total_cmp);
    let median = *values.get(values.len() / 2)?;
    Some((*values.first()?, median, *values.last()?))
}

fn machine() -> Value {
    let read = |file: &str| {
        fs::read_to_string(file)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let cpus = read("/proc/cpuinfo");
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or_default();
    json!({
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cpu": model.trim_start_matches(['\t', ' ', ':']),
        "cores": cpus.lines().filter(|line| line.starts_with("processor")).count(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_divides_within_a_run() {
        let mut report = Report::default();
        // The machine was twice as slow in the second run, the agent's share was not.
        for (base, ours) in [(10.0, 20.0), (20.0, 40.0), (10.0, 30.0)] {
            report.add("baseline", [("rtt".to_owned(), base)].into());
            report.add("ebpf_copy", [("rtt".to_owned(), ours)].into());
        }
        assert_eq!(report.ratio("ebpf_copy", "rtt"), Some(2.0));
        assert_eq!(report.values("ebpf_copy", "rtt"), Some((20.0, 30.0, 40.0)));
    }
}
