use super::*;
use crate::cluster::Weighted;
use crate::listener::{FilterChain, Inspect};

fn bootstrap(port: u16) -> Bootstrap {
    Bootstrap {
        listeners: vec![Listener {
            name: "l".into(),
            addr: SocketAddr::from(([10, 0, 0, 1], port)),
            serves: Serves::Bound,
            chains: vec![FilterChain {
                name: String::new(),
                matches: ChainMatch::default(),
                filter: NetworkFilter::Tcp(TcpProxy {
                    clusters: Weighted::only("c".to_owned()),
                    idle_timeout: std::time::Duration::ZERO,
                    max_connect_attempts: 1,
                }),
            }],
            default_chain: None,
            inspect: Inspect::default(),
            proxy_protocol: None,
            inspect_timeout: std::time::Duration::ZERO,
            continue_on_timeout: false,
        }],
        clusters: vec![Cluster::named("c")],
    }
}

#[test]
fn numbers_go_on_in_the_next_configuration() {
    use std::sync::atomic::Ordering::Relaxed;
    let first = Tables::new(bootstrap(80), &Tables::default());
    let served = &first.listeners()[0];
    served.account.counters.inbound.total.fetch_add(3, Relaxed);
    served.requests.at(Requests::NOWHERE).mine().answered(200);
    let cluster = first.cluster("c").expect("a cluster");
    cluster.counts.mine().rq_total.add(2);
    // Also at another address.
    let next = Tables::new(bootstrap(81), &first);
    let served = &next.listeners()[0];
    assert_eq!(served.account.counters.inbound.total.load(Relaxed), 3);
    assert_eq!(
        served.requests.at(Requests::NOWHERE).sum(|one| one.of(2)),
        1
    );
    let cluster = next.cluster("c").expect("a cluster");
    assert_eq!(cluster.counts.sum(|one| &one.rq_total), 2);
}

#[test]
fn what_is_in_use_stays_in_use_when_the_endpoints_change() {
    use crate::cluster::{Endpoint, Resource};
    let mut changed = bootstrap(80);
    changed.clusters[0].limits.requests = 1;
    let first = Tables::new(changed.clone(), &Tables::default());
    let held = first
        .cluster("c")
        .expect("a cluster")
        .hold(Resource::Request);
    assert!(held.is_some());
    changed.clusters[0].endpoints.push(Endpoint {
        addr: SocketAddr::from(([10, 0, 0, 2], 80)),
        hostname: String::new(),
        weight: 1,
    });
    let next = Tables::new(changed, &first);
    let cluster = next.cluster("c").expect("a cluster");
    assert!(cluster.hold(Resource::Request).is_none());
    drop((first, held));
    assert!(cluster.hold(Resource::Request).is_some());
}

#[test]
fn connections_are_the_same_but_for_whom_they_are_to() {
    let one = bootstrap(80).clusters.remove(0);
    let mut other = one.clone();
    other.endpoints.push(crate::cluster::Endpoint {
        addr: SocketAddr::from(([10, 0, 0, 2], 80)),
        hostname: String::new(),
        weight: 1,
    });
    assert!(one.connects_as(&other));
    other.connect_timeout *= 2;
    assert!(!one.connects_as(&other));
}
