//! Who polls a connection to an upstream: a task of its own, and from a request to its response's head whoever waits for
//! that, so that neither wakes the other.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use hyper::client::conn::http1::{Connection, Parts};
use hyper_util::rt::TokioIo;

use super::body::RequestBody;
use super::gauge::Gauged;

type Upstream = Connection<TokioIo<Gauged>, RequestBody>;

pub(super) struct Drive {
    /// Until its end.
    connection: RefCell<Option<Upstream>>,
    /// In order?
    ended: Cell<Option<bool>>,
    relay: Arc<Relay>,
    /// The relay's: all that the connection ever wakes.
    waker: Waker,
}

/// Wakes who drives the connection.
struct Relay(Mutex<Wheel>);

#[derive(Default)]
struct Wheel {
    task: Option<Waker>,
    /// Who has taken it; `Some(None)`: it is about to.
    other: Option<Option<Waker>>,
    /// It was woken since it polled the connection last.
    is_woken: bool,
}

impl Relay {
    fn with<T>(&self, look: impl FnOnce(&mut Wheel) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.with(|wheel| {
            wheel.is_woken |= wheel.other.is_some();
            let driver = wheel.other.as_ref().unwrap_or(&wheel.task);
            driver.iter().for_each(Waker::wake_by_ref);
        });
    }
}

impl Drive {
    pub(super) fn new(connection: Upstream) -> Rc<Self> {
        let relay = Arc::new(Relay(Mutex::default()));
        Rc::new(Self {
            connection: RefCell::new(Some(connection)),
            ended: Cell::default(),
            waker: Waker::from(Arc::clone(&relay)),
            relay,
        })
    }

    /// What the connection's task waits for: its end. Was it in order?
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let is_lent = self.relay.with(|wheel| {
            match &mut wheel.task {
                Some(task) => task.clone_from(cx.waker()),
                None => wheel.task = Some(cx.waker().clone()),
            }
            wheel.other.is_some()
        });
        match (self.ended.get(), is_lent) {
            (Some(ended), _) => Poll::Ready(ended),
            (None, true) => Poll::Pending,
            (None, false) => self.go_on(),
        }
    }

    fn go_on(&self) -> Poll<bool> {
        let mut connection = self.connection.borrow_mut();
        let Some(connection) = &mut *connection else {
            return Poll::Ready(false);
        };
        let ended = Pin::new(connection).poll(&mut Context::from_waker(&self.waker));
        ended.map(|ended| ended.is_ok())
    }

    /// Who wants a response takes the connection before its request is given to it.
    pub(super) fn take(self: &Rc<Self>) -> Taken {
        self.relay.with(|wheel| wheel.other = Some(None));
        Taken(Rc::clone(self))
    }

    /// `None`: somebody has them.
    pub(super) fn parts(&self) -> Option<Parts<TokioIo<Gauged>>> {
        self.connection.take().map(Connection::into_parts)
    }
}

/// The connection is not its task's to poll, until this is dropped.
pub(super) struct Taken(Rc<Drive>);

impl Taken {
    /// What comes of `work`, which the connection does.
    pub(super) async fn drive<T>(self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|cx| {
            self.poll(cx.waker());
            work.as_mut().poll(cx)
        })
        .await
    }

    fn poll(&self, waker: &Waker) {
        let Self(drive) = self;
        if drive.ended.get().is_some() {
            return;
        }
        drive.relay.with(|wheel| {
            wheel.is_woken = false;
            match &mut wheel.other {
                Some(Some(other)) => other.clone_from(waker),
                other => *other = Some(Some(waker.clone())),
            }
        });
        if let Poll::Ready(ended) = drive.go_on() {
            drive.ended.set(Some(ended));
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Self(drive) = self;
        drive.relay.with(|wheel| {
            wheel.other = None;
            // What has gone to whoever had it is the task's to do now.
            if std::mem::take(&mut wheel.is_woken) || drive.ended.get().is_some() {
                wheel.task.iter().for_each(Waker::wake_by_ref);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::time::Duration;

    use hyper::client::conn::http1;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::super::gauge::Gauge;
    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[tokio::test]
    async fn who_has_it_is_woken_alone_and_leaves_the_rest_to_the_task() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let addr = listener.local_addr().expect("an address");
        let stream = TcpStream::connect(addr).await.expect("a connection");
        let (peer, _) = listener.accept().await.expect("a connection");
        let gauge = Gauge::new(1);
        let io = TokioIo::new(Gauged { stream, gauge });
        let (_sender, connection) = http1::handshake(io).await.expect("HTTP");
        let drive = Drive::new(connection);
        let task = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&task));
        let mut of_task = Context::from_waker(&waker);
        assert!(drive.poll(&mut of_task).is_pending());
        let before = task.0.load(Relaxed);

        let taken = drive.take();
        drop(peer);
        drive.waker.wake_by_ref();
        assert_eq!(task.0.load(Relaxed), before);
        assert!(drive.poll(&mut of_task).is_pending());

        drop(taken);
        assert_eq!(task.0.load(Relaxed), before + 1);
        let ended = poll_fn(|cx| drive.poll(cx));
        let ended = timeout(Duration::from_secs(10), ended).await;
        assert!(ended.is_ok(), "the task sees what its peer does again");
    }
}
