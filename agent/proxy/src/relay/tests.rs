use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use shunt_core::address::ClientAddr;
use shunt_core::counters::{AgentCounters, WorkloadCounters};
use shunt_core::flow::{DataPath, Direction, FlowRecord};
use shunt_core::snapshot::Enrolled;
use shunt_core::workload::{CapturePolicy, Mode, WorkloadId, WorkloadName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use super::*;

mod splice;
mod turns;

/// Two connected sockets on loopback.
async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let near = TcpStream::connect(listener.local_addr().expect("an address"));
    let (near, far) = tokio::join!(near, listener.accept());
    (near.expect("connected"), far.expect("accepted").0)
}

fn linger_zero(socket: &TcpStream) {
    SockRef::from(socket)
        .set_linger(Some(Duration::ZERO))
        .expect("set");
}

struct Scene {
    client: TcpStream,
    server: TcpStream,
    pools: Pools,
    relay: tokio::task::JoinHandle<CloseReason>,
    records: Arc<Mutex<Vec<FlowRecord>>>,
    agent: Arc<AgentCounters>,
    counters: Arc<WorkloadCounters>,
}

/// A client and a server with a relay in between.
async fn scene(rules: Rules) -> Scene {
    scene_with(rules, Pools::default()).await
}

async fn scene_with(rules: Rules, pools: Pools) -> Scene {
    let (client, accepted) = connected().await;
    let (upstream, server) = connected().await;
    linger_zero(&accepted);
    linger_zero(&upstream);
    let workload = Enrolled {
        id: WorkloadId(1),
        name: WorkloadName {
            namespace: "default".into(),
            name: "client".into(),
        },
        labels: [].into(),
        mode: Mode::Ebpf,
        addresses: Vec::new(),
        owns_addresses: true,
        inbound: CapturePolicy::default(),
        transparent: false,
        handoff: true,
        proxy: None,
        counters: Arc::default(),
        withdrawn: Arc::default(),
    };
    let records: Arc<Mutex<Vec<FlowRecord>>> = Arc::default();
    let sink = {
        let records = Arc::clone(&records);
        Arc::new(move |record: &FlowRecord| {
            records.lock().expect("not poisoned").push(record.clone())
        })
    };
    let from = ClientAddr(accepted.peer_addr().expect("an address"));
    let (agent, counters) = (Arc::default(), Arc::clone(&workload.counters));
    let mut account = Account::open(
        &workload,
        Direction::Outbound,
        from,
        Arc::clone(&agent),
        sink,
    );
    let lent = pools.clone();
    let relay = tokio::task::spawn_local(async move {
        let end = relay(
            accepted,
            upstream,
            Early::default(),
            &lent,
            &rules,
            None,
            &mut account,
        )
        .await;
        account.ended(end.reason, None);
        end.reason
    });
    Scene {
        client,
        server,
        pools,
        relay,
        records,
        agent,
        counters,
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

#[tokio::test]
async fn a_megabyte_after_each_half_close() {
    LocalSet::new()
        .run_until(async {
            let Scene {
                mut client,
                mut server,
                relay,
                records,
                ..
            } = scene(Rules::default()).await;
            let bytes = pattern(1 << 20);
            let (up, down) = (bytes.clone(), bytes.clone());
            let serve = tokio::task::spawn_local(async move {
                let mut got = Vec::new();
                server.read_to_end(&mut got).await.expect("read");
                server.write_all(&down).await.expect("written");
                got
            });
            client.write_all(&up).await.expect("written");
            client.shutdown().await.expect("half closed");
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.expect("read");
            assert!(got == bytes && serve.await.expect("no panic") == bytes);
            assert_eq!(relay.await.expect("no panic"), CloseReason::Finished);
            let records = records.lock().expect("not poisoned");
            assert_eq!(records.len(), 1);
            assert_eq!(
                (records[0].bytes_received, records[0].bytes_sent),
                (1 << 20, 1 << 20)
            );
        })
        .await;
}

#[tokio::test]
async fn a_reset_passes_as_a_reset() {
    LocalSet::new()
        .run_until(async {
            let Scene {
                client,
                mut server,
                relay,
                ..
            } = scene(Rules::default()).await;
            linger_zero(&client);
            drop(client);
            let error = server.read_u8().await.expect_err("an error");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            assert_eq!(relay.await.expect("no panic"), CloseReason::ClientReset);
        })
        .await;
}

#[tokio::test]
async fn dying_in_the_middle_is_a_reset() {
    LocalSet::new()
        .run_until(async {
            let Scene {
                mut client,
                mut server,
                relay,
                records,
                ..
            } = scene(Rules::default()).await;
            client.write_all(b"half").await.expect("written");
            server.read_exact(&mut [0; 4]).await.expect("read");
            relay.abort();
            assert_eq!(
                client.read_u8().await.expect_err("an error").kind(),
                io::ErrorKind::ConnectionReset
            );
            assert_eq!(
                server.read_u8().await.expect_err("an error").kind(),
                io::ErrorKind::ConnectionReset
            );
            assert_eq!(
                records.lock().expect("not poisoned")[0].close_reason,
                CloseReason::Drained
            );
        })
        .await;
}

#[tokio::test]
async fn an_idle_connection_holds_no_buffer() {
    LocalSet::new()
        .run_until(async {
            let Scene {
                mut client,
                mut server,
                pools,
                ..
            } = scene(Rules::default()).await;
            client.write_all(&pattern(100)).await.expect("written");
            server.read_exact(&mut [0; 100]).await.expect("read");
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            // Both directions took turns with one buffer, and it is back.
            assert_eq!(pools.buffers.free_bytes(), 4 << 10);
        })
        .await;
}

#[tokio::test]
async fn ztunnel_1629_half_closed_and_silent_ends_in_time() {
    LocalSet::new()
        .run_until(async {
            let rules = half_closing(Duration::from_millis(50));
            let Scene {
                mut client,
                server,
                relay,
                ..
            } = scene(rules).await;
            client.shutdown().await.expect("half closed");
            assert_eq!(
                relay.await.expect("no panic"),
                CloseReason::HalfCloseTimeout
            );
            drop(server);
        })
        .await;
}

/// One byte now and then is a sign of life, in the direction that is left.
#[tokio::test]
async fn ztunnel_1629_half_closed_and_slow_lives_on() {
    LocalSet::new()
        .run_until(async {
            let half_close = Duration::from_millis(200);
            let scene = scene(half_closing(half_close)).await;
            let (mut client, mut server) = (scene.client, scene.server);
            server.shutdown().await.expect("half closed");
            assert_eq!(client.read(&mut [0]).await.expect("the end"), 0);
            for _ in 0..10 {
                tokio::time::sleep(half_close / 4).await;
                client.write_all(b"x").await.expect("written");
                server.read_exact(&mut [0]).await.expect("read");
            }
            let since = Instant::now();
            assert_eq!(
                scene.relay.await.expect("no panic"),
                CloseReason::HalfCloseTimeout
            );
            assert!(since.elapsed() >= half_close / 2, "too early");
        })
        .await;
}

fn half_closing(half_close: Duration) -> Rules {
    Rules {
        timeouts: Timeouts {
            half_close,
            ..Timeouts::default()
        },
        splice_after: None,
    }
}

/// Writes until nothing more is taken.
async fn stuff(client: &mut TcpStream) {
    let bytes = vec![0; 1 << 20];
    let long = Duration::from_millis(200);
    while let Ok(written) = tokio::time::timeout(long, client.write(&bytes)).await {
        written.expect("written");
    }
}

/// Writes until the relay does not pass it on at once; what is left then stands in the relay's own receive buffer.
async fn stall(client: &mut TcpStream, counters: &WorkloadCounters) {
    let mut written = 0;
    let piece = vec![0; 64 << 10];
    let passed = || counters.outbound.on(DataPath::Copy).received.load(Relaxed);
    while written == passed() {
        client.write_all(&piece).await.expect("written");
        written += piece.len() as u64;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A client that ended behind bytes which its server does not read: the relay never comes to read that end.
#[tokio::test]
async fn ztunnel_1630_a_dead_client_of_a_stalled_server_ends_in_time() {
    for reset in [false, true] {
        LocalSet::new()
            .run_until(async {
                let scene = scene(half_closing(Duration::from_millis(400))).await;
                let (mut client, server) = (scene.client, scene.server);
                stall(&mut client, &scene.counters).await;
                if reset {
                    linger_zero(&client);
                }
                drop(client);
                let end = tokio::time::timeout(Duration::from_secs(5), scene.relay).await;
                assert_eq!(
                    end.expect("in time").expect("no panic"),
                    CloseReason::HalfCloseTimeout
                );
                drop(server);
            })
            .await;
    }
}

#[tokio::test]
async fn a_living_client_of_a_stalled_server_waits() {
    LocalSet::new()
        .run_until(async {
            let half_close = Duration::from_millis(100);
            let scene = scene(half_closing(half_close)).await;
            let (mut client, mut server) = (scene.client, scene.server);
            stuff(&mut client).await;
            tokio::time::sleep(half_close * 4).await;
            assert!(!scene.relay.is_finished());
            let mut got = vec![0; 1 << 20];
            server.read_exact(&mut got).await.expect("read");
        })
        .await;
}
