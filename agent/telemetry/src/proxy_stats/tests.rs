use std::time::Duration;

use shunt_core::bootstrap::Bootstrap;
use shunt_core::cluster::Cluster;

use super::*;

fn tables() -> Tables {
    let cluster = Cluster::named("a\"b");
    let counts = cluster.counts.clone();
    let bootstrap = Bootstrap {
        listeners: Vec::new(),
        clusters: vec![cluster],
    };
    counts.mine().rq_total.add(3);
    counts.mine().answered(204, Duration::from_millis(7));
    Tables::new(bootstrap, &Tables::default())
}

#[test]
fn numbers_have_envoys_names() {
    let numbers = numbers(&tables());
    let of = |name: &str| {
        let found = numbers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| *value)
    };
    assert_eq!(of("cluster.a\"b.upstream_rq_total"), Some(3));
    assert_eq!(of("cluster.a\"b.upstream_rq_2xx"), Some(1));
    assert_eq!(of("cluster.a\"b.upstream_rq_completed"), Some(1));
    assert_eq!(of("cluster.a\"b.membership_total"), Some(0));
    let (name, text) = &percentiles(&tables())[0];
    assert_eq!(name, "cluster.a\"b.upstream_rq_time");
    assert!(
        text.starts_with("P0(5.0) ") && text.ends_with(" P100(10.0)"),
        "{text}"
    );
}

#[test]
fn metrics_have_envoys_names_and_labels() {
    let page = metrics(&tables());
    for line in [
        "# TYPE envoy_cluster_upstream_rq counter",
        "envoy_cluster_upstream_rq_total{envoy_cluster_name=\"a\\\"b\"} 3",
        "envoy_cluster_upstream_rq_xx{envoy_response_code_class=\"2\",envoy_cluster_name=\"a\\\"b\"} 1",
        "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"a\\\"b\",le=\"5.0\"} 0",
        "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"a\\\"b\",le=\"+Inf\"} 1",
        "envoy_cluster_upstream_rq_time_sum{envoy_cluster_name=\"a\\\"b\"} 7",
    ] {
        assert!(page.lines().any(|known| known == line), "{line} in\n{page}");
    }
}
