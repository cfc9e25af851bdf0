use super::*;
use crate::cluster::{Balance, Weighted};
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
        clusters: vec![Cluster {
            name: "c".into(),
            endpoints: Vec::new(),
            balance: Balance::RoundRobin,
            subsets: None,
            to_original: None,
            connect_timeout: std::time::Duration::from_secs(1),
            idle_timeout: None,
            max_requests_per_connection: 0,
            max_connection_duration: None,
            trailers: false,
            limits: Default::default(),
            in_use: Default::default(),
            counts: PerWorker::default(),
        }],
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
