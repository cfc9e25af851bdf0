//! HTTP/1.1 through a proxy: wrk in one pod, nginx in the other, and between them nothing, the agent, or real Envoys.
//!
//! Where the agent and an Envoy are compared they have the same bootstrap, the same number of workers and the same place:
//! beside the client, as a sidecar is.

mod clients;
mod proxies;

use std::fs;

use anyhow::{Context, Result};
use shunt_tests::{Pod, Running, World};

use self::clients::Wrk;
use self::proxies::{Chain, Proxies};
use super::stage::{Congestion, tune};
use super::{BASELINE, Figures, cpu, memory};
use crate::run::root;

/// What stands between client and server, interleaved in this order.
pub(super) const CASES: [(&str, Chain); 7] = [
    (BASELINE, Chain::Nothing),
    ("baseline_again", Chain::Nothing),
    ("shunt_1hop", Chain::Shunt),
    ("envoy_1hop", Chain::Envoy),
    ("envoy_2hop", Chain::TwoEnvoys),
    // Both workloads' configurations, run by one process.
    ("shunt_1pass", Chain::OnePass("ebpf", "acceleration: off")),
    (
        "shunt_1pass_iptables",
        Chain::OnePass("iptables", "acceleration: off"),
    ),
];

/// Connections that are open at once.
const CONNECTIONS: [u32; 3] = [1, 16, 64];
const SHORT_CONNECTIONS: u32 = 16;
/// The busiest of [`CONNECTIONS`]: what a request costs is measured there.
const MANY: u32 = 64;

pub(super) const ORIGIN: u16 = 8080;

pub(super) struct HttpStage {
    world: World,
    client: Pod,
    server: Pod,
    seconds: u32,
    _origin: Running,
    _congestion: Congestion,
}

impl HttpStage {
    pub(super) fn set(seconds: u32) -> Result<Self> {
        let _congestion = Congestion::allow();
        let world = World::new();
        let [client, server] = [(); 2].map(|()| world.pod());
        for pod in [&client, &server] {
            tune(pod);
        }
        let _origin = origin(&world, &server)?;
        Ok(Self {
            world,
            client,
            server,
            seconds,
            _origin,
            _congestion,
        })
    }

    pub(super) fn measure(&self, chain: Chain) -> Result<Figures> {
        let envoy = root().join("target/envoy/envoy");
        let (client, server) = (&self.client, &self.server);
        let proxies = Proxies::start(chain, &self.world, client, server, &envoy)?;
        let wrk = Wrk {
            pod: client,
            address: match chain {
                Chain::Nothing | Chain::OnePass(..) => format!("{}:{ORIGIN}", server.v4),
                _ => format!("{}:{}", client.v4, proxies::PORT),
            },
            seconds: self.seconds,
        };
        let pids = proxies.pids()?;
        let mut figures = Figures::new();
        // The first requests find no upstream connection, and cold code.
        wrk.run(SHORT_CONNECTIONS, &[])?;
        for connections in CONNECTIONS {
            let before = cpu::of_processes(&pids)?;
            let answered = wrk.run(connections, &[])?;
            let spent = cpu::of_processes(&pids)? - before;
            figures.insert(format!("http1_rate_{connections}"), answered.rate);
            figures.insert(format!("http1_p50_{connections}_us"), answered.p50);
            figures.insert(format!("http1_p99_{connections}_us"), answered.p99);
            if connections == MANY {
                figures.insert("http1_p99_us".into(), answered.p99);
            }
            if connections == MANY && !pids.is_empty() {
                let each = spent * 1e6 / answered.requests;
                figures.insert("cpu_us_per_request".into(), each);
            }
        }
        let close = ["-H", "Connection: close"];
        let short = wrk.run(SHORT_CONNECTIONS, &close)?;
        figures.insert("http1_close_rate_16".into(), short.rate);
        if chain != Chain::Nothing {
            let host = ["-H", "Host: routes"];
            let answered = wrk.at("/r999", MANY, &host)?;
            figures.insert("http1_rate_64_1000_routes".into(), answered.rate);
        }
        clients::open_loop(&mut figures, &wrk)?;
        if !pids.is_empty() {
            let kib: f64 = pids
                .iter()
                .map(|pid| memory::of_process(*pid))
                .sum::<Result<f64>>()?;
            figures.insert("rss_mb".into(), kib * 1024.0 / 1e6);
        }
        Ok(figures)
    }
}

/// One worker, a body of 1 KB, connections that live as long as their client wants.
fn origin(world: &World, pod: &Pod) -> Result<Running> {
    let dir = world.dir.path().join("origin");
    fs::create_dir_all(&dir).context("a directory")?;
    let (at, body) = (dir.display(), "x".repeat(1024));
    let config = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\n\
         events {{ worker_connections 4096; }}\nhttp {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 1h;\n\
         server {{ listen {ORIGIN} backlog=4096; location / {{ return 200 \"{body}\"; }} }} }}\n"
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, config).context("nginx's configuration")?;
    let running = pod.spawn("nginx", &["-c", &file.display().to_string()]);
    pod.wait_for_listener(ORIGIN);
    Ok(running)
}
