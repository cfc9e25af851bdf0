use shunt_core::workload::WorkloadId;

use super::*;
use crate::worker::Tally;

const THERE: WorkloadId = WorkloadId(7);

fn flow() -> Counted {
    Counted::new(Tally::default(), THERE)
}

fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], port))
}

fn tuple() -> Tuple {
    Tuple {
        source: addr(40000),
        destination: addr(80),
    }
}

impl Rendezvous {
    fn is_empty(&self) -> bool {
        let places = self.lock();
        places.intents.is_empty() && places.notes.is_empty()
    }
}

#[tokio::test(start_paused = true)]
async fn outbound_first() {
    let meeting = Rendezvous::default();
    let crossing = meeting.intend(addr(80)).cross(addr(40000));
    assert!(meeting.arrive(tuple(), flow()).await);
    let arrived = crossing.arrived().await.expect("it arrived");
    assert_eq!(arrived.workload(), THERE);
    assert!(meeting.is_empty());
}

#[tokio::test(start_paused = true)]
async fn inbound_first() {
    let meeting = Rendezvous::default();
    let intent = meeting.intend(addr(80));
    let (arrived, crossed) = tokio::join!(meeting.arrive(tuple(), flow()), async {
        tokio::task::yield_now().await;
        intent.cross(addr(40000)).arrived().await
    });
    assert!(arrived);
    assert_eq!(crossed.expect("it arrived").workload(), THERE);
    assert!(meeting.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_destination_has_a_flow_all_the_time() {
    for inbound_first in [false, true] {
        let meeting = Rendezvous::default();
        let tally = Tally::default();
        let intent = meeting.intend(addr(80));
        let arrival = meeting.arrive(tuple(), Counted::new(tally.clone(), THERE));
        let crossing = if inbound_first {
            let (arrived, crossing) = tokio::join!(arrival, async {
                tokio::task::yield_now().await;
                intent.cross(addr(40000))
            });
            assert!(arrived);
            crossing
        } else {
            let crossing = intent.cross(addr(40000));
            assert!(arrival.await);
            crossing
        };
        // The inbound task has ended, the outbound one was not there yet.
        assert!(!tally.is_idle(), "{inbound_first}");
        let held = crossing.arrived().await;
        assert!(!tally.is_idle(), "{inbound_first}");
        drop(held);
        assert!(tally.is_idle(), "{inbound_first}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_ordinary_connection_does_not_wait() {
    let meeting = Rendezvous::default();
    let before = tokio::time::Instant::now();
    assert!(!meeting.arrive(tuple(), flow()).await);
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn nobody_comes() {
    let meeting = Rendezvous::default();
    let crossed = meeting.intend(addr(80)).cross(addr(40000)).arrived().await;
    assert!(crossed.is_none());
    let other = meeting.intend(addr(80));
    assert!(
        !meeting.arrive(tuple(), flow()).await,
        "an intent of another connection"
    );
    drop(other);
    assert!(meeting.is_empty());
}
