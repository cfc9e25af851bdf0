use super::*;

const THERE: WorkloadId = WorkloadId(7);

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
    assert!(meeting.arrive(tuple(), THERE).await);
    assert_eq!(crossing.arrived().await, Some(THERE));
    assert!(meeting.is_empty());
}

#[tokio::test(start_paused = true)]
async fn inbound_first() {
    let meeting = Rendezvous::default();
    let intent = meeting.intend(addr(80));
    let (arrived, crossed) = tokio::join!(meeting.arrive(tuple(), THERE), async {
        tokio::task::yield_now().await;
        intent.cross(addr(40000)).arrived().await
    });
    assert!(arrived);
    assert_eq!(crossed, Some(THERE));
    assert!(meeting.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_ordinary_connection_does_not_wait() {
    let meeting = Rendezvous::default();
    let before = tokio::time::Instant::now();
    assert!(!meeting.arrive(tuple(), THERE).await);
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn nobody_comes() {
    let meeting = Rendezvous::default();
    assert_eq!(
        meeting.intend(addr(80)).cross(addr(40000)).arrived().await,
        None
    );
    let other = meeting.intend(addr(80));
    assert!(
        !meeting.arrive(tuple(), THERE).await,
        "an intent of another connection"
    );
    drop(other);
    assert!(meeting.is_empty());
}
