//! `cargo xtask demo`: the main job on real input, in both modes, and what it costs.

use anyhow::{Context, Result};
use shunt_tests::{Agent, AgentBuilder, Pod, World};

use crate::run::{answer, cargo, loudly, root};
use crate::test;

/// Ping-pong of 64 bytes on one connection, then connections one after another. Prints three numbers.
const MEASURE: &str = "
import socket, sys, time
host, n = sys.argv[1], 4000
s = socket.create_connection((host, 7)); s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
b, t = b'x' * 64, []
for i in range(n):
    a = time.perf_counter(); s.sendall(b); got = s.recv(64)
    while len(got) < 64: got += s.recv(64 - len(got))
    t.append(time.perf_counter() - a); assert got == b
t.sort(); a = time.perf_counter()
for i in range(1000):
    c = socket.create_connection((host, 7)); c.sendall(b); assert c.recv(64); c.close()
print('%.1f %.1f %.0f' % (t[n // 2] * 1e6, t[n * 99 // 100] * 1e6, 1000 / (time.perf_counter() - a)))
";

const ECHO: &str = "
import asyncio
async def serve(r, w):
    while d := await r.read(65536): w.write(d)
    w.close()
async def main():
    async with await asyncio.start_server(serve, None, 7) as s: await s.serve_forever()
asyncio.run(main())
";

/// Interleaved rounds, so that a noisy moment hits every case.
const ROUNDS: usize = 3;

pub fn run() -> Result<()> {
    test::install()?;
    loudly(cargo().args(["build", "--release", "--package", "shunt"]))?;
    let binary = root().join("target/release/shunt");
    shunt_tests::agent::use_binary(binary.clone());
    let world = World::new();
    let (client, server) = (world.pod(), world.pod());
    let _nginx = server.nginx(&world);
    let _echo = server.spawn("python3", &["-c", ECHO]);
    server.wait_for_listener(7);
    answer(&format!(
        "two pods: client {} and {}, web {} and {}",
        client.v4, client.v6, server.v4, server.v6
    ));
    for way in WAYS {
        show(&world, &client, &server, way)?;
    }
    let ways = WAYS.into_iter().map(Some);
    let mut figures: Vec<(Option<Way>, Vec<[f64; 3]>)> = [None]
        .into_iter()
        .chain(ways)
        .map(|way| (way, Vec::new()))
        .collect();
    for _ in 0..ROUNDS {
        for (way, rounds) in &mut figures {
            let _agent = way.map(|way| enrolled(&world, &client, &server, way));
            rounds.push(measure(&client, &server.v4)?);
        }
    }
    answer(&format!(
        "\nmedians of {ROUNDS} interleaved rounds, agent {}",
        binary.display()
    ));
    answer(&format!(
        "{:<26} {:>12} {:>12} {:>16}",
        "case", "RTT p50 us", "RTT p99 us", "connections/s"
    ));
    for (way, rounds) in &figures {
        let case = way.map_or("no mesh", |way| way.name);
        let median = |index: usize| {
            let mut column: Vec<f64> = rounds.iter().map(|round| round[index]).collect();
            column.sort_by(f64::total_cmp);
            column[column.len() / 2]
        };
        answer(&format!(
            "{case:<26} {:>12.1} {:>12.1} {:>16.0}",
            median(0),
            median(1),
            median(2)
        ));
    }
    answer(
        "\nthe clients are Python programs: compare the rows, not the numbers; nothing is left behind",
    );
    Ok(())
}

#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    mode: &'static str,
    /// A field of both workloads.
    workload: &'static str,
}

const WAYS: [Way; 3] = [
    Way {
        name: "ebpf (default)",
        mode: "ebpf",
        workload: "acceleration: auto",
    },
    Way {
        name: "ebpf, through the agent",
        mode: "ebpf",
        workload: "acceleration: off",
    },
    Way {
        name: "iptables",
        mode: "iptables",
        workload: "acceleration: auto",
    },
];

fn enrolled(world: &World, client: &Pod, server: &Pod, way: Way) -> Agent {
    AgentBuilder::new(world, way.mode)
        .enrol("client", client, way.workload)
        .enrol("web", server, way.workload)
        .start()
}

fn show(world: &World, client: &Pod, server: &Pod, way: Way) -> Result<()> {
    let before = client.state();
    let agent = enrolled(world, client, server, way);
    answer(&format!("\n== {}", way.name));
    for url in [
        format!("http://{}/", server.v4),
        format!("http://[{}]/", server.v6),
    ] {
        answer(&format!(
            "curl {url}  ->  nginx saw {}",
            client.says("curl", &["-sS", &url])
        ));
    }
    for line in agent.lines(2) {
        answer(&format!(
            "intercepted: {} {} -> {} {} (known by {}), path {}, {} + {} bytes",
            line["workload"],
            line["client"],
            line["peer_workload"],
            line["original_dst"],
            line["original_dst_source"],
            line["path"],
            line["bytes_received"],
            line["bytes_sent"],
        ));
    }
    drop(agent);
    let same = client.state() == before;
    answer(if same {
        "the namespace is as it was before"
    } else {
        "THE NAMESPACE IS NOT AS BEFORE"
    });
    anyhow::ensure!(same, "something was left behind");
    Ok(())
}

fn measure(client: &Pod, host: &str) -> Result<[f64; 3]> {
    let text = client.says("python3", &["-c", MEASURE, host]);
    let mut numbers = text.split(' ').map(str::parse::<f64>);
    let mut next = || numbers.next().context("three numbers")?.context("a number");
    Ok([next()?, next()?, next()?])
}
