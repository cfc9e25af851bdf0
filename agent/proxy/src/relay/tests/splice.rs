//! Bulk flows are spliced, and are otherwise as flows that are copied.

use std::rc::Rc;

use shunt_core::status::BytesByPath;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::*;
use crate::pipes::Pipes;

const AFTER: u64 = 256 << 10;

fn rules() -> Rules {
    Rules {
        splice_after: Some(AFTER),
        ..Rules::default()
    }
}

/// Writes in uneven pieces, and ends.
pub(super) async fn write_all(mut to: OwnedWriteHalf, bytes: Rc<Vec<u8>>) {
    let (mut rest, mut piece) = (&bytes[..], 1);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(piece.min(rest.len()));
        to.write_all(now).await.expect("written");
        (rest, piece) = (later, (piece * 7 + 3) % 300_000 + 1);
    }
    to.shutdown().await.expect("half closed");
}

pub(super) async fn read_to_end(mut from: OwnedReadHalf) -> Vec<u8> {
    let mut got = Vec::new();
    from.read_to_end(&mut got).await.expect("read");
    got
}

/// The pattern through the relay, from one end to the other, with nothing left in between.
async fn pass(length: usize, from: &mut TcpStream, to: &mut TcpStream) {
    let bytes = pattern(length);
    let mut got = vec![0; length];
    let passed = async {
        let (written, read) = tokio::join!(from.write_all(&bytes), to.read_exact(&mut got));
        written.expect("written");
        read.expect("read");
    };
    let passed = tokio::time::timeout(Duration::from_secs(5), passed).await;
    passed.expect("in time");
    assert!(got == bytes);
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(5), "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn sixty_four_megabytes_both_ways() {
    const LENGTH: usize = 64 << 20;
    LocalSet::new()
        .run_until(async {
            let scene = scene(rules()).await;
            let (client_read, client_write) = scene.client.into_split();
            let (server_read, server_write) = scene.server.into_split();
            let expected = Rc::new(pattern(LENGTH));
            tokio::task::spawn_local(write_all(client_write, Rc::clone(&expected)));
            tokio::task::spawn_local(write_all(server_write, Rc::clone(&expected)));
            let (at_server, at_client) =
                tokio::join!(read_to_end(server_read), read_to_end(client_read));
            assert!(at_server == *expected && at_client == *expected);
            assert_eq!(scene.relay.await.expect("no panic"), CloseReason::Finished);
            let records = scene.records.lock().expect("not poisoned");
            let (record, both) = (&records[0], 2 * LENGTH as u64);
            assert_eq!(
                (record.path, record.bytes_received, record.bytes_sent),
                (DataPath::Splice, both / 2, both / 2)
            );
            let BytesByPath { copy, splice, .. } = record.bytes_by_path;
            assert_eq!(copy + splice, both);
            assert!(copy >= 2 * AFTER && splice > both / 2, "{copy} {splice}");
            let spliced = scene.counters.outbound.on(DataPath::Splice);
            let counted = spliced.received.load(Relaxed) + spliced.sent.load(Relaxed);
            assert_eq!((counted, spliced.active.load(Relaxed)), (splice, 0));
            assert_eq!(scene.agent.splice_begun.load(Relaxed), 2);
            assert_eq!(scene.pools.pipes.in_use(), 0);
        })
        .await;
}

/// The end of a direction waits for what is in its pipe, and does not touch the other direction.
#[tokio::test]
async fn a_half_close_after_splicing_brings_every_byte() {
    const LENGTH: usize = 16 << 20;
    LocalSet::new()
        .run_until(async {
            let scene = scene(rules()).await;
            let (client_read, client_write) = scene.client.into_split();
            let (server_read, server_write) = scene.server.into_split();
            let bytes = Rc::new(pattern(LENGTH));
            tokio::task::spawn_local(write_all(client_write, Rc::clone(&bytes)));
            until("bytes in a pipe", || scene.pools.pipes.in_use() == 1).await;
            assert!(read_to_end(server_read).await == *bytes);
            tokio::task::spawn_local(write_all(server_write, Rc::clone(&bytes)));
            assert!(read_to_end(client_read).await == *bytes);
            assert_eq!(scene.relay.await.expect("no panic"), CloseReason::Finished);
        })
        .await;
}

