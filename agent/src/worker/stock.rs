//! Ready sockets, made by the supervisor: one stock per worker thread, by workload, role and family. The data plane
//! could not make them itself: it can enter no namespace and set no mark.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shunt_core::sockets::{SocketSupply, SocketWant};
use shunt_core::workload::WorkloadId;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use crate::ipc::ToSupervisor;

/// A shelf's aim to begin with, and at most; it doubles each time somebody had to wait.
const FIRST_AIM: usize = 8;
const LAST_AIM: usize = 128;
/// A supervisor that has not delivered for this long is in trouble, and so is the connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// One worker thread's stock.
#[derive(Clone, Debug)]
pub(super) struct Stock {
    worker: usize,
    shelves: Arc<Mutex<HashMap<SocketWant, Shelf>>>,
    requests: UnboundedSender<ToSupervisor>,
}

#[derive(Debug, Default)]
struct Shelf {
    sockets: Vec<OwnedFd>,
    /// Asked for and not here yet.
    coming: usize,
    aim: usize,
    failure: Option<String>,
    changed: Arc<Notify>,
}

impl Stock {
    pub(super) fn new(worker: usize, requests: UnboundedSender<ToSupervisor>) -> Self {
        Self {
            worker,
            shelves: Arc::default(),
            requests,
        }
    }

    pub(super) fn put(&self, want: SocketWant, sockets: Vec<OwnedFd>) {
        if sockets.is_empty() {
            return self.fail(want, "no descriptor left for it".into());
        }
        let mut shelves = self.lock();
        let shelf = shelves.entry(want).or_default();
        shelf.coming = shelf.coming.saturating_sub(sockets.len());
        shelf.failure = None;
        shelf.sockets.extend(sockets);
        shelf.changed.notify_waiters();
    }

    /// Those who wait get the error; the next one asks again.
    pub(super) fn fail(&self, want: SocketWant, error: String) {
        let mut shelves = self.lock();
        let shelf = shelves.entry(want).or_default();
        shelf.coming = 0;
        // Where descriptors are few, as many as before would fail for ever.
        shelf.aim = FIRST_AIM;
        shelf.failure = Some(error);
        shelf.changed.notify_waiters();
    }

    /// The workload is gone for good.
    pub(super) fn clear(&self, workload: WorkloadId) {
        self.lock().retain(|want, _| want.workload != workload);
    }

    /// A socket, or what to wait on for one.
    fn try_take(&self, want: SocketWant) -> Result<OwnedFd, Arc<Notify>> {
        let mut shelves = self.lock();
        let shelf = shelves.entry(want).or_default();
        shelf.aim = shelf.aim.max(FIRST_AIM);
        let socket = shelf.sockets.pop();
        if socket.is_none() && shelf.coming == 0 {
            shelf.aim = (shelf.aim * 2).min(LAST_AIM);
            shelf.failure = None;
        }
        let have = shelf.sockets.len() + shelf.coming;
        if have <= shelf.aim / 2 {
            let count = shelf.aim - have;
            shelf.coming += count;
            let request = ToSupervisor::NeedSockets {
                worker: self.worker,
                want,
                count,
            };
            // Without a supervisor nobody waits for the answer.
            let _ = self.requests.send(request);
        }
        socket.ok_or_else(|| Arc::clone(&shelf.changed))
    }

    fn failure(&self, want: SocketWant) -> Option<String> {
        self.lock()
            .get(&want)
            .and_then(|shelf| shelf.failure.clone())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketWant, Shelf>> {
        // No code that holds the lock can panic half way through a change.
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SocketSupply for Stock {
    async fn take(&self, want: SocketWant) -> io::Result<OwnedFd> {
        let taken = async {
            loop {
                let changed = match self.try_take(want) {
                    Ok(socket) => return Ok(socket),
                    Err(changed) => changed,
                };
                let notified = changed.notified();
                tokio::pin!(notified);
                notified.as_mut().enable();
                // Something may have come between the look and the wait.
                if let Ok(socket) = self.try_take(want) {
                    return Ok(socket);
                }
                tokio::select! {
                    () = notified => {}
                    // Nobody makes sockets any more, whatever was asked for before.
                    () = self.requests.closed() => {
                        return Err(io::Error::other("no socket: the supervisor is gone"));
                    }
                }
                if let Some(error) = self.failure(want) {
                    return Err(io::Error::other(format!(
                        "no socket from the supervisor: {error}"
                    )));
                }
            }
        };
        tokio::time::timeout(PATIENCE, taken)
            .await
            .unwrap_or_else(|_| {
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "no socket from the supervisor in 10 s",
                ))
            })
    }
}

#[cfg(test)]
mod tests {
    use shunt_core::sockets::{Family, SocketRole};
    use tokio::sync::mpsc;

