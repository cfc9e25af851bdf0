use std::net::Ipv4Addr;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use tokio::time::advance;

use super::*;

/// A server, and the connections that a worker has to it.
struct Scene {
    listener: TcpListener,
    cluster: Arc<Cluster>,
    upstreams: Upstreams,
}

impl Scene {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        Self {
            listener: listener.expect("a listener"),
            cluster: Arc::new(Cluster {
                idle_timeout: Some(Duration::from_secs(3600)),
                ..Cluster::named("c")
            }),
            upstreams: Upstreams::default(),
        }
    }

    fn addr(&self) -> SocketAddr {
        self.listener.local_addr().expect("an address")
    }

    fn pool(&self, origin: Origin) -> Rc<Pool> {
        self.upstreams.pool(&self.cluster, (self.addr(), origin))
    }

    /// One that has carried a request of this origin; its end at the server.
    async fn used(&self, origin: Origin) -> TcpStream {
        let pool = self.pool(origin);
        let stream = TcpStream::connect(self.addr()).await;
        let stream = stream.expect("a connection");
        let (served, _) = self.listener.accept().await.expect("a connection");
        let place = pool.place(&self.cluster).expect("room");
        let longest = pool.longest_idle(&self.cluster);
        let link = Link::begin(stream.into(), &self.cluster, place, longest, None).await;
        advance(Duration::from_millis(1)).await;
        self.upstreams.give_back(link.expect("a link"));
        served
    }

    fn waiting(&self) -> usize {
        let all = self.upstreams.0.clusters.borrow();
        let pools = all.values().flat_map(|known| known.pools.values());
        pools.map(|pool| pool.idle.borrow().len()).sum()
    }
}

fn client(number: usize) -> Origin {
    Origin::Inbound {
        workload: WorkloadId::NODE,
        client: Ipv4Addr::from_bits(0x0a00_0000 + number as u32).into(),
    }
}

async fn is_closed(served: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_millis(1), served.read_u8()).await;
    read.is_ok_and(|read| read.is_err())
}

#[tokio::test(start_paused = true)]
async fn of_those_that_one_client_each_can_use_few_wait() {
    let story = async {
        let scene = Scene::new().await;
        let mut nodes = scene.used(Origin::Node).await;
        let mut served = Vec::new();
        for number in 0..MOST_DELIVERED {
            served.push(scene.used(client(number)).await);
        }
        assert_eq!(scene.waiting(), 1 + MOST_DELIVERED);
        served.push(scene.used(client(MOST_DELIVERED)).await);
        assert_eq!(scene.waiting(), 2 + MOST_DELIVERED * 3 / 4);
        for (number, served) in served.iter_mut().enumerate() {
            let is_old = number < MOST_DELIVERED / 4;
            assert_eq!(is_closed(served).await, is_old, "{number}");
        }
        assert!(!is_closed(&mut nodes).await);
        // Who comes again makes room for nobody.
        for _ in 0..2 * MOST_DELIVERED {
            scene.used(client(MOST_DELIVERED)).await;
            let pool = scene.pool(client(MOST_DELIVERED));
            assert!(pool.ready().await.is_some());
        }
        assert!(!is_closed(&mut served[MOST_DELIVERED - 1]).await);
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test(start_paused = true)]
async fn one_client_s_connection_does_not_wait_as_long_as_everybody_s() {
    let story = async {
        let scene = Scene::new().await;
        let mut nodes = scene.used(Origin::Node).await;
        let mut served = scene.used(client(1)).await;
        advance(DELIVERED_IDLE - Duration::from_secs(1)).await;
        assert!(!is_closed(&mut served).await);
        advance(Duration::from_secs(1)).await;
        assert!(is_closed(&mut served).await);
        assert!(!is_closed(&mut nodes).await);
        assert_eq!(scene.waiting(), 1);
    };
    LocalSet::new().run_until(story).await;
}
