//! Busy directions take turns, and others are looked for between two.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::task::{JoinHandle, spawn_local, yield_now};

use super::super::turns::{LONG_TURN, TURN, Turns};
use super::splice::{read_to_end, write_all};
use super::*;

/// What happened, in order: the names of those who had a turn and its bytes, a dot for each look at others.
#[derive(Clone, Default)]
struct Log(Rc<RefCell<Vec<(char, u64)>>>);

impl Log {
    fn names(&self) -> String {
        self.0.borrow().iter().map(|(name, _)| name).collect()
    }

    fn since(&self, length: usize) -> String {
        self.names().split_off(length)
    }
}

/// A direction that always has more to move.
fn busy(name: char, turns: &Turns, log: &Log) -> JoinHandle<()> {
    let (mut turn, log) = (turns.turn(), log.clone());
    spawn_local(poll_fn(move |cx| {
        let bytes = ready!(turn.poll_begin(cx));
        log.0.borrow_mut().push((name, bytes));
        turn.end(cx, bytes, true);
        Poll::Pending
    }))
}

/// As many looks as the worker takes while `count` times somebody wants to know.
async fn look(count: usize, log: &Log) {
    for _ in 0..count {
        yield_now().await;
        log.0.borrow_mut().push(('.', 0));
    }
}

#[tokio::test]
async fn each_in_its_turn_and_a_look_at_others_between_two() {
    LocalSet::new()
        .run_until(async {
            let (turns, log) = (Turns::default(), Log::default());
            let all = ['a', 'b', 'c'].map(|name| busy(name, &turns, &log));
            look(13, &log).await;
            all.iter().for_each(JoinHandle::abort);
            // At first nobody knows that the others are busy.
            let names = log.names();
            let after = names.split_once('.').expect("a look").1;
            let turns: String = after.split('.').collect();
            assert!(after.split('.').all(|turns| turns.len() <= 1), "{names}");
            assert!(turns.len() >= 10, "{names}");
            assert!("abcabcabcabcabcabc".contains(&turns), "{names}");
        })
        .await;
}

#[tokio::test]
async fn who_ends_waiting_or_called_holds_nobody_up() {
    for moment in 0..8 {
        LocalSet::new()
            .run_until(async {
                let (turns, log) = (Turns::default(), Log::default());
                let [first, second, third] = ['a', 'b', 'c'].map(|name| busy(name, &turns, &log));
                look(moment, &log).await;
                second.abort();
                let _ = second.await;
                let before = log.names().len();
                look(6, &log).await;
                let after = log.since(before);
                assert!(after.contains('a') && after.contains('c'), "{after}");
                assert!(!after.contains('b'), "{after}");
                first.abort();
                let _ = first.await;
                let before = log.names().len();
                look(4, &log).await;
                assert!(log.since(before).contains("c.c"), "{}", log.names());
                third.abort();
            })
            .await;
    }
}

#[tokio::test]
async fn turns_are_long_until_somebody_else_moves_bytes() {
    LocalSet::new()
        .run_until(async {
            let (turns, log) = (Turns::default(), Log::default());
            let all = ['a', 'b'].map(|name| busy(name, &turns, &log));
            look(8, &log).await;
            let last = |log: &Log| {
                let all = log.0.borrow();
                all.iter().rev().find(|(_, bytes)| *bytes > 0).copied()
            };
            assert_eq!(last(&log).expect("a turn").1, LONG_TURN);
            let mut quiet = turns.turn();
            poll_fn(|cx| {
                assert!(quiet.poll_begin(cx).is_ready(), "it need not wait");
                quiet.end(cx, 1, false);
                Poll::Ready(())
            })
            .await;
            look(1, &log).await;
            assert_eq!(last(&log).expect("a turn").1, TURN);
            look(4, &log).await;
            assert_eq!(last(&log).expect("a turn").1, LONG_TURN);
            all.iter().for_each(JoinHandle::abort);
        })
        .await;
}

/// Whole relays, copying and splicing, on one worker: one ends in the middle, one says little.
#[tokio::test]
async fn busy_flows_and_a_quiet_one_get_every_byte() {
    const LENGTH: usize = 12 << 20;
    LocalSet::new()
        .run_until(async {
            let pools = Pools::default();
            let rules = |at: u64| Rules {
                splice_after: at.is_multiple_of(2).then_some(at << 18),
                ..Rules::default()
            };
            let (expected, mut readers) = (Rc::new(pattern(LENGTH)), Vec::new());
            for at in 0..6 {
                let Scene { client, server, .. } = scene_with(rules(at), pools.clone()).await;
                let (client_read, client_write) = client.into_split();
                let (server_read, server_write) = server.into_split();
                for (from, to) in [(client_write, server_read), (server_write, client_read)] {
                    spawn_local(write_all(from, Rc::clone(&expected)));
                    readers.push(spawn_local(read_to_end(to)));
                }
            }
            let doomed = scene_with(rules(0), pools.clone()).await;
            let mut quiet = scene_with(rules(1), pools.clone()).await;
            let (mut dying, mut gone) = (doomed.client, doomed.server);
            spawn_local(async move { while dying.write_all(&[0; 1 << 16]).await.is_ok() {} });
            gone.read_exact(&mut vec![0; 4 << 20]).await.expect("read");
            doomed.relay.abort();
            let mut asked = 0_u32;
            while !readers.iter().all(JoinHandle::is_finished) {
                let (question, mut answer) = (asked.to_ne_bytes(), [0; 4]);
                quiet.client.write_all(&question).await.expect("written");
                quiet.server.read_exact(&mut answer).await.expect("read");
                assert_eq!(question, answer);
                asked += 1;
            }
            assert!(asked > 10, "{asked} questions beside so many bytes");
            for reader in readers {
                assert!(reader.await.expect("no panic") == *expected);
            }
            assert_eq!(pools.pipes.in_use(), 0);
        })
        .await;
}