    use super::*;

    const WANT: SocketWant = SocketWant {
        workload: WorkloadId(1),
        role: SocketRole::Upstream,
        family: Family::V4,
    };

    fn sockets(count: usize) -> Vec<OwnedFd> {
        (0..count)
            .map(|_| {
                std::net::UdpSocket::bind("127.0.0.1:0")
                    .expect("a socket")
                    .into()
            })
            .collect()
    }

    #[tokio::test]
    async fn an_empty_shelf_waits_and_asks_once() {
        let (requests, mut asked) = mpsc::unbounded_channel();
        let stock = Stock::new(0, requests);
        let waiting = tokio::spawn({
            let stock = stock.clone();
            async move { stock.take(WANT).await }
        });
        let request = asked.recv().await.expect("a request");
        let ToSupervisor::NeedSockets { count, .. } = request else {
            panic!("{request:?}")
        };
        stock.put(WANT, sockets(count));
        waiting.await.expect("no panic").expect("a socket");
        assert!(asked.try_recv().is_err(), "asked twice");
    }

    /// The kernel drops descriptors that a process at its limit cannot take.
    #[tokio::test]
    async fn a_delivery_without_sockets_is_a_failure_and_not_the_last() {
        let (requests, mut asked) = mpsc::unbounded_channel();
        let stock = Stock::new(0, requests);
        for _ in 0..2 {
            let waiting = tokio::spawn({
                let stock = stock.clone();
                async move { stock.take(WANT).await }
            });
            asked.recv().await.expect("a request");
            tokio::task::yield_now().await;
            stock.put(WANT, Vec::new());
            let error = waiting.await.expect("no panic").expect_err("an error");
            assert!(error.to_string().contains("descriptor"), "{error}");
        }
    }

    #[test]
    fn without_a_supervisor_nobody_waits_for_what_it_was_asked() {
        let (requests, mut asked) = mpsc::unbounded_channel();
        let stock = Stock::new(0, requests);
        let (tell, told) = std::sync::mpsc::channel();
        // On a thread of its own: what does not yield cannot be interrupted.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build();
            runtime.expect("a runtime").block_on(async {
                let waiting = tokio::spawn({
                    let stock = stock.clone();
                    async move { stock.take(WANT).await }
                });
                asked.recv().await.expect("a request");
                drop(asked);
                let later = stock.take(WANT).await;
                let _ = tell.send([waiting.await.expect("no panic"), later]);
            });
        });
        let answers = told.recv_timeout(Duration::from_secs(5)).expect("answers");
        for answer in answers {
            let error = answer.expect_err("no socket");
            assert!(error.to_string().contains("supervisor is gone"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_failure_reaches_those_who_wait() {
        let (requests, mut asked) = mpsc::unbounded_channel();
        let stock = Stock::new(0, requests);
        let waiting = tokio::spawn({
            let stock = stock.clone();
            async move { stock.take(WANT).await }
        });
        asked.recv().await.expect("a request");
        tokio::task::yield_now().await;
        stock.fail(WANT, "the workload was withdrawn".into());
        let error = waiting.await.expect("no panic").expect_err("an error");
        assert!(error.to_string().contains("withdrawn"), "{error}");
        // The next one asks anew.
        let again = tokio::spawn(async move { stock.take(WANT).await });
        asked.recv().await.expect("a second request");
        again.abort();
    }
}