async fn reset_in_the_middle(client_resets: bool) -> CloseReason {
    let scene = scene(rules()).await;
    let (from, mut to) = if client_resets {
        (scene.client, scene.server)
    } else {
        (scene.server, scene.client)
    };
    linger_zero(&from);
    let writer = tokio::task::spawn_local(async move {
        let mut from = from;
        let _ = from.write_all(&pattern(64 << 20)).await;
    });
    let mut got = vec![0; 4 << 20];
    to.read_exact(&mut got).await.expect("read");
    assert!(got == pattern(4 << 20));
    assert_eq!(scene.agent.splice_begun.load(Relaxed), 1);
    writer.abort();
    let error = loop {
        match to.read(&mut got).await {
            Ok(0) => panic!("a reset became an end"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let reason = scene.relay.await.expect("no panic");
    // A pipe that had the dead flow's bytes is closed: no other flow gets them.
    assert_eq!(scene.pools.pipes.in_use(), 0);
    reason
}

#[tokio::test]
async fn a_reset_in_the_middle_of_splicing_passes_as_a_reset() {
    LocalSet::new()
        .run_until(async {
            assert_eq!(reset_in_the_middle(true).await, CloseReason::ClientReset);
            assert_eq!(reset_in_the_middle(false).await, CloseReason::UpstreamReset);
        })
        .await;
}

#[tokio::test]
async fn a_reader_that_stalls_holds_one_pipe_and_its_writer_back() {
    LocalSet::new()
        .run_until(async {
            let scene = scene(rules()).await;
            let (mut client, mut server) = (scene.client, scene.server);
            let bytes = pattern(64 << 20);
            // More than any relay needs to take what it can.
            const LONG: Duration = Duration::from_millis(300);
            let mut taken = 0;
            while let Ok(written) = tokio::time::timeout(LONG, client.write(&bytes[taken..])).await
            {
                taken += written.expect("written");
            }
            assert!(taken < bytes.len(), "no back-pressure");
            assert_eq!(scene.pools.pipes.in_use(), 1);
            client.shutdown().await.expect("half closed");
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.expect("read");
            assert!(got == bytes[..taken]);
            server.shutdown().await.expect("half closed");
            assert_eq!(scene.relay.await.expect("no panic"), CloseReason::Finished);
            assert_eq!(scene.pools.pipes.in_use(), 0);
        })
        .await;
}

#[tokio::test]
async fn without_a_pipe_it_goes_on_copying_and_asks_again_later() {
    LocalSet::new()
        .run_until(async {
            let pools = Pools {
                pipes: Pipes::at_most(1),
                ..Pools::default()
            };
            let elsewhere = pools.pipes.lease().expect("the only pipe");
            let scene = scene_with(rules(), pools).await;
            let (mut client, mut server) = (scene.client, scene.server);
            pass(8 << 20, &mut client, &mut server).await;
            let refusals = scene.agent.splice_pipes_in_use.load(Relaxed);
            assert!((1..=8).contains(&refusals), "{refusals}");
            let spliced = scene.counters.outbound.on(DataPath::Splice);
            assert_eq!(spliced.received.load(Relaxed), 0);
            drop(elsewhere);
            pass(8 << 20, &mut client, &mut server).await;
            assert!(spliced.received.load(Relaxed) > 0);
            assert_eq!(spliced.active.load(Relaxed), 1);
        })
        .await;
}

/// splice(2) says at urgent data that there is nothing, for ever.
#[tokio::test]
async fn urgent_data_does_not_stop_a_spliced_flow() {
    LocalSet::new()
        .run_until(async {
            let scene = scene(rules()).await;
            let (mut client, mut server) = (scene.client, scene.server);
            pass(4 << 20, &mut client, &mut server).await;
            assert_eq!(scene.agent.splice_begun.load(Relaxed), 1);
            let urgent = SockRef::from(&client).send_out_of_band(b"!");
            urgent.expect("sent");
            pass(1000, &mut client, &mut server).await;
        })
        .await;
}

#[tokio::test]
async fn a_spliced_flow_is_not_idle_and_an_idle_one_holds_no_pipe() {
    LocalSet::new()
        .run_until(async {
            let idle = Duration::from_millis(200);
            let rules = Rules {
                timeouts: Timeouts {
                    idle,
                    ..Timeouts::default()
                },
                splice_after: Some(0),
            };
            let scene = scene(rules).await;
            let (mut client, mut server) = (scene.client, scene.server);
            for _ in 0..10 {
                tokio::time::sleep(idle / 4).await;
                pass(1, &mut client, &mut server).await;
                assert_eq!(scene.pools.pipes.in_use(), 0);
            }
            assert_eq!(
                scene.relay.await.expect("no panic"),
                CloseReason::IdleTimeout
            );
            let records = scene.records.lock().expect("not poisoned");
            assert_eq!(records[0].bytes_by_path.splice, 10);
            assert_eq!(records[0].path, DataPath::Splice);
        })
        .await;
}
